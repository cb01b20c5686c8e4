"""What trainers keep around a network in a file of weights."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from jamsface_jax.weights.onnx_file import OnnxFile
from jamsface_jax.weights.state_dict import KERNEL, SINGLE, modules
from jamsface_jax.weights.weight_files import WeightFile

# What wrappers put before the names of a network; what lies beside such names
# is no part of it.
WRAPPERS = (
  "_orig_mod",
  "module",
  "backbone",
  "encoder",
  "feature_extractor",
  "model",
  "net",
  "network",
)
# What lies beside a network without a wrapper: classes, and losses with arrays.
BESIDE = (
  "head",
  "classifier",
  "margin",
  "product",
  "metric_fc",
  "arcface",
  "partial_fc",
  "module_partial_fc",
  "loss",
  "criterion",
  "kernel",
)

Arrays = Mapping[str, np.ndarray]


def networks(
  file: WeightFile | OnnxFile,
) -> Iterator[WeightFile | OnnxFile]:
  """Yields what may be the network in a file, the likeliest first.

  Args:
    file: what was read; a graph is a network as it is.
  """
  if isinstance(file, OnnxFile):
    yield file
    return
  whole = _unwrapped(file.arrays)
  bare = _without_beside(whole)
  forms = [bare]
  if (less := _without_classes(bare)) is not None:
    forms.append(less)
  # Its authors may have called a part of the network like that.
  for arrays in (whole, file.arrays):
    if all(list(arrays) != list(form) for form in forms):
      forms.append(dict(arrays))
  for arrays in forms:
    yield dataclasses.replace(file, arrays=arrays)


def _unwrapped(arrays: Arrays) -> dict[str, np.ndarray]:
  """Without the names of wrappers, and without what is beside those names."""
  found = dict(arrays)
  while True:
    starts = {name.partition(".")[0] for name in found if "." in name}
    outer = next((word for word in WRAPPERS if word in starts), None)
    if outer is None:
      break
    found = {
      name.removeprefix(f"{outer}."): array
      for name, array in found.items()
      if name.startswith(f"{outer}.")
    }
  return found


def _without_beside(arrays: Arrays) -> dict[str, np.ndarray]:
  """Without what `BESIDE` names, unless that is all."""
  less = {
    name: array
    for name, array in arrays.items()
    if name.partition(".")[0] not in BESIDE
  }
  return less or dict(arrays)


def _without_classes(arrays: Arrays) -> dict[str, np.ndarray] | None:
  """Without a last matrix, of classes; None: there is none."""
  arrays = {n: a for n, a in arrays.items() if a.ndim and a.dtype.kind != "i"}
  found = modules({name: array.shape for name, array in arrays.items()})
  matrices = [
    [arrays[name] for name in one.tensors.values() if arrays[name].ndim > 1]
    for one in found.values()
    if one.kind in (KERNEL, SINGLE)
  ]
  if len(matrices) < 2 or not matrices[-1] or not matrices[-2]:
    return None
  *_, last = found.values()
  shape = matrices[-1][0].shape
  if last.kind not in (KERNEL, SINGLE) or len(shape) != 2:
    return None
  if len(matrices[-2][0]) not in shape:
    return None
  gone = set(last.tensors.values())
  return {name: array for name, array in arrays.items() if name not in gone}
