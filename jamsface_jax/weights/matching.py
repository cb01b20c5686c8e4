"""Which array of a file belongs to which parameter."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import numpy as np

from jamsface_jax.models.vit import FEATURE_EPSILON, ViT
from jamsface_jax.weights.onnx_file import OnnxFile, OnnxLayer
from jamsface_jax.weights.pytorch_names import (
  BATCH_NORM,
  CONV,
  FLAT_LINEAR,
  LINEAR,
  Layer,
  layers,
)
from jamsface_jax.weights.state_dict import (
  NORM,
  arrangement,
  has_modules,
  modules,
)
from jamsface_jax.weights.trainers import WRAPPERS
from jamsface_jax.weights.weight_files import WeightFile

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
    "names and products", "layers" or "order".

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
    epsilon = FEATURE_EPSILON if isinstance(model, ViT) else 1e-5
    named = match_products(arrays, file.products, expected, epsilon)
    if named is not None:
      return named, "names and products"
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
  renamed = _with_affine(arrays, expected)
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


def match_products(
  arrays: Mapping[str, np.ndarray],
  products: Sequence[str],
  expected: Mapping[str, tuple[int, ...]],
  epsilon: float = 1e-5,
) -> dict[str, np.ndarray] | None:
  """Takes the arrays of a graph that PyTorch's exporters wrote.

  They leave all their names, with wrappers' before them, but the matrices of
  linear layers on tokens: those are transposed and called by numbers. A batch
  normalisation may be folded into the linear layer before it. Whatever else is
  constant in the graph is not looked at: what is found here has to compute the
  same as the graph.

  Args:
    arrays: the constants, by name.
    products: the names of the matrices in products, in the order of the graph.
    expected: shapes by PyTorch's names, in the order in which layers run.
    epsilon: of the network's batch normalisations.

  Returns:
    The expected arrays, in the expected order; None if one is missing or of
    another shape.
  """
  found: dict[str, np.ndarray] = {}
  renamed = set()
  for name, array in arrays.items():
    own = name
    while own not in expected and own.partition(".")[0] in WRAPPERS:
      own = own.partition(".")[2]
    if own in expected:
      found[own] = array
      renamed.add(name)
  found |= _folded_norms(arrays, found, expected, epsilon)
  missing = [name for name in expected if name not in found]
  unnamed = [name for name in products if name not in renamed]
  if len(missing) != len(unnamed):
    return None
  for name, product in zip(missing, unnamed, strict=True):
    found[name] = arrays[product].T
  if not all(_fits(found[n].shape, shape) for n, shape in expected.items()):
    return None
  return {n: found[n].reshape(shape) for n, shape in expected.items()}


def _folded_norms(
  arrays: Mapping[str, np.ndarray],
  found: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  epsilon: float,
) -> dict[str, np.ndarray]:
  """Normalisations of which a graph has nothing but the bias of a folded one.

  That is called `weight_bias` beside the `weight` it was folded into.
  """
  added, kernel = {}, ""
  for name, module in modules(expected).items():
    if module.kind == NORM and not any(n in found for n in module.tensors):
      biases = [a for n, a in arrays.items() if n.endswith(f"{kernel}_bias")]
      if kernel and len(biases) == 1:
        shape = expected[module.tensors["weight"]]
        norm = _plain_batch_norm(shape, biases[0], epsilon)
        added |= {f"{name}.{part}": array for part, array in norm.items()}
    kernel = module.tensors.get("weight", "")
  return added


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
  }
  wanted = list(expected.items())
  if ordered:
    # Where names say what is a weight and what a bias, their order does not.
    say = has_modules(given)
    found = (_match_modules if say else _match_sequence)(given, expected)
    if found is not None:
      return found
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


def _match_sequence(
  given: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
  """Takes arrays one after the other; None if a shape is another."""
  values, wanted = list(given.values()), list(expected.items())
  if len(values) == len(wanted) - 2:  # The last learns no scale and bias.
    size = wanted[-1][1]
    values[-2:-2] = np.ones(size, np.float32), np.zeros(size, np.float32)
  if len(values) != len(wanted):
    return None
  pairs = list(zip(wanted, values, strict=True))
  if not all(_fits(array.shape, shape) for (_, shape), array in pairs):
    return None
  return {name: array.reshape(shape) for (name, shape), array in pairs}


def _match_modules(
  given: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
  """Takes modules of each kind one after the other.

  Authors make the convolutions of a block and then its normalisations, or each
  after the other, and the parts of a network in any order: see
  `state_dict.arrangement`. A bias before a normalisation, which the network
  here does without, goes into that one's mean.

  Returns:
    The expected arrays by PyTorch's names; None if they do not fit.
  """
  wanted = modules(expected)
  shapes = {name: array.shape for name, array in given.items()}
  order = arrangement(shapes, expected)
  if order is None:
    return None
  taken = _taken({name: given[name] for name in order}, expected)
  if taken is None:
    return None
  found: dict[str, np.ndarray] = {}
  names = list(wanted)
  for name, after in zip(names, [*names[1:], ""], strict=True):
    if set(taken[name]) - set(wanted[name].tensors):
      norm = wanted.get(after, wanted[name]).kind == NORM
      if not norm or not _move_bias(taken[name], taken[after]):
        return None
    for part, full in wanted[name].tensors.items():
      array, shape = taken[name].get(part), expected[full]
      if part in _AFFINE and wanted[name].kind == NORM:
        if not set(_AFFINE) & set(taken[name]):  # It learns neither.
          array = np.full(shape, _AFFINE[part], np.float32)
      if array is None or not _fits(array.shape, shape):
        return None
      found[full] = array.reshape(shape)
  return {name: found[name] for name in expected}


def _taken(
  given: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, np.ndarray]] | None:
  """The arrays of each module by the last part of their names, None: others."""
  wanted = modules(expected)
  theirs = modules({name: array.shape for name, array in given.items()})
  if len(theirs) != len(wanted):
    return None
  taken = {}
  for kind in {one.kind for one in wanted.values()}:
    names = [name for name, one in wanted.items() if one.kind == kind]
    found = [one for one in theirs.values() if one.kind == kind]
    if len(names) != len(found):
      return None
    for name, one in zip(names, found, strict=True):
      taken[name] = {part: given[full] for part, full in one.tensors.items()}
  return taken


def _move_bias(
  kernel: dict[str, np.ndarray], norm: dict[str, np.ndarray]
) -> bool:
  """Takes the bias of a kernel off the mean of what comes after it."""
  bias, mean = kernel.get("bias"), norm.get("running_mean")
  if bias is None or mean is None or bias.shape != mean.shape:
    return False
  norm["running_mean"] = mean - bias
  return True


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
  shape: tuple[int, ...], bias: np.ndarray | None, epsilon: float = 1e-5
) -> dict[str, np.ndarray]:
  """A batch normalisation that adds a bias and does nothing else."""
  return {
    "weight": np.ones(shape, np.float32),
    "bias": np.zeros(shape, np.float32) if bias is None else bias,
    "running_mean": np.zeros(shape, np.float32),
    # The factor is exactly 1.
    "running_var": np.full(shape, 1 - epsilon, np.float32),
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
