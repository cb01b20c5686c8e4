"""Reading a compiled program: what it computes, moves and sends.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs.
Here the text of the compiled program is walked, and every instruction counts as
often as the loops around it turn. A loop that ends on data counts as one turn.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

# Opcodes of what neither computes nor moves an array, or only says what others
# do; of a pair, the end: its start has the operands.
FREE = frozenset(
  {
    "after-all",
    "all-gather-done",
    "all-reduce-done",
    "async-done",
    "async-start",
    "async-update",
    "bitcast",
    "call",
    "collective-broadcast-done",
    "collective-permute-done",
    "conditional",
    "constant",
    "copy-done",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "reduce-scatter-done",
    "replica-id",
    "slice-done",
    "tuple",
    "while",
  }
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a program.

  Attributes:
    dtype: XLA's name of it, such as "f32".
    shape: that of the part on one device.
    layout: what XLA's text says in braces: order of axes from the fastest,
      tiles, memory space.
  """

  dtype: str
  shape: tuple[int, ...]
  layout: str

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """Bytes of the elements, without padding."""
    bits = _BITS.get(self.dtype)
    if bits is None:
      bits = _number(r"(\d+)", self.dtype)
    return -(-self.size * bits // 8)

  @property
  def padded_bytes(self) -> int:
    """Bytes with the padding of its first tile: what memory moves."""
    order, _, tiles = self.layout.partition(":")
    first = re.match(r"T\(([\d,]+)\)", tiles)
    if not first or not self.size:
      return self.bytes
    axes = [int(n) for n in order.split(",") if n]
    padded = list(self.shape)
    # Tiles cover the fastest axes; their last number is the fastest axis's.
    for axis, length in zip(axes, reversed(numbers(first[1])), strict=False):
      padded[axis] = -(-padded[axis] // length) * length
    return self.bytes * math.prod(padded) // self.size

  @property
  def in_main_memory(self) -> bool:
    """Whether it lies in the device's memory, not in the one of its cores."""
    return "S(" not in self.layout


@dataclasses.dataclass
class Instruction:
  """One line of a program.

  Attributes:
    name: what other lines call its result.
    opcode: XLA's name of the operation.
    results: one array, or those of a tuple, flat.
    operands: names of what goes in.
    called: computations by role: `calls`, `body`, `condition`, ...; branches
      under "0", "1", ...
    text: the whole line.
    is_root: whether it is the result of its computation.
  """

  name: str
  opcode: str
  results: list[Array]
  operands: list[str]
  called: dict[str, str]
  text: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """What the line says for `name=`, up to the next comma or space."""
    found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.text)
    return found and found[1]


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: each by its name: its instructions by theirs, in the order of
      the text.
    entry: name of the computation that runs.
  """

  computations: Mapping[str, Computation]
  entry: str

  def executed(self) -> Iterator[tuple[Instruction, Computation, int, bool]]:
    """Walks what runs: each instruction, how often, and whether in a loop.

    Instructions inside a fusion are not visited: the fusion is.

    Yields:
      Instruction, its computation, number of runs, whether a loop is around it.
    """
    if self.entry:
      yield from self._executed(self.entry, 1, False)

  def _executed(
    self, name: str, runs: int, looped: bool
  ) -> Iterator[tuple[Instruction, Computation, int, bool]]:
    computation = self.computations[name]
    for instruction in computation.values():
      yield instruction, computation, runs, looped
      called = instruction.called
      if instruction.opcode == "while":
        turns = self.turns(instruction, computation) or 1
        yield from self._executed(called["body"], runs * turns, True)
      elif instruction.opcode == "conditional":
        # One branch runs: the one with the most instructions, as a bound.
        largest = max(called.values(), key=lambda n: len(self.computations[n]))
        yield from self._executed(largest, runs, looped)
      elif instruction.opcode in ("call", "async-start"):
        inner = called.get("to_apply") or called["calls"]
        yield from self._executed(inner, runs, looped)

  def turns(self, loop: Instruction, computation: Computation) -> int | None:
    """How often a `while` turns; None if that depends on data."""
    known = re.search(r'known_trip_count[^}]*?"?n"?:\s*"?(\d+)', loop.text)
    if known:
      return int(known[1])
    condition = self.computations[loop.called["condition"]]
    root = next(i for i in condition.values() if i.is_root)
    compared = self._compared_in(root, condition)
    if compared is None:
      return None
    index, limit = compared
    body = self.computations[loop.called["body"]]
    start = self._initial(loop, computation, index)
    if start is None or not self._counts_up(body, index):
      return None
    return max(limit - start, 0)

  def _compared_in(
    self, root: Instruction, condition: Computation
  ) -> tuple[int, int] | None:
    """Element of the carry and constant of a condition `carry[i] < n`."""
    if root.opcode == "fusion":
      inner = self.computations[root.called["calls"]]
      inner_root = next(i for i in inner.values() if i.is_root)
      sides = [self._behind(inner, name) for name in inner_root.operands]
      outer = []
      for side in sides:
        if side.opcode == "parameter":
          number = _number(r"parameter\((\d+)\)", side.text)
          side = self._behind(condition, root.operands[number])
        outer.append(side)
      root, sides = inner_root, outer
    else:
      sides = [self._behind(condition, name) for name in root.operands]
    if root.opcode != "compare" or root.attribute("direction") != "LT":
      return None
    if [s.opcode for s in sides] != ["get-tuple-element", "constant"]:
      return None
    index, limit = sides[0].attribute("index"), _constant(sides[1])
    return None if index is None or limit is None else (int(index), limit)

  def _behind(self, computation: Computation, name: str) -> Instruction:
    """The instruction that a name stands for, copies and the like apart."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast", "convert", "copy-done"):
      instruction = computation[instruction.operands[0]]
      if instruction.opcode == "copy-start":
        instruction = computation[instruction.operands[0]]
    return instruction

  def _initial(
    self, loop: Instruction, computation: Computation, index: int
  ) -> int | None:
    """The constant that an element of a loop's carry starts at."""
    carry = self._behind(computation, loop.operands[0])
    if carry.opcode != "tuple":
      return None
    first = self._behind(computation, carry.operands[index])
    return _constant(first) if first.opcode == "constant" else None

  def _counts_up(self, body: Computation, index: int) -> bool:
    """Whether a body adds 1 to this element of its carry."""
    root = next(i for i in body.values() if i.is_root)
    if root.opcode != "tuple":
      return False
    step = self._behind(body, root.operands[index])
    operands, inner = step.operands, body
    if step.opcode == "fusion":
      inner = self.computations[step.called["calls"]]
      step = next(i for i in inner.values() if i.is_root)
      operands = step.operands
    if step.opcode != "add":
      return False
    sides = [self._behind(inner, name) for name in operands]
    return any(s.opcode == "constant" and _constant(s) == 1 for s in sides)


def _constant(instruction: Instruction) -> int | None:
  found = re.search(r"constant\((-?\d+)\)", instruction.text)
  return int(found[1]) if found else None


def _number(pattern: str, text: str) -> int:
  """The number that a pattern's group finds.

  Raises:
    ValueError: there is none.
  """
  found = re.search(pattern, text)
  if not found:
    raise ValueError(f"no {pattern!r} in {text[:80]!r}")
  return int(found[1])


def numbers(text: str) -> list[int]:
  """Reads numbers with commas between."""
  return [int(n) for n in text.split(",")]


def parse(text: str) -> Program:
  """Reads what `jax.stages.Compiled.as_text` returns; "": an empty program."""
  computations: dict[str, Computation] = {}
  entry, current = "", None
  for line in text.splitlines():
    if current is None:
      head = _COMPUTATION.match(line)
      if head:
        current = computations[head[2]] = {}
        if head[1]:
          entry = head[2]
    elif line.startswith("}"):
      current = None
    else:
      instruction = _parse_line(line)
      if instruction:
        current[instruction.name] = instruction
  return Program(computations, entry)


def _parse_line(line: str) -> Instruction | None:
  head = _INSTRUCTION.match(line)
  if not head:
    return None
  rest = line[head.end() :]
  # The type: an array, or a tuple in brackets of its own.
  if rest.startswith("("):
    end = _closing(rest, 0) + 1
  else:
    end = rest.index(" ")
  results = arrays(rest[:end])
  after = rest[end:].lstrip()
  opening = after.index("(")
  closing = _closing(after, opening)
  attributes = after[closing:]
  # Settings of a backend are long, and have no names of computations.
  attributes = attributes.partition("backend_config=")[0]
  called = {role: name for role, name in _CALLED.findall(attributes)}
  branches = _BRANCHES.search(attributes)
  if branches:
    called |= {
      str(k): name.strip().lstrip("%")
      for k, name in enumerate(branches[1].split(","))
    }
  return Instruction(
    name=head[2],
    opcode=after[:opening].strip(),
    results=results,
    operands=_NAME.findall(after[opening:closing]),
    called=called,
    text=line,
    is_root=bool(head[1]),
  )


def _closing(text: str, opening: int) -> int:
  """Place of the bracket that closes the one at `opening`."""
  depth = 0
  for found in re.finditer(r"[()]", text[opening:]):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return opening + found.start()
  raise ValueError(f"no end of {text[:80]!r}")


def arrays(text: str) -> list[Array]:
  """Reads the arrays of a type as XLA writes it."""
  return [
    Array(dtype, tuple(int(n.strip("<=")) for n in shape.split(",") if n), lay)
    for dtype, shape, lay in _ARRAY.findall(text)
  ]
