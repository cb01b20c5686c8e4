"""The layers of a backbone, and the names that they have in PyTorch.

A network is described once, by its Flax module: its layers are those that the
module makes, in the order in which it makes them. What the module cannot say is
here: the names in published files, and where their order is another. Names are
those of insightface's arcface_torch (`iresnet.py`, `mobilefacenet.py`,
`vit.py`), of squeeze and excitation, which it lacks, face.evoLVe's, and of
EdgeNeXt timm's and EdgeFace's.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from jamsface_jax.models import init_backbone
from jamsface_jax.models.edgenext import EdgeNeXt
from jamsface_jax.models.fmobilenet import FMobileNet
from jamsface_jax.models.iresnet import IResNet
from jamsface_jax.models.mobilefacenet import MobileFaceNet
from jamsface_jax.models.vit import ViT

# Kinds of layers, and for each its tensors: the name in PyTorch, the collection
# and the name here. A bias is there or not.
CONV, LINEAR, FLAT_LINEAR = "convolution", "linear", "flattening linear"
BATCH_NORM, LAYER_NORM = "batch normalisation", "layer normalisation"
PRELU, FACTOR, PARAMETER = "PReLU", "factor", "parameter"
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
  FACTOR: (("", "params", "factor"),),
  PARAMETER: (("", "params", ""),),
}
_SIZE = 32  # Of the images that layers are listed with: any will do.


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


def layers(model: nn.Module) -> tuple[Layer, ...]:
  """Lists the layers of a backbone in the order of PyTorch's modules.

  It is the order in which they run, shortcuts after the path that they are
  beside; parameters outside of layers come first, as in a `state_dict`.
  """
  # A frozen dataclass has a hash, of which nn.Module's annotations do not know.
  return _layers(model)  # ty: ignore[invalid-argument-type]


@functools.cache  # A deep network takes seconds.
def _layers(model: nn.Module) -> tuple[Layer, ...]:
  # The order is lost in what leaves a transformation, whose trees are sorted:
  # it is taken inside, of blocks that are none.
  model = model.clone(remat=False)
  shapes: dict[str, Any] = {}

  def init(key: jax.Array) -> None:
    variables = init_backbone(key, model, _SIZE)
    shapes.update(flax.traverse_util.flatten_dict(variables, sep="/"))

  jax.eval_shape(init, jax.random.key(0))
  shapes = {name: array.shape for name, array in shapes.items()}
  found: dict[str, Layer] = {}
  for name in shapes:
    collection, _, rest = name.partition("/")
    path, _, last = rest.rpartition("/")
    if collection == "params":
      path = path or last
      kind = _kind(model, path, shapes)
      found.setdefault(path, Layer(kind, torch_name(model, path), path))
  blocks = list(dict.fromkeys(path.partition("/")[0] for path in found))

  def place(layer: Layer) -> tuple[bool, int, bool]:
    block, _, rest = layer.flax.partition("/")
    is_layer = layer.kind != PARAMETER
    return is_layer, blocks.index(block), rest.startswith("shortcut")

  return tuple(sorted(found.values(), key=place))


def torch_name(model: nn.Module, path: str) -> str:
  """What a module of a backbone is called in PyTorch.

  Args:
    model: the backbone.
    path: the module's path, joined by "/".

  Returns:
    The prefix of the names of its tensors, joined by ".".
  """
  match model:
    case IResNet(kind="arcface"):
      rename = _iresnet
    case IResNet():
      return _ir(model, path)
    case MobileFaceNet():
      rename = _mobilefacenet
    case ViT():
      rename = _vit
    case EdgeNeXt():
      return _edgenext(path)
    case FMobileNet():
      return path.replace("/", ".")  # No published code is in PyTorch.
    case _:
      raise TypeError(f"{type(model).__name__} has no names in PyTorch")
  return ".".join(map(rename, path.split("/")))


def to_pytorch(
  model: nn.Module, variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Renames and transposes the variables of a backbone to PyTorch's.

  Args:
    model: the backbone.
    variables: `params` and `batch_stats`, arrays or NumPy arrays.

  Returns:
    Arrays by their name in the `state_dict`, in its order, without the
    counters `num_batches_tracked`.
  """
  flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
  channels = _last_channels(model, flat)
  return {
    torch: _transpose(layer.kind, np.asarray(flat[path]), channels)
    for layer in layers(model)
    for torch, path in _tensors(layer)
    if path in flat
  }


def from_pytorch(
  model: nn.Module,
  shapes: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
) -> dict[str, Any]:
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
  return {
    "batch_stats": {},  # Of a network without batch normalisation.
    **flax.traverse_util.unflatten_dict(found, sep="/"),
  }


def pytorch_shapes(
  model: nn.Module, shapes: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
  """The shapes of what `to_pytorch` returns.

  Args:
    model: the backbone.
    shapes: its variables as ShapeDtypeStructs.
  """
  # Views of a single zero, which cost nothing however large.
  views = jax.tree.map(lambda s: np.broadcast_to(np.int8(0), s.shape), shapes)
  return {k: a.shape for k, a in to_pytorch(model, views).items()}


def _kind(
  model: nn.Module, path: str, shapes: Mapping[str, tuple[int, ...]]
) -> str:
  """The kind of a layer, by the names and shapes of its variables."""
  if f"batch_stats/{path}/mean" in shapes:
    return BATCH_NORM
  if f"params/{path}/scale" in shapes:
    return LAYER_NORM
  if f"params/{path}/slope" in shapes:
    return PRELU
  if f"params/{path}/factor" in shapes:
    return FACTOR
  kernel = shapes.get(f"params/{path}/kernel")
  if kernel is None:
    return PARAMETER
  if len(kernel) == 4:
    return CONV
  # It reads a map of several rows and columns, whose axes PyTorch has in
  # another order.
  flattens = isinstance(model, IResNet | FMobileNet) and path == "embedding_fc"
  return FLAT_LINEAR if flattens else LINEAR


def _tensors(layer: Layer) -> Iterator[tuple[str, str]]:
  """The tensors of a layer: name in PyTorch, path here."""
  for torch, collection, name in _TENSORS[layer.kind]:
    yield (
      ".".join(filter(None, (layer.torch, torch))),
      "/".join(filter(None, (collection, layer.flax, name))),
    )


def _last_channels(model: nn.Module, flat: Mapping[str, Any]) -> int:
  """Channels of the map that a network flattens."""
  if isinstance(model, IResNet | FMobileNet):
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
  """From PyTorch's axes to those here; vectors stay."""
  if kind == CONV and array.ndim == 4:
    return array.transpose(2, 3, 1, 0)
  if kind == LINEAR and array.ndim == 2:
    return array.T
  if kind == FLAT_LINEAR and array.ndim == 2:
    outputs = len(array)
    array = array.reshape(outputs, channels, -1)
    return array.transpose(2, 1, 0).reshape(-1, outputs)
  return array


def _iresnet(name: str) -> str:
  """What a module is called within the one that holds it; so the two below."""
  if block := re.fullmatch(r"stage(\d+)_block(\d+)", name):
    return f"layer{block[1]}.{int(block[2]) - 1}"
  names = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "stem_prelu": "prelu",
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
    "final_bn": "bn2",
    "embedding_fc": "fc",
    "embedding_bn": "features",
  }
  return names.get(name, name)


def _ir(model: IResNet, path: str) -> str:
  """What AdaFace, CVLface, TFace and face.evoLVe call a module."""
  outer, _, inner = path.partition("/")
  block = re.fullmatch(r"stage(\d+)_block(\d+)", outer)
  if not block:
    names = {
      "stem_conv": "input_layer.0",
      "stem_bn": "input_layer.1",
      "stem_prelu": "input_layer.2",
      "final_bn": "output_layer.0",
      "embedding_fc": "output_layer.3",
      "embedding_bn": "output_layer.4",
    }
    return names.get(outer, outer)
  number = sum(model.stages[: int(block[1]) - 1]) + int(block[2]) - 1
  layers = ["bn1", "conv1", "bn2", "prelu", "conv2", "bn3", "se"]
  if model.kind == "evolve":
    layers.remove("bn2")
  names = {name: f"res_layer.{k}" for k, name in enumerate(layers)}
  if model.kind == "ir":
    names["se"] = "res_layer.se_block"
  names |= {
    "shortcut_conv": "shortcut_layer.0",
    "shortcut_bn": "shortcut_layer.1",
  }
  layer, _, part = inner.partition("/")
  return ".".join(filter(None, (f"body.{number}", names[layer], part)))


def _mobilefacenet(name: str) -> str:
  if block := re.fullmatch(r"stage(\d+)_block(\d+)", name):
    return f"layers.{2 * int(block[1]) - 1}.layers.{int(block[2]) - 1}"
  if halving := re.fullmatch(r"stage(\d+)_down", name):
    return f"layers.{2 * int(halving[1]) - 2}"
  names = {
    "stem": "layers.0",
    "stage1_conv": "layers.1",
    "stage1_point": "layers.1.point",  # No published code has both.
    "entry": "entry",
    "last": "conv_sep",
    "pool": "features.layers.0",
    "embedding_fc": "features.layers.2",
    "output_bn": "features.layers.3",
    # Within a bottleneck, and within a block of one convolution.
    "expand": "layers.0",
    "depthwise": "layers.1",
    "project": "layers.2",
    "conv": "layers.0",
    "bn": "layers.1",
    "prelu": "layers.2",
  }
  return names[name]


def _vit(name: str) -> str:
  if block := re.fullmatch(r"block(\d+)", name):
    return f"blocks.{int(block[1]) - 1}"
  names = {
    "patch_embed": "patch_embed.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "feature1_fc": "feature.0",
    "feature1_bn": "feature.1",
    "feature2_fc": "feature.2",
    "feature2_bn": "feature.3",
  }
  return names.get(name, name)


def _edgenext(path: str) -> str:
  """What timm and EdgeFace call a module."""
  outer, _, inner = path.partition("/")
  if block := re.fullmatch(r"stage(\d+)_block(\d+)", outer):
    stage, number = int(block[1]) - 1, int(block[2]) - 1
    outer = f"stages.{stage}.blocks.{number}"
  elif halving := re.fullmatch(r"stage([2-9])_(norm|conv)", outer):
    part = ("norm", "conv").index(halving[2])
    outer = f"stages.{int(halving[1]) - 1}.downsample.{part}"
  names = {
    "stage1_conv": "stem.0",
    "stem_norm": "stem.1",
    "final_norm": "head.norm",
    "embedding_fc": "head.fc",
  }
  inner = inner.replace("/", ".")
  inner = re.sub(r"^fc(\d)", r"mlp.fc\1", inner)
  inner = re.sub(
    r"^convs\.conv(\d+)", lambda found: f"convs.{int(found[1]) - 1}", inner
  )
  return ".".join(filter(None, (names.get(outer, outer), inner)))
