"""Every layer of a backbone under its names here and in PyTorch.

Layers stand in the order in which PyTorch's modules register and run them,
with the names of insightface's arcface_torch (`iresnet.py`, `mobilefacenet.py`,
`vit.py`); those of squeeze and excitation, which it lacks, are face.evoLVe's.
Of the transformer, parameters outside layers come first, as in a `state_dict`.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from jamsface_jax.models.iresnet import IResNet
from jamsface_jax.models.mobilefacenet import MobileFaceNet
from jamsface_jax.models.vit import ViT

# Kinds of layers, and for each its tensors: the name in PyTorch, the collection
# and the name here. A bias is there or not.
CONV, LINEAR, FLAT_LINEAR = "convolution", "linear", "flattening linear"
BATCH_NORM, LAYER_NORM = "batch normalisation", "layer normalisation"
PRELU, PARAMETER = "PReLU", "parameter"
_KERNEL = (("weight", "params", "kernel"), ("bias", "params", "bias"))
_NORM = (("weight", "params", "scale"), ("bias", "params", "bias"))
_TENSORS = {
  CONV: _KERNEL,
  LINEAR: _KERNEL,
  FLAT_LINEAR: _KERNEL,
  BATCH_NORM: (
    *_NORM,
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
  ),
  LAYER_NORM: _NORM,
  PRELU: (("weight", "params", "slope"),),
  PARAMETER: (("", "params", ""),),
}


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer under both names.

  Attributes:
    kind: one of the constants of this file.
    torch: the prefix of its names in PyTorch's `state_dict`.
    flax: its path here, joined by "/".
  """

  kind: str
  torch: str
  flax: str


def layers(model: nn.Module) -> list[Layer]:
  """Lists the layers of a backbone, see the head of this file."""
  match model:
    case IResNet():
      return list(_iresnet(model))
    case MobileFaceNet():
      return list(_mobilefacenet(model))
    case ViT():
      return list(_vit(model))
  raise TypeError(f"{type(model).__name__} has no names in PyTorch")


def to_pytorch(
  model: nn.Module, variables: Mapping, layer_list: list[Layer] | None = None
) -> dict[str, np.ndarray]:
  """Renames and transposes the variables of a backbone to PyTorch's.

  Args:
    model: the backbone.
    variables: `params` and `batch_stats`, arrays or NumPy arrays.
    layer_list: part of `layers(model)`; default: all.

  Returns:
    Arrays by their name in the `state_dict`, in its order, without the
    counters `num_batches_tracked`.
  """
  flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
  channels = _last_channels(model, flat)
  arrays = {}
  for layer in layers(model) if layer_list is None else layer_list:
    for torch, path in _tensors(layer):
      if path in flat:
        array = np.asarray(flat[path])
        arrays[torch] = _transpose(layer.kind, array, channels)
  return arrays


def from_pytorch(
  model: nn.Module, shapes: Mapping, arrays: Mapping[str, np.ndarray]
) -> dict:
  """The inverse of `to_pytorch`.

  Args:
    model: the backbone.
    shapes: its variables as ShapeDtypeStructs.
    arrays: by PyTorch's names; all must be there, in the shapes that
      `pytorch_shapes` says.

  Returns:
    `params` and `batch_stats`, float32.
  """
  flat = flax.traverse_util.flatten_dict(dict(shapes), sep="/")
  channels = _last_channels(model, flat)
  found = {}
  for layer in layers(model):
    for torch, path in _tensors(layer):
      if path in flat:
        array = np.asarray(arrays[torch], np.float32)
        found[path] = np.ascontiguousarray(
          _transpose_back(layer.kind, array, channels)
        )
  return flax.traverse_util.unflatten_dict(found, sep="/")


def pytorch_shapes(
  model: nn.Module, shapes: Mapping
) -> dict[str, tuple[int, ...]]:
  """The shapes of what `to_pytorch` returns.

  Args:
    model: the backbone.
    shapes: its variables as ShapeDtypeStructs.
  """
  # Views of a single zero, which cost nothing however large.
  views = jax.tree.map(lambda s: np.broadcast_to(np.int8(0), s.shape), shapes)
  return {k: a.shape for k, a in to_pytorch(model, views).items()}


def _tensors(layer: Layer) -> Iterator[tuple[str, str]]:
  """The tensors of a layer: name in PyTorch, path here."""
  for torch, collection, name in _TENSORS[layer.kind]:
    yield (
      ".".join(filter(None, (layer.torch, torch))),
      "/".join(filter(None, (collection, layer.flax, name))),
    )


def _last_channels(model: nn.Module, flat: Mapping) -> int:
  """Channels of the map that an IResNet flattens."""
  if isinstance(model, IResNet):
    return flat["params/final_bn/scale"].shape[0]
  return 0


def _transpose(kind: str, array: np.ndarray, channels: int) -> np.ndarray:
  """From the axes here to PyTorch's; vectors stay."""
  if kind == CONV and array.ndim == 4:  # HWIO to OIHW.
    return array.transpose(3, 2, 0, 1)
  if kind == LINEAR and array.ndim == 2:
    return array.T
  if kind == FLAT_LINEAR and array.ndim == 2:
    # (row and column, channel, out) to (out, channel, row and column).
    outputs = array.shape[1]
    array = array.reshape(-1, channels, outputs)
    return array.transpose(2, 1, 0).reshape(outputs, -1)
  return array


def _transpose_back(kind: str, array: np.ndarray, channels: int) -> np.ndarray:
  if kind == CONV and array.ndim == 4:
    return array.transpose(2, 3, 1, 0)
  if kind == LINEAR and array.ndim == 2:
    return array.T
  if kind == FLAT_LINEAR and array.ndim == 2:
    outputs = len(array)
    array = array.reshape(outputs, channels, -1)
    return array.transpose(2, 1, 0).reshape(-1, outputs)
  return array


def _iresnet(model: IResNet) -> Iterator[Layer]:
  yield Layer(CONV, "conv1", "stem_conv")
  yield Layer(BATCH_NORM, "bn1", "stem_bn")
  yield Layer(PRELU, "prelu", "stem_prelu")
  for stage, depth in enumerate(model.stages, start=1):
    for i in range(depth):
      torch, path = f"layer{stage}.{i}", f"stage{stage}_block{i + 1}"
      yield Layer(BATCH_NORM, f"{torch}.bn1", f"{path}/bn1")
      yield Layer(CONV, f"{torch}.conv1", f"{path}/conv1")
      yield Layer(BATCH_NORM, f"{torch}.bn2", f"{path}/bn2")
      yield Layer(PRELU, f"{torch}.prelu", f"{path}/prelu")
      yield Layer(CONV, f"{torch}.conv2", f"{path}/conv2")
      yield Layer(BATCH_NORM, f"{torch}.bn3", f"{path}/bn3")
      if model.squeeze_reduction:
        yield Layer(CONV, f"{torch}.se.fc1", f"{path}/se/fc1")
        yield Layer(CONV, f"{torch}.se.fc2", f"{path}/se/fc2")
      if i == 0:
        yield Layer(CONV, f"{torch}.downsample.0", f"{path}/shortcut_conv")
        yield Layer(BATCH_NORM, f"{torch}.downsample.1", f"{path}/shortcut_bn")
  yield Layer(BATCH_NORM, "bn2", "final_bn")
  yield Layer(FLAT_LINEAR, "fc", "embedding_fc")
  yield Layer(BATCH_NORM, "features", "embedding_bn")


def _mobilefacenet(model: MobileFaceNet) -> Iterator[Layer]:
  def conv_block(torch, path, activation=True):
    yield Layer(CONV, f"{torch}.layers.0", f"{path}/conv")
    yield Layer(BATCH_NORM, f"{torch}.layers.1", f"{path}/bn")
    if activation:
      yield Layer(PRELU, f"{torch}.layers.2", f"{path}/prelu")

  def bottleneck(torch, path):
    yield from conv_block(f"{torch}.layers.0", f"{path}/expand")
    yield from conv_block(f"{torch}.layers.1", f"{path}/depthwise")
    yield from conv_block(f"{torch}.layers.2", f"{path}/project", False)

  yield from conv_block("layers.0", "stem")
  for stage, depth in enumerate(model.stages, start=1):
    if stage > 1:
      yield from bottleneck(f"layers.{2 * stage - 2}", f"stage{stage}_down")
    elif depth == 1:
      yield from conv_block("layers.1", "stage1_conv")
      continue
    for i in range(depth):
      yield from bottleneck(
        f"layers.{2 * stage - 1}.layers.{i}", f"stage{stage}_block{i + 1}"
      )
  yield from conv_block("conv_sep", "last")
  yield from conv_block("features.layers.0", "pool", False)
  yield Layer(LINEAR, "features.layers.2", "embedding_fc")
  yield Layer(BATCH_NORM, "features.layers.3", "output_bn")


def _vit(model: ViT) -> Iterator[Layer]:
  yield Layer(PARAMETER, "pos_embed", "pos_embed")
  yield Layer(PARAMETER, "mask_token", "mask_token")
  yield Layer(CONV, "patch_embed.proj", "patch_embed")
  for i in range(model.stages[0]):
    torch, path = f"blocks.{i}", f"block{i + 1}"
    yield Layer(LAYER_NORM, f"{torch}.norm1", f"{path}/norm1")
    yield Layer(LINEAR, f"{torch}.attn.qkv", f"{path}/attn/qkv")
    yield Layer(LINEAR, f"{torch}.attn.proj", f"{path}/attn/proj")
    yield Layer(LAYER_NORM, f"{torch}.norm2", f"{path}/norm2")
    yield Layer(LINEAR, f"{torch}.mlp.fc1", f"{path}/fc1")
    yield Layer(LINEAR, f"{torch}.mlp.fc2", f"{path}/fc2")
  yield Layer(LAYER_NORM, "norm", "norm")
  for number in (1, 2):
    torch = 2 * number - 2
    yield Layer(LINEAR, f"feature.{torch}", f"feature{number}_fc")
    yield Layer(BATCH_NORM, f"feature.{torch + 1}", f"feature{number}_bn")
