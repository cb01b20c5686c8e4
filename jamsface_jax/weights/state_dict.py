"""The modules of a PyTorch `state_dict`, told by the names of its tensors."""

import dataclasses
from collections.abc import Iterable, Mapping

# What PyTorch's modules call their tensors.
PARTS = ("weight", "bias", "running_mean", "running_var")
# Kinds of modules, by what tensors there are. A lone vector is a PReLU's.
KERNEL, NORM, SCALE, SLOPES, SINGLE = (
  "kernel",
  "normalisation with statistics",
  "scale and bias",
  "slopes",
  "single tensor",
)


@dataclasses.dataclass(frozen=True)
class Module:
  """Tensors that belong together.

  Attributes:
    kind: one of the constants of this file.
    tensors: their full names, by the last part of those; the part of a single
      tensor is "".
  """

  kind: str
  tensors: dict[str, str]


def has_modules(names: Iterable[str]) -> bool:
  """Whether names say what is a weight and what a bias."""
  return all(name.rpartition(".")[2] in PARTS for name in names)


def modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Module]:
  """Finds the modules, in the order of their first tensors.

  Args:
    shapes: of the tensors, by their names.

  Returns:
    The modules by their names.
  """
  tensors: dict[str, dict[str, str]] = {}
  for name in shapes:
    module, _, part = name.rpartition(".")
    if part not in PARTS:
      module, part = name, ""
    tensors.setdefault(module, {})[part] = name
  return {
    module: Module(_kind(parts, shapes), parts)
    for module, parts in tensors.items()
  }


def _kind(
  parts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> str:
  if "" in parts:
    return SINGLE
  if "running_mean" in parts or "running_var" in parts:
    return NORM
  if "weight" not in parts:
    return SCALE
  shape = shapes[parts["weight"]]
  if len(shape) > 1 and shape[1:] != (1, 1):  # Those may be of a PReLU.
    return KERNEL
  return SCALE if "bias" in parts else SLOPES


def arrangement(
  given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str] | None:
  """The order of parts in which tensors fit those of a network.

  A network is made part by part (`conv1`, `features`, `bn`), not always in the
  order in which the parts run. Within a part, only the order of modules of one
  kind counts.

  Args:
    given: shapes of the tensors of a file, by their names.
    expected: shapes of those of the network, in the order in which it runs.

  Returns:
    The names of the file's in such an order: its own if that fits; None if none
    does, or more than one.
  """
  parts: dict[str, list[str]] = {}
  for name in given:
    parts.setdefault(name.partition(".")[0], []).append(name)
  wanted = _sizes(expected)
  own = list(given)
  if _begins(_sizes(given), wanted):
    return own
  if len(parts) > _MOST_PARTS:
    return None
  sizes = {
    part: _sizes({name: given[name] for name in names})
    for part, names in parts.items()
  }
  # By what belongs together: a part with a kernel alone may stand on either
  # side of one with a normalisation alone.
  found: dict[tuple[str, ...], list[str]] = {}
  waiting: list[list[str]] = [[]]
  while waiting and len(found) < 2:
    placed = waiting.pop()
    if len(placed) == len(parts):
      names = [name for part in placed for name in parts[part]]
      found.setdefault(_by_kind(names, given), names)
      continue
    for part in parts.keys() - set(placed):
      row = [*placed, part]
      together = {
        kind: [size for part in row for size in sizes[part].get(kind, [])]
        for kind in wanted
      }
      if _begins(together, wanted):
        waiting.append(row)
  return next(iter(found.values())) if len(found) == 1 else None


_MOST_PARTS = 16  # As many can be in many orders.
_Sizes = dict[str, list[tuple[int, ...]]]


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> _Sizes:
  """The shapes of modules by their kind, in order, without last axes of 1."""
  found: _Sizes = {}
  for module in modules(shapes).values():
    names = module.tensors
    shape = shapes[next(names[p] for p in _TELLING if p in names)]
    shape = shape[:-2] if shape[-2:] == (1, 1) else shape
    found.setdefault(module.kind, []).append(shape)
  return found


def _by_kind(
  names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
  """The modules of so ordered tensors, those of a kind together."""
  found = modules({name: shapes[name] for name in names})
  return tuple(sorted(found, key=lambda module: found[module].kind))


_TELLING = ("weight", "running_mean", "running_var", "bias", "")


def _begins(some: _Sizes, all_: _Sizes) -> bool:
  """Whether the one list begins the other, for each kind."""
  return all(
    sizes == all_.get(kind, [])[: len(sizes)] for kind, sizes in some.items()
  )
