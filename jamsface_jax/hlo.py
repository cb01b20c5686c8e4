"""Reading a compiled program: what it computes, moves and sends.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs.
Here the text of the compiled program is walked, and every instruction counts as
often as the loops around it turn. A loop that ends on data counts as one turn.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)
# What neither computes nor moves an array, or only says what others do.
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("after-all", "partition-id", "replica-id", "iota", "opt-barrier"),
  *("while", "conditional", "call", "async-start", "async-done"),
  # The end of a pair; its start has the operands.
  *("copy-done", "slice-done", "all-reduce-done", "all-gather-done"),
  *("collective-permute-done", "async-update"),
}
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
    shape: of the part on one device.
    layout: of XLA's text: order of axes from the fastest, tiles, memory space.
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
      bits = int(re.search(r"\d+", self.dtype)[0])
    return -(-self.size * bits // 8)

  @property
  def padded_bytes(self) -> int:
    """Bytes with the padding of its first tile: what memory moves."""
    order, _, tiles = self.layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if not tile or not self.size:
      return self.bytes
    tile = [int(n) for n in tile[1].split(",")]
    order = [int(n) for n in order.split(",") if n]
    padded = list(self.shape)
    # Tiles cover the fastest axes; their last number is of the fastest.
    for axis, length in zip(order, reversed(tile), strict=False):
      padded[axis] = -(-padded[axis] // length) * length
    return self.bytes * math.prod(padded) // self.size

  @property
  def in_main_memory(self) -> bool:
    """Whether it lies in the device's memory and not in the chip's own."""
    return "S(" not in self.layout


@dataclasses.dataclass
class Instruction:
  """One line of a program.

  Attributes:
    name: of the result.
    opcode: XLA's name of the operation.
    results: one array, or those of a tuple, flat.
    operands: names.
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
    computations: by name; instructions by name, in the order of the text.
    entry: name of the one that runs.
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

  def _executed(self, name, runs, looped):
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
        inner = called.get("to_apply") or called.get("calls")
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

  def _compared_in(self, root, condition):
    """Element of the carry and constant of a condition `carry[i] < n`."""
    if root.opcode == "fusion":
      inner = self.computations[root.called["calls"]]
      inner_root = next(i for i in inner.values() if i.is_root)
      sides = [self._behind(inner, name) for name in inner_root.operands]
      outer = []
      for side in sides:
        if side.opcode == "parameter":
          number = int(re.search(r"parameter\((\d+)\)", side.text)[1])
          side = self._behind(condition, root.operands[number])
        outer.append(side)
      root, sides = inner_root, outer
    else:
      sides = [self._behind(condition, name) for name in root.operands]
    if root.opcode != "compare" or root.attribute("direction") != "LT":
      return None
    if [s.opcode for s in sides] != ["get-tuple-element", "constant"]:
      return None
    return int(sides[0].attribute("index")), _constant(sides[1])

  def _behind(self, computation, name):
    """The instruction that a name stands for, copies and the like apart."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast", "convert", "copy-done"):
      instruction = computation[instruction.operands[0]]
      if instruction.opcode == "copy-start":
        instruction = computation[instruction.operands[0]]
    return instruction

  def _initial(self, loop, computation, index):
    carry = self._behind(computation, loop.operands[0])
    if carry.opcode != "tuple":
      return None
    first = self._behind(computation, carry.operands[index])
    return _constant(first) if first.opcode == "constant" else None

  def _counts_up(self, body, index):
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
  return found and int(found[1])


def parse(text: str) -> Program:
  """Reads what `jax.stages.Compiled.as_text` returns; "": an empty program."""
  computations, entry, current = {}, "", None
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


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of message that a program sends.

  Attributes:
    kind: one of `COLLECTIVES`.
    axis: of the mesh, "data", "model" or "data+model"; "other" if it is
      neither.
    group: devices that take part in one.
    dtype: of the largest array.
    bytes: of all arrays together on one device, the larger of input and result.
    arrays: how many are sent as one.
    runs: how often a step sends it.
    looped: whether a loop is around it.
    origin: where the program had it from, as JAX names operations.
  """

  kind: str
  axis: str
  group: int
  dtype: str
  bytes: int
  arrays: int
  runs: int
  looped: bool
  origin: str


def collectives(
  program: Program, mesh_shape: Mapping[str, int]
) -> list[Collective]:
  """Lists every collective of a program, in its order.

  Args:
    program: compiled for a mesh.
    mesh_shape: sizes of its axes by name, in order.
  """
  found = []
  for instruction, computation, runs, looped in program.executed():
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
      continue
    sent = [a for n in instruction.operands for a in computation[n].results]
    results = instruction.results
    if instruction.opcode.endswith("-start"):
      # A start returns what went in, what comes out, and flags.
      results = [a for a in results if a.dtype not in ("u32", "s32") or a.shape]
      results = results[len(sent) :] or sent
    larger = max(sent, results, key=lambda many: sum(a.bytes for a in many))
    axis, group = _axis(instruction.text, mesh_shape)
    if group == 1:
      continue
    origin = re.search(r'op_name="([^"]*)"', instruction.text)
    found.append(
      Collective(
        kind=kind,
        axis=axis,
        group=group,
        dtype=max(larger, key=lambda a: a.bytes).dtype,
        bytes=sum(a.bytes for a in larger),
        arrays=len(sent),
        runs=runs,
        looped=looped,
        origin=origin[1] if origin else "",
      )
    )
  return found


def _axis(text: str, mesh_shape: Mapping[str, int]) -> tuple[str, int]:
  """The mesh axes that the first group of a collective runs along."""
  groups = _groups(text, math.prod(mesh_shape.values()))
  if groups is None:
    return "other", math.prod(mesh_shape.values())
  first = groups[0]
  places = np.unravel_index(first, tuple(mesh_shape.values()))
  varying = [
    name
    for name, place in zip(mesh_shape, places, strict=True)
    if len(set(place.tolist())) > 1
  ]
  full = math.prod(mesh_shape[name] for name in varying)
  axis = "+".join(varying) if full == len(first) else "other"
  return axis, len(first)


def _groups(text: str, devices: int) -> np.ndarray | None:
  """Devices of each group, from any of the forms that XLA writes."""
  # {{0,1},{2,3}}
  listed = re.search(r"replica_groups=\{(\{[\d,{}\s]*\})\}", text)
  if listed:
    groups = re.findall(r"\{([\d,\s]+)\}", listed[1])
    return np.array([[int(n) for n in g.split(",")] for g in groups])
  if "replica_groups={}" in text:
    return np.arange(devices)[None]
  # [groups,size]<=[dims]T(order)
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
  )
  if iota:
    shape, dims = (_numbers(iota[k]) for k in (1, 2))
    ids = np.arange(math.prod(dims)).reshape(dims)
    if iota[3]:
      ids = ids.transpose(_numbers(iota[3]))
    return ids.reshape(shape)
  # mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'b'}: the order if it is not
  # that of the numbers, and a part of an axis as 'a':(2)4.
  found = re.search(
    r"replica_groups=(?:@\w+\s*)?mesh\[([^\]]*)\]"
    r"(?:,\s*device_ids=\(([^)]*(?:\([^)]*\))?)\))?\s*\{([^}]*)\}",
    text,
  )
  if found:
    return _groups_of_mesh(*found.groups())
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{}\s]*\})\}", text)
  if pairs:
    pairs = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
    return np.array([[int(a), int(b)] for a, b in pairs if a != b][:1])
  return None


def _groups_of_mesh(axes: str, order: str | None, wanted: str) -> np.ndarray:
  parts = {
    name: (int(before or 1), int(length or 0))
    for name, before, length in re.findall(
      r"'([^']+)'(?::\((\d+)\)(\d+))?", wanted
    )
  }
  dims, kept, along = [], [], []
  for name, size in re.findall(r"'([^']+)'=(\d+)", axes):
    before, length = parts.get(name, (int(size), 1))
    length = length or int(size)
    for many, where in (
      (before, kept),
      (length, along),
      (int(size) // (before * length), kept),
    ):
      where.append(len(dims))
      dims.append(many)
  ids = np.arange(math.prod(dims))
  iota = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order or "")
  if iota:
    ids = ids.reshape(_numbers(iota[1]))
    if iota[2]:
      ids = ids.transpose(_numbers(iota[2]))
  elif order:
    ids = np.array(_numbers(order))
  ids = ids.reshape(dims).transpose(kept + along)
  return ids.reshape(-1, math.prod(dims[k] for k in along))


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",")]


@dataclasses.dataclass(frozen=True)
class Work:
  """What one instruction does on one device, each time it runs.

  Attributes:
    operations: floating-point ones of matrix products and convolutions.
    passes: of the matrix unit that one such product takes: 6 where float32
      operands are multiplied exactly, 3 for "high" precision, else 1.
    bytes: read from and written to the device's main memory.
    cycles: the compiler's own estimate; 0 where it has none.
    runs: how often.
  """

  operations: int
  passes: int
  bytes: int
  cycles: int
  runs: int


def work(program: Program) -> Iterator[Work]:
  """The work of each instruction that runs, collectives apart."""
  for instruction, computation, runs, _ in program.executed():
    if instruction.opcode in _FREE:
      continue
    if instruction.opcode.removesuffix("-start") in COLLECTIVES:
      continue
    operations, passes = _products(program, instruction, computation)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.text)
    yield Work(
      operations=operations,
      passes=passes,
      bytes=_moved(program, instruction, computation),
      cycles=int(cycles[1]) if cycles else 0,
      runs=runs,
    )


def operations(program: Program) -> int:
  """Floating-point operations of all products of a program on one device."""
  return sum(w.operations * w.runs for w in work(program))


def moved_bytes(program: Program) -> int:
  """Bytes that a program moves from and to main memory on one device."""
  return sum(w.bytes * w.runs for w in work(program))


def unknown_loops(program: Program) -> int:
  """Loops whose number of turns depends on data; each counts as one turn."""
  return sum(
    instruction.opcode == "while"
    and program.turns(instruction, computation) is None
    for instruction, computation, _, _ in program.executed()
  )


def _products(program, instruction, computation):
  """Operations of an instruction or of all within a fusion, and passes."""
  total, passes = 0, 1
  inner = instruction.called.get("calls")
  if instruction.opcode == "fusion" and inner:
    computation = program.computations[inner]
    for part in computation.values():
      more, its_passes = _products(program, part, computation)
      total += more
      passes = max(passes, its_passes)
    return total, passes
  if instruction.opcode == "convolution":
    total = 2 * _convolution(instruction, computation)
  elif instruction.opcode == "dot":
    left = computation[instruction.operands[0]].results[0]
    axes = _numbers(instruction.attribute("lhs_contracting_dims").strip("{}"))
    contracted = math.prod(left.shape[k] for k in axes)
    total = 2 * instruction.results[0].size * contracted
  precision = instruction.attribute("operand_precision") or ""
  if total and "highest" in precision:
    passes = 6
  elif total and "high" in precision:
    passes = 3
  return total, passes


def _convolution(instruction, computation):
  """Multiplications that meet no padding and no hole of a dilation."""
  left, right = (
    computation[name].results[0] for name in instruction.operands[:2]
  )
  labels = instruction.attribute("dim_labels")
  lhs, rest = labels.split("_")
  rhs, out = rest.split("->")
  window = re.search(r"window=\{([^}]*)\}", instruction.text)
  window = dict(
    part.split("=") for part in (window[1].split() if window else [])
  )
  spatial = [c for c in lhs if c.isdigit()]
  size = [right.shape[rhs.index(c)] for c in spatial]

  def by_axis(name, default):
    text = window.get(name)
    if text is None:
      return [default] * len(spatial)
    return [int(n.split("_")[0]) for n in text.split("x")]

  stride, low = by_axis("stride", 1), by_axis("pad", 0)
  lhs_dilate, rhs_dilate = by_axis("lhs_dilate", 1), by_axis("rhs_dilate", 1)
  result = instruction.results[0]
  pairs = 1
  for k, c in enumerate(spatial):
    pairs *= _pairs(
      left.shape[lhs.index(c)],
      result.shape[out.index(c)],
      *(size[k], stride[k], low[k], lhs_dilate[k], rhs_dilate[k]),
    )
  batch_groups = int(instruction.attribute("batch_group_count") or 1)
  return (
    pairs
    * (left.shape[lhs.index("b")] // batch_groups)
    * right.shape[rhs.index("i")]
    * right.shape[rhs.index("o")]
  )


@functools.cache
def _pairs(length, results, size, stride, low, lhs_dilate, rhs_dilate):
  """Pairs of a result and a weight of a window that meet an element."""
  place = stride * np.arange(results)[:, None] - low
  place = place + rhs_dilate * np.arange(size)
  inside = (place >= 0) & (place <= (length - 1) * lhs_dilate)
  return int(np.sum(inside & (place % lhs_dilate == 0)))


def _moved(program, instruction, computation):
  """Bytes between main memory and the chip, of one run."""
  inner = program.computations.get(instruction.called.get("calls", ""), {})
  opcode = instruction.opcode
  if opcode in ("copy-start", "slice-start"):
    source = computation[instruction.operands[0]].results[0]
    moved = instruction.results[1] if opcode == "slice-start" else source
    target = instruction.results[1 if opcode == "slice-start" else 0]
    return moved.padded_bytes * (source.in_main_memory + target.in_main_memory)
  if opcode == "custom-call" and "Bitcast" in instruction.text:
    return 0
  if opcode == "fusion":
    read = [
      _read(program, inner, number, computation[name].results)
      for number, name in enumerate(instruction.operands)
    ]
    return sum(read) + _written(program, inner, instruction.results)
  if opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * _main_bytes(instruction.results)
  if opcode in ("dynamic-update-slice", "scatter"):
    new = computation[instruction.operands[-1 if opcode == "scatter" else 1]]
    return 2 * _main_bytes(new.results)
  read = [computation[name].results for name in instruction.operands]
  return sum(map(_main_bytes, read)) + _main_bytes(instruction.results)


def _read(
  program: Program, inner: Computation, number: int, operand: Sequence[Array]
) -> int:
  """Bytes that a fusion reads of one operand: all, or what is cut out."""
  whole = _main_bytes(operand)
  parameter = next(
    (
      i
      for i in inner.values()
      if i.opcode == "parameter" and f"parameter({number})" in i.text
    ),
    None,
  )
  if not whole or parameter is None:
    return whole
  read, names = 0, [parameter.name]
  for user in inner.values():
    if not any(name in user.operands for name in names):
      continue
    if user.opcode == "bitcast":
      names.append(user.name)
    elif user.opcode in ("dynamic-slice", "slice", "gather"):
      read += sum(a.padded_bytes for a in user.results)
    elif user.opcode == "dynamic-update-slice" and user.operands[0] in names:
      continue  # What is overwritten is not read.
    elif user.opcode == "fusion":
      # Fusions within fusions: of a product, the part that cuts its operand.
      within = program.computations[user.called["calls"]]
      read += sum(
        _read(program, within, place, operand)
        for place, name in enumerate(user.operands)
        if name in names
      )
    else:
      return whole
  return min(read, whole)


def _written(
  program: Program, inner: Computation, results: Sequence[Array]
) -> int:
  """Bytes that a fusion writes: all, or the part that it updates in place."""
  root = next(i for i in inner.values() if i.is_root)
  roots = [root]
  if root.opcode == "tuple":
    roots = [inner[name] for name in root.operands]
  if len(roots) != len(results):
    return _main_bytes(results)
  written = 0
  for part, result in zip(roots, results, strict=True):
    where = inner
    while part.opcode in ("bitcast", "fusion") and len(part.results) == 1:
      if part.opcode == "fusion":
        where = program.computations[part.called["calls"]]
        part = next(i for i in where.values() if i.is_root)
      else:
        part = where[part.operands[0]]
    if part.opcode == "dynamic-update-slice":
      new = where[part.operands[1]].results
      if result.in_main_memory:
        written += sum(a.padded_bytes for a in new)
    else:
      written += _main_bytes([result])
  return written


def _main_bytes(results: Sequence[Array]) -> int:
  return sum(a.padded_bytes for a in results if a.in_main_memory)
