"""Operations and bytes of a compiled program, instruction by instruction.

What it is worth: XLA's own `cost_analysis` counts the body of a loop once, and
the head walks its classes in loops; and a sum over a whole step does not say
which instructions wait for arithmetic and which for memory. The estimated times
of `step_cost` rest on this file and choose among meshes that fit. What a device
holds and what it sends do not: those are the compiler's and `collectives`'. No
library does it: xprof wants a trace of a run on the device itself, and
`jax.stages.Compiled` gives a text and the sums. No figure of this file has been
compared with a run on a TPU yet.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from jamsface_jax.pods import gpu_calls
from jamsface_jax.pods.collectives import COLLECTIVES
from jamsface_jax.pods.program import (
  FREE,
  Array,
  Computation,
  Instruction,
  Program,
  numbers,
)


@dataclasses.dataclass(frozen=True)
class Work:
  """What one instruction does on one device, each time it runs.

  Attributes:
    operations: floating-point operations of matrix products and convolutions.
    passes: how much longer a product takes than one of bfloat16: 6 times where
      float32 operands are multiplied exactly, 3 for "high" precision, as long
      as the device needs for float32 otherwise.
    bytes: what is read from and written to the device's main memory.
    cycles: the compiler's own estimate; 0 where it has none.
    runs: how often it runs in a step.
  """

  operations: int
  passes: int
  bytes: int
  cycles: int
  runs: int


def each_work(program: Program, *, float32_passes: int = 1) -> Iterator[Work]:
  """The work of each instruction that runs, collectives apart.

  Args:
    program: compiled, as one device runs it.
    float32_passes: passes of a product of float32 at the default precision.

  Yields:
    Work in the order of the text.
  """
  for instruction, computation, runs, _ in program.executed():
    if instruction.opcode in FREE:
      continue
    if instruction.opcode.removesuffix("-start") in COLLECTIVES:
      continue
    operations, passes = _products(
      program, instruction, computation, float32_passes
    )
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.text)
    yield Work(
      operations=operations,
      passes=passes,
      bytes=_moved(program, instruction, computation),
      cycles=int(cycles[1]) if cycles else 0,
      runs=runs,
    )


def unknown_loops(program: Program) -> int:
  """Loops whose number of turns depends on data; each counts as one turn."""
  return sum(
    instruction.opcode == "while"
    and program.turns(instruction, computation) is None
    for instruction, computation, _, _ in program.executed()
  )


def unknown_calls(program: Program) -> list[str]:
  """Libraries' functions that run and whose operations are not counted."""
  called = {
    gpu_calls.target(instruction)
    for instruction, _, _, _ in program.executed()
    if gpu_calls.is_library(instruction)
  }
  return sorted(called - gpu_calls.CONVOLUTIONS - gpu_calls.PRODUCTS)


def _products(
  program: Program,
  instruction: Instruction,
  computation: Computation,
  float32_passes: int,
) -> tuple[int, int]:
  """Operations of an instruction or of all within a fusion, and passes."""
  total, passes = 0, 1
  inner = instruction.called.get("calls")
  if instruction.opcode == "fusion" and inner:
    computation = program.computations[inner]
    for part in computation.values():
      more, its_passes = _products(program, part, computation, float32_passes)
      total += more
      passes = max(passes, its_passes)
    return total, passes
  left = right = None
  if instruction.opcode in ("convolution", "dot"):
    left, right = (
      computation[name].results[0] for name in instruction.operands[:2]
    )
  if left and right and instruction.opcode == "convolution":
    pairs = _convolution(instruction, left, right, instruction.results[0])
    total = 2 * pairs
  elif left and instruction.opcode == "dot":
    axes = numbers(_attribute(instruction, "lhs_contracting_dims").strip("{}"))
    contracted = math.prod(left.shape[k] for k in axes)
    total = 2 * instruction.results[0].size * contracted
  elif gpu_calls.is_library(instruction):
    left = computation[instruction.operands[0]].results[0]
    if gpu_calls.target(instruction) in gpu_calls.CONVOLUTIONS:
      arrays = gpu_calls.convolution(instruction, computation)
      total = 2 * _convolution(instruction, *arrays)
    elif gpu_calls.target(instruction) in gpu_calls.PRODUCTS:
      axes = gpu_calls.contracted(instruction)
      contracted = math.prod(left.shape[k] for k in axes)
      total = 2 * instruction.results[0].size * contracted
  precision = instruction.attribute("operand_precision") or ""
  if total and "highest" in precision:
    passes = 6
  elif total and "high" in precision:
    passes = 3
  elif total and left and left.dtype == "f32":
    passes = float32_passes
  return total, passes


def _attribute(instruction: Instruction, name: str) -> str:
  """An attribute that every such instruction has.

  Raises:
    ValueError: this one has not.
  """
  found = instruction.attribute(name)
  if found is None:
    raise ValueError(f"no {name} in {instruction.text[:80]!r}")
  return found


def _convolution(
  instruction: Instruction, left: Array, right: Array, result: Array
) -> int:
  """Multiplications that meet no padding and no hole of a dilation.

  Args:
    instruction: says strides, padding and which axis is which.
    left: what the window walks over.
    right: the window.
    result: what comes of it.
  """
  labels = _attribute(instruction, "dim_labels")
  lhs, rest = labels.split("_")
  rhs, out = rest.split("->")
  found = re.search(r"window=\{([^}]*)\}", instruction.text)
  parts = found[1].split() if found else []
  window: dict[str, str] = dict(part.split("=") for part in parts)
  spatial = [c for c in lhs if c.isdigit()]
  size = [right.shape[rhs.index(c)] for c in spatial]

  def by_axis(name: str, default: int) -> list[int]:
    text = window.get(name)
    if text is None:
      return [default] * len(spatial)
    return [int(n.split("_")[0]) for n in text.split("x")]

  stride, low = by_axis("stride", 1), by_axis("pad", 0)
  lhs_dilate, rhs_dilate = by_axis("lhs_dilate", 1), by_axis("rhs_dilate", 1)
  pairs = 1
  for k, c in enumerate(spatial):
    pairs *= _pairs(
      length=left.shape[lhs.index(c)],
      results=result.shape[out.index(c)],
      size=size[k],
      stride=stride[k],
      low=low[k],
      lhs_dilate=lhs_dilate[k],
      rhs_dilate=rhs_dilate[k],
    )
  batch_groups = int(instruction.attribute("batch_group_count") or 1)
  return (
    pairs
    * (left.shape[lhs.index("b")] // batch_groups)
    * right.shape[rhs.index("i")]
    * right.shape[rhs.index("o")]
  )


@functools.cache
def _pairs(
  *,
  length: int,
  results: int,
  size: int,
  stride: int,
  low: int,
  lhs_dilate: int,
  rhs_dilate: int,
) -> int:
  """Pairs of a result and a weight of a window that meet an element."""
  place = stride * np.arange(results)[:, None] - low
  place = place + rhs_dilate * np.arange(size)
  inside = (place >= 0) & (place <= (length - 1) * lhs_dilate)
  return int(np.sum(inside & (place % lhs_dilate == 0)))


def _moved(
  program: Program, instruction: Instruction, computation: Computation
) -> int:
  """Bytes from and to main memory, of one run."""
  inner = program.computations.get(instruction.called.get("calls", ""), {})
  opcode = instruction.opcode
  if opcode in ("copy-start", "slice-start"):
    source = computation[instruction.operands[0]].results[0]
    moved = instruction.results[1] if opcode == "slice-start" else source
    target = instruction.results[1 if opcode == "slice-start" else 0]
    return moved.padded_bytes * (source.in_main_memory + target.in_main_memory)
  if opcode == "custom-call" and "Bitcast" in instruction.text:
    return 0
  if gpu_calls.is_library(instruction):
    # What comes after the result is where it works.
    read = [computation[name].results for name in instruction.operands]
    return sum(map(_main_bytes, read)) + _main_bytes(instruction.results[:1])
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
