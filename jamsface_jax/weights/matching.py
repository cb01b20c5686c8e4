"""Which array of a file belongs to which parameter."""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from jamsface_jax.weights.onnx_file import OnnxFile, OnnxLayer
from jamsface_jax.weights.pytorch_names import (
  BATCH_NORM,
  CONV,
  FLAT_LINEAR,
  LINEAR,
  Layer,
  layers,
)
from jamsface_jax.weights.weight_files import WeightFile

# What wrappers put before the names of a network.
PREFIXES = ("module.", "backbone.", "model.", "net.", "_orig_mod.")
HEADS = ("head.",)  # Of trainers that keep classes beside a network.
_LISTED = 2  # Names in a message, of each kind.


class MisfitError(Exception):
  """A file does not fit a network; says what does not, as a sentence begins."""


def match(
  what: str,
  file: WeightFile | OnnxFile,
  model: nn.Module,
  expected: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, np.ndarray], str]:
  """Finds the array of each parameter in a file.

  Args:
    what: the start of a message.
    file: what was read.
    model: the backbone.
    expected: shapes by PyTorch's names, of `pytorch_shapes`.

  Returns:
    The arrays by PyTorch's names, and what they were found by: "names",
    "layers" or "order".

  Raises:
    MisfitError: what does not fit.
  """
  arrays = file.arrays
  if isinstance(file, OnnxFile) and "mask_token" in expected:
    # Training's alone: no graph has it.
    token = np.zeros(expected["mask_token"], np.float32)
    arrays = arrays | {"mask_token": token}
  named = match_names(arrays, expected)
  if named is not None:
    return named, "names"
  if isinstance(file, OnnxFile):
    return match_layers(what, file, model, expected), "layers"
  return match_order(what, arrays, expected, ordered=file.ordered), "order"


def match_names(
  arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
  """Takes the arrays by the names of PyTorch's network.

  Args:
    arrays: what the file holds, by its names.
    expected: shapes by PyTorch's names.

  Returns:
    The expected arrays, in the expected order; None if one is missing, is of
    another shape, or others than counters are left over.
  """
  renamed = {}
  for name, array in arrays.items():
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
      name = name.removeprefix(prefix)
    renamed[name] = array
  if not any(name.startswith(HEADS) for name in expected):
    renamed = {k: a for k, a in renamed.items() if not k.startswith(HEADS)}
  renamed = _with_affine(renamed, expected)
  found = {}
  for name, shape in expected.items():
    if name not in renamed:
      return None
    array = renamed[name]
    if not _fits(array.shape, shape):
      return None
    found[name] = array.reshape(shape)
  extra = [
    name
    for name, array in renamed.items()
    if name not in expected and array.dtype.kind not in "iub" and array.ndim
  ]
  return None if extra else found


def _fits(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  """Whether an array has a shape, perhaps with axes of 1 after it.

  ONNX keeps a PReLU's slopes as (C, 1, 1), and a linear layer may be a
  convolution of 1x1.
  """
  return given in (wanted, (*wanted, 1, 1))


def _with_affine(
  arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Adds scale and bias of normalisations that learn none (affine=False)."""
  added = {}
  for name, shape in expected.items():
    layer, _, part = name.rpartition(".")
    plain = f"{layer}.weight" not in arrays and f"{layer}.bias" not in arrays
    if plain and f"{layer}.running_var" in arrays and part in _AFFINE:
      added[name] = np.full(shape, _AFFINE[part], np.float32)
  return {**arrays, **added}


_AFFINE = {"weight": 1, "bias": 0}


def match_order(
  what: str,
  arrays: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  *,
  ordered: bool,
) -> dict[str, np.ndarray]:
  """Takes the arrays in their order.

  Args:
    what: the start of a message.
    arrays: what the file holds; whole numbers, such as counters, are skipped.
    expected: shapes by PyTorch's names.
    ordered: whether their order means anything.

  Returns:
    The expected arrays by PyTorch's names.

  Raises:
    MisfitError: a list of what does not fit.
  """
  given = {
    name: array
    for name, array in arrays.items()
    if array.dtype.kind not in "iub" and array.ndim
    if not name.startswith(HEADS)
  }
  wanted = list(expected.items())
  if ordered:
    values = list(given.values())
    if len(values) == len(wanted) - 2:  # The last learns no scale and bias.
      size = wanted[-1][1]
      values[-2:-2] = np.ones(size, np.float32), np.zeros(size, np.float32)
    if len(values) == len(wanted) and all(
      _fits(array.shape, shape)
      for array, (_, shape) in zip(values, wanted, strict=True)
    ):
      return {
        name: array.reshape(shape)
        for (name, shape), array in zip(wanted, values, strict=True)
      }
  missing = [f"{n} {s}" for n, s in wanted if n not in given]
  extra = [f"{n} {a.shape}" for n, a in given.items() if n not in expected]
  other = [
    f"{n} {given[n].shape} instead of {s}"
    for n, s in wanted
    if n in given and given[n].shape != s
  ]
  if len(missing) == len(wanted):  # No name is known: the order decides.
    pairs = zip(wanted, given.items(), strict=False)
    other = [
      f"{n} {a.shape} instead of {name} {shape}"
      for (name, shape), (n, a) in pairs
      if a.shape != shape
    ]
    missing = [f"{n} {s}" for n, s in wanted[len(given) :]]
    extra = [f"{n} {a.shape}" for n, a in list(given.items())[len(wanted) :]]
    if not ordered and not other:
      other = ["names that are not insightface's, in a file without order"]
  raise _misfit(what, missing, extra, other)


def match_layers(
  what: str,
  file: OnnxFile,
  model: nn.Module,
  expected: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
  """Takes the layers of an ONNX graph in their order.

  Exporters fold a batch normalisation into the convolution before it: such a
  one becomes the bias of one that does nothing else.

  Args:
    what: the start of a message.
    file: the graph.
    model: the backbone.
    expected: shapes by PyTorch's names.

  Returns:
    The expected arrays by PyTorch's names.

  Raises:
    MisfitError: what does not fit.
  """
  if file.layers is None:
    raise MisfitError(f"{what}: {file.obstacle} has no place in such a network")
  found: dict[str, np.ndarray] = {}
  waiting = list(file.layers)
  folded: np.ndarray | None = None
  for layer in layers(model):
    names = [n for n in expected if n.rpartition(".")[0] == layer.torch]
    last_is_linear = found and not waiting and layer.kind == BATCH_NORM
    if layer.kind == BATCH_NORM and (folded is not None or last_is_linear):
      given = _plain_batch_norm(expected[names[0]], folded)
      folded = None
    else:
      if not waiting:
        raise _misfit(what, [layer.torch], [], [])
      given = _take_layer(what, layer, waiting.pop(0))
      if f"{layer.torch}.bias" not in expected:
        folded = given.pop("bias", None)
      elif layer.kind in (LINEAR, FLAT_LINEAR) and "bias" not in given:
        given["bias"] = np.zeros(expected[f"{layer.torch}.bias"], np.float32)
    for name in names:
      array = given.get(name.rpartition(".")[2])
      if array is None or not _fits(array.shape, expected[name]):
        shape = "nothing" if array is None else array.shape
        other = f"{name} {shape} instead of {expected[name]}"
        raise _misfit(what, [], [], [other])
      found[name] = array.reshape(expected[name])
  if waiting:
    extra = [f"{one.kind} {one.arrays['weight'].shape}" for one in waiting]
    raise _misfit(what, [], extra, [])
  return found


def _take_layer(
  what: str, layer: Layer, given: OnnxLayer
) -> dict[str, np.ndarray]:
  """The arrays of a graph's layer that is to be this one.

  Raises:
    MisfitError: it is of another kind.
  """
  kind = LINEAR if layer.kind == FLAT_LINEAR else layer.kind
  # A linear layer may be a convolution of 1x1.
  if given.kind != kind and (kind, given.kind) != (LINEAR, CONV):
    raise _misfit(what, [], [], [f"a {given.kind} instead of {layer.torch}"])
  return dict(given.arrays)


def _plain_batch_norm(
  shape: tuple[int, ...], bias: np.ndarray | None
) -> dict[str, np.ndarray]:
  """A batch normalisation that adds a bias and does nothing else."""
  return {
    "weight": np.ones(shape, np.float32),
    "bias": np.zeros(shape, np.float32) if bias is None else bias,
    "running_mean": np.zeros(shape, np.float32),
    # With an epsilon of 1e-5 the factor is exactly 1.
    "running_var": np.full(shape, 1 - 1e-5, np.float32),
  }


def _misfit(
  what: str, missing: list[str], extra: list[str], other: list[str]
) -> MisfitError:
  """An error with lists of what does not fit."""
  parts = []
  for kind, items in (
    ("missing", missing),
    ("left over", extra),
    ("different", other),
  ):
    if items:
      more = len(items) - _LISTED
      shown = ", ".join(items[:_LISTED])
      parts.append(
        f"{kind}: {shown}" + (f" and {more} more" if more > 0 else "")
      )
  return MisfitError(f"{what} ({'; '.join(parts)})")
