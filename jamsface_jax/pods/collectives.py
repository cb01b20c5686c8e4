"""The collectives of a compiled program: kind, bytes, mesh axis."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from jamsface_jax.pods.program import (
  FREE,
  Computation,
  Instruction,
  Program,
  numbers,
)

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of message that a program sends.

  Attributes:
    kind: one of `COLLECTIVES`.
    axis: the mesh axis that it runs along, "data", "model" or "data+model";
      "other" if it is neither.
    group: how many devices take part in one.
    dtype: XLA's name of the largest array's.
    bytes: size of all arrays together on one device, the larger of input and
      result.
    arrays: how many are sent as one.
    runs: how often a step sends it.
    looped: whether a loop is around it.
    meanwhile: instructions of other work that stand between its start and its
      end; 0: the device waits for it.
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
  meanwhile: int
  origin: str


def find_collectives(
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
        meanwhile=_meanwhile(instruction, computation),
        origin=origin[1] if origin else "",
      )
    )
  return found


def _meanwhile(start: Instruction, computation: Computation) -> int:
  """How many instructions of other work a device runs before it must wait."""
  if not start.opcode.endswith("-start") or '"is_sync":true' in start.text:
    return 0
  count, begun = 0, False
  for other in computation.values():
    if other is start:
      begun = True
    elif begun and start.name in other.operands:
      return count
    elif begun and other.opcode not in FREE:
      count += other.opcode.removesuffix("-start") not in COLLECTIVES
  return 0


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
    shape, dims = (numbers(iota[k]) for k in (1, 2))
    ids = np.arange(math.prod(dims)).reshape(dims)
    if iota[3]:
      ids = ids.transpose(numbers(iota[3]))
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
    ends = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
    return np.array([[int(a), int(b)] for a, b in ends if a != b][:1])
  return None


def _groups_of_mesh(axes: str, order: str | None, wanted: str) -> np.ndarray:
  """Devices of each group along the wanted axes of a mesh, in XLA's words."""
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
    ids = ids.reshape(numbers(iota[1]))
    if iota[2]:
      ids = ids.transpose(numbers(iota[2]))
  elif order:
    ids = np.array(numbers(order))
  ids = ids.reshape(dims).transpose(kept + along)
  return ids.reshape(-1, math.prod(dims[k] for k in along))
