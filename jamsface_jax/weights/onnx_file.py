"""Backbones as ONNX graphs: written, run, and read layer by layer.

A graph is written node by node, with PyTorch's names and axes, so it holds what
the field's runtimes know how to fuse and nothing else. Needs the packages of
the extra `onnx`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.models.iresnet import IResNet
from jamsface_jax.models.mobilefacenet import MobileFaceNet
from jamsface_jax.models.vit import HEADS, PATCH, ViT
from jamsface_jax.weights.pytorch_names import BATCH_NORM, CONV, LINEAR, PRELU

OPSET = 17  # The oldest with layer normalisation.
IR_VERSION = 8  # Of the same time, for runtimes of the same time.
INPUT, OUTPUT = "images", "embeddings"


def packages() -> tuple[Any, Any]:
  """Imports onnx and onnxruntime.

  Raises:
    InputError: they are not installed.
  """
  try:
    import onnx
    import onnxruntime
  except ImportError as error:
    raise InputError(
      f"the package {error.name!r} is missing: install the extra with pip"
      " install 'jamsface-jax[onnx]'."
    ) from None
  return onnx, onnxruntime


def build(
  model: nn.Module,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
  *,
  image_size: int,
  uint8: bool,
) -> bytes:
  """Builds the graph of a backbone with running batch statistics.

  Args:
    model: the backbone.
    arrays: its variables by PyTorch's names, float32.
    metadata: texts to keep in the file.
    image_size: height and width of the images.
    uint8: the input is pixels uint8 [N, H, W, 3], which the graph normalises;
      else float32 [N, 3, H, W] that is normalised already.

  Returns:
    An ONNX file; output float32 [N, D], not normalised.
  """
  onnx, _ = packages()
  helper, kinds = onnx.helper, onnx.TensorProto
  graph = _Graph(helper, onnx.numpy_helper, arrays)
  if uint8:
    shape = ("N", image_size, image_size, 3)
    x = graph.node("Cast", INPUT, to=kinds.FLOAT)
    x = graph.node("Div", x, graph.constant(np.float32(127.5)))
    x = graph.node("Sub", x, graph.constant(np.float32(1)))
    x = graph.node("Transpose", x, perm=(0, 3, 1, 2))
  else:
    shape = ("N", 3, image_size, image_size)
    x = INPUT
  match model:
    case IResNet():
      x = _iresnet(graph, x, model)
    case MobileFaceNet():
      x = _mobilefacenet(graph, x, model)
    case ViT():
      x = _vit(graph, x, model, (image_size // PATCH) ** 2)
    case _:
      raise TypeError(f"{type(model).__name__} has no ONNX graph")
  graph.node("Identity", x, output=OUTPUT)
  kind = kinds.UINT8 if uint8 else kinds.FLOAT
  proto = helper.make_model(
    helper.make_graph(
      graph.nodes,
      type(model).__name__,
      [helper.make_tensor_value_info(INPUT, kind, shape)],
      [
        helper.make_tensor_value_info(
          OUTPUT, kinds.FLOAT, ("N", model.embedding_size)
        )
      ],
      graph.initializers,
    ),
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="jamsface_jax",
  )
  helper.set_model_props(proto, dict(metadata))
  onnx.checker.check_model(proto, full_check=True)
  return proto.SerializeToString()


def session(path: str) -> Callable[[np.ndarray], np.ndarray]:
  """Opens a network in onnxruntime, on the CPU.

  Args:
    path: of an ONNX file with one input of images.

  Returns:
    Maps uint8 pixels [N, H, W, 3] to the first output, whatever of the two
    forms of `build` the network takes.
  """
  _, runtime = packages()
  network = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
  (entry,) = network.get_inputs()

  def embed(pixels: np.ndarray) -> np.ndarray:
    if entry.type != "tensor(uint8)":
      pixels = pixels.astype(np.float32) / 127.5 - 1
      pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return network.run(None, {entry.name: pixels})[0]

  return embed


@dataclasses.dataclass(frozen=True)
class OnnxLayer:
  """A layer of a graph with variables.

  Attributes:
    kind: CONV, BATCH_NORM, PRELU or LINEAR of `models.layout`.
    arrays: its variables under PyTorch's names ("weight", "bias", ...), with
      PyTorch's axes. The running variance is one for an epsilon of 1e-5.
  """

  kind: str
  arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class OnnxFile:
  """What an ONNX file holds.

  Attributes:
    arrays: constants by name.
    layers: in the order in which they run; None if there are others than those
      of `OnnxLayer`.
    obstacle: what layer that was.
    metadata: texts by name.
  """

  arrays: dict[str, np.ndarray]
  layers: list[OnnxLayer] | None
  obstacle: str
  metadata: dict[str, str]


def read(path: str) -> OnnxFile:
  """Reads the variables of an ONNX file.

  Raises:
    InputError: no such file, not ONNX, or with variables in other files.
  """
  onnx, _ = packages()
  try:
    # Only this file: what it says of others is not followed.
    proto = onnx.load(path, load_external_data=False)
  except OSError as error:
    raise InputError(
      f"{path!r} cannot be read ({error.strerror}): give a file of weights."
    ) from None
  except Exception:  # Of protobuf, which has an error class per build.
    proto = None
  if proto is None or not proto.graph.node:
    raise InputError(
      f"{path!r} is not an ONNX file, or it is damaged: give one that"
      " onnxruntime opens."
    )
  arrays = {}
  for tensor in proto.graph.initializer:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
      raise InputError(
        f"{path!r} keeps its variables in other files: save it as one file."
      )
    try:
      arrays[tensor.name] = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
      raise InputError(
        f"{path!r} is damaged: constant {tensor.name!r} cannot be read"
        f" ({one_line(error, 100)})."
      ) from None
  metadata = {entry.key: entry.value for entry in proto.metadata_props}
  try:
    layers, obstacle = _layers(onnx, proto.graph, dict(arrays)), ""
  except _ObstacleError as error:
    layers, obstacle = None, str(error)
  return OnnxFile(arrays, layers, obstacle, metadata)


class _ObstacleError(ValueError):
  """A node that no layer here stands for."""


def _layers(onnx, graph, arrays: dict[str, np.ndarray]) -> list[OnnxLayer]:
  """Finds the layers of a graph; `arrays` are its constants, by name."""
  found: list[OnnxLayer] = []
  products: dict[str, OnnxLayer] = {}  # By the name of their result.
  for node in graph.node:
    attributes = {
      entry.name: onnx.helper.get_attribute_value(entry)
      for entry in node.attribute
    }
    known = [arrays[name] for name in node.input[1:] if name in arrays]
    if node.op_type == "Constant" and "value" in attributes:
      value = onnx.numpy_helper.to_array(attributes["value"])
      arrays[node.output[0]] = value
    elif node.op_type in ("Identity", "Unsqueeze") and node.input[0] in arrays:
      arrays[node.output[0]] = arrays[node.input[0]]
    elif node.op_type == "Conv" and len(known) == len(node.input) - 1:
      found.append(_with_bias(CONV, *known))
    elif node.op_type == "BatchNormalization" and len(known) == 4:
      names = ("weight", "bias", "running_mean", "running_var")
      layer = OnnxLayer(BATCH_NORM, dict(zip(names, known, strict=True)))
      # Only variance + epsilon counts.
      epsilon = attributes.get("epsilon", 1e-5)
      layer.arrays["running_var"] = layer.arrays["running_var"] + np.float32(
        epsilon - 1e-5
      )
      found.append(layer)
    elif node.op_type == "PRelu" and len(known) == 1:
      found.append(OnnxLayer(PRELU, {"weight": known[0].reshape(-1)}))
    elif node.op_type == "Gemm" and known and known[0].ndim == 2:
      plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
      if {**plain, "transB": 0, **attributes} | {"transB": 1} != plain:
        raise _ObstacleError(f"{node.op_type} {node.name!r}")
      kernel = known[0] if attributes.get("transB", 0) else known[0].T
      found.append(_with_bias(LINEAR, kernel, *known[1:]))
    elif node.op_type == "MatMul" and known and known[0].ndim == 2:
      found.append(_with_bias(LINEAR, known[0].T))
      products[node.output[0]] = found[-1]
    elif node.op_type == "Add" and known and node.input[0] in products:
      products[node.input[0]].arrays["bias"] = known[0]
    elif any(
      name in arrays and arrays[name].dtype.kind == "f" for name in node.input
    ):
      raise _ObstacleError(f"{node.op_type} {node.name!r}")
  return found


def _with_bias(kind: str, *arrays: np.ndarray) -> OnnxLayer:
  return OnnxLayer(kind, dict(zip(("weight", "bias"), arrays, strict=False)))


class _Graph:
  """Nodes as they are added; names of tensors in, names of tensors out."""

  def __init__(self, helper, numpy_helper, arrays: Mapping[str, np.ndarray]):
    self.nodes: list = []
    self.initializers: list = []
    self._helper = helper
    self._numpy_helper = numpy_helper
    self._arrays = arrays

  def node(
    self, kind: str, *inputs: str, output: str = "", **attributes
  ) -> str:
    """Adds a node and returns the name of its result."""
    output = output or f"{kind.lower()}_{len(self.nodes)}"
    self.nodes.append(
      self._helper.make_node(kind, inputs, [output], output, **attributes)
    )
    return output

  def constant(self, array: np.ndarray, name: str = "") -> str:
    """Adds an array and returns its name."""
    name = name or f"constant_{len(self.initializers)}"
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    self.initializers.append(self._numpy_helper.from_array(array, name))
    return name

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a variable."""
    return self._arrays[name].shape

  def variable(self, name: str) -> str:
    """Adds a variable and returns its name, which is PyTorch's."""
    return self.constant(self._arrays[name], name)

  def conv(self, x: str, name: str, *, stride: int = 1, groups: int = 1) -> str:
    """A convolution that keeps the size, divided by `stride`."""
    size = self.shape(f"{name}.weight")[-1]
    return self._conv(x, name, stride, padding=size // 2, groups=groups)

  def whole_conv(self, x: str, name: str, *, groups: int = 1) -> str:
    """A convolution without padding whose windows do not overlap."""
    size = self.shape(f"{name}.weight")[-1]
    return self._conv(x, name, size, padding=0, groups=groups)

  def _conv(self, x, name, stride, *, padding, groups) -> str:
    inputs = [x, self.variable(f"{name}.weight")]
    if f"{name}.bias" in self._arrays:
      inputs.append(self.variable(f"{name}.bias"))
    return self.node(
      "Conv",
      *inputs,
      kernel_shape=self.shape(f"{name}.weight")[2:],
      strides=(stride, stride),
      pads=(padding,) * 4,
      group=groups,
    )

  def batch_norm(self, x: str, name: str, epsilon: float = 1e-5) -> str:
    """Batch normalisation by running statistics."""
    parts = ("weight", "bias", "running_mean", "running_var")
    names = [self.variable(f"{name}.{part}") for part in parts]
    return self.node("BatchNormalization", x, *names, epsilon=epsilon)

  def layer_norm(self, x: str, name: str) -> str:
    """Layer normalisation over the last axis."""
    parts = ("weight", "bias")
    names = [self.variable(f"{name}.{part}") for part in parts]
    return self.node("LayerNormalization", x, *names, epsilon=1e-5)

  def prelu(self, x: str, name: str) -> str:
    """A slope per channel of [N, C, H, W]."""
    slope = self._arrays[f"{name}.weight"].reshape(-1, 1, 1)
    return self.node("PRelu", x, self.constant(slope, f"{name}.weight"))

  def linear(self, x: str, name: str) -> str:
    """A linear layer on [N, C]."""
    inputs = [x, self.variable(f"{name}.weight")]
    if f"{name}.bias" in self._arrays:
      inputs.append(self.variable(f"{name}.bias"))
    return self.node("Gemm", *inputs, transB=1)

  def token_linear(self, x: str, name: str) -> str:
    """A linear layer on the last axis of [N, T, C]."""
    kernel = self.node(
      "Transpose", self.variable(f"{name}.weight"), perm=(1, 0)
    )
    x = self.node("MatMul", x, kernel)
    if f"{name}.bias" in self._arrays:
      x = self.node("Add", x, self.variable(f"{name}.bias"))
    return x

  def reshape(self, x: str, *sizes: int) -> str:
    """A new shape; 0 keeps a size."""
    return self.node("Reshape", x, self.constant(np.array(sizes, np.int64)))


def _iresnet(graph: _Graph, x: str, model: IResNet) -> str:
  x = graph.conv(x, "conv1", stride=model.stem_stride)
  x = graph.prelu(graph.batch_norm(x, "bn1"), "prelu")
  for stage, depth in enumerate(model.stages, start=1):
    for i in range(depth):
      name, stride = f"layer{stage}.{i}", 1 if i else 2
      y = graph.conv(graph.batch_norm(x, f"{name}.bn1"), f"{name}.conv1")
      y = graph.prelu(graph.batch_norm(y, f"{name}.bn2"), f"{name}.prelu")
      y = graph.conv(y, f"{name}.conv2", stride=stride)
      y = graph.batch_norm(y, f"{name}.bn3")
      if model.squeeze_reduction:
        z = graph.node("GlobalAveragePool", y)
        z = graph.node("Relu", graph.conv(z, f"{name}.se.fc1"))
        z = graph.node("Sigmoid", graph.conv(z, f"{name}.se.fc2"))
        y = graph.node("Mul", y, z)
      if i == 0:
        x = graph.conv(x, f"{name}.downsample.0", stride=stride)
        x = graph.batch_norm(x, f"{name}.downsample.1")
      x = graph.node("Add", y, x)
  x = graph.node("Flatten", graph.batch_norm(x, "bn2"))
  return graph.batch_norm(graph.linear(x, "fc"), "features")


def _mobilefacenet(graph: _Graph, x: str, model: MobileFaceNet) -> str:
  def finish(x, name, activation=True):
    x = graph.batch_norm(x, f"{name}.layers.1")
    return graph.prelu(x, f"{name}.layers.2") if activation else x

  def conv_block(x, name, stride=1, activation=True):
    x = graph.conv(x, f"{name}.layers.0", stride=stride)
    return finish(x, name, activation)

  def depthwise(x, name, channels, stride):
    groups = channels // graph.shape(f"{name}.layers.0.weight")[1]
    x = graph.conv(x, f"{name}.layers.0", stride=stride, groups=groups)
    return finish(x, name)

  def bottleneck(x, name, stride):
    y = conv_block(x, f"{name}.layers.0")
    channels = graph.shape(f"{name}.layers.0.layers.0.weight")[0]
    y = depthwise(y, f"{name}.layers.1", channels, stride)
    y = conv_block(y, f"{name}.layers.2", activation=False)
    return graph.node("Add", x, y) if stride == 1 else y

  x = conv_block(x, "layers.0", stride=2)
  for stage, depth in enumerate(model.stages, start=1):
    if stage > 1:
      x = bottleneck(x, f"layers.{2 * stage - 2}", 2)
    elif depth == 1:
      channels = graph.shape("layers.1.layers.0.weight")[0]
      x = depthwise(x, "layers.1", channels, 1)
      continue
    for i in range(depth):
      x = bottleneck(x, f"layers.{2 * stage - 1}.layers.{i}", 1)
  x = conv_block(x, "conv_sep")
  groups = graph.shape("features.layers.0.layers.0.weight")[0]
  x = graph.whole_conv(x, "features.layers.0.layers.0", groups=groups)
  x = finish(x, "features.layers.0", activation=False)
  x = graph.linear(graph.node("Flatten", x), "features.layers.2")
  return graph.batch_norm(x, "features.layers.3")


def _vit(graph: _Graph, x: str, model: ViT, tokens: int) -> str:
  def attention(x, name):
    x = graph.token_linear(x, f"{name}.qkv")
    x = graph.reshape(x, 0, tokens, 3, HEADS, -1)
    x = graph.node("Transpose", x, perm=(2, 0, 3, 1, 4))
    query, key, value = (
      graph.node("Gather", x, graph.constant(np.int64(k)), axis=0)
      for k in range(3)
    )
    channels = graph.shape(f"{name}.proj.weight")[0]
    scale = graph.constant(np.float32((channels // HEADS) ** -0.5))
    key = graph.node("Transpose", key, perm=(0, 1, 3, 2))
    scores = graph.node("Mul", graph.node("MatMul", query, key), scale)
    x = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    x = graph.node("Transpose", x, perm=(0, 2, 1, 3))
    return graph.token_linear(
      graph.reshape(x, 0, tokens, channels), f"{name}.proj"
    )

  x = graph.whole_conv(x, "patch_embed.proj")
  x = graph.reshape(x, 0, 0, tokens)
  x = graph.node("Transpose", x, perm=(0, 2, 1))
  x = graph.node("Add", x, graph.variable("pos_embed"))
  zero, six = graph.constant(np.float32(0)), graph.constant(np.float32(6))
  for i in range(model.stages[0]):
    name = f"blocks.{i}"
    y = attention(graph.layer_norm(x, f"{name}.norm1"), f"{name}.attn")
    x = graph.node("Add", x, y)
    y = graph.layer_norm(x, f"{name}.norm2")
    y = graph.token_linear(y, f"{name}.mlp.fc1")
    y = graph.token_linear(graph.node("Clip", y, zero, six), f"{name}.mlp.fc2")
    x = graph.node("Add", x, y)
  x = graph.node("Flatten", graph.layer_norm(x, "norm"))
  x = graph.batch_norm(graph.linear(x, "feature.0"), "feature.1", 2e-5)
  return graph.batch_norm(graph.linear(x, "feature.2"), "feature.3", 2e-5)
