"""Writes a backbone as an ONNX graph, with PyTorch's names and axes.

Written by hand, layer by layer, for what the field's runtimes know how to fuse:
35 nodes at opset 17 where jax2onnx 0.17.1 makes 387 at opset 23. Which layers
there are and how they hang together is read off the module (`layer_program`).
Needs the packages of the extra `onnx`.
"""

import itertools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax.extend.core
import numpy as np

from jamsface_jax.models.edgenext import (
  CrossCovariance,
  Encoding,
  Factor,
  Gelu,
  SplitConvs,
  waves,
)
from jamsface_jax.models.entry import Entry
from jamsface_jax.models.iresnet import SqueezeExcitation
from jamsface_jax.models.layers import BatchNorm, Conv, Linear, PReLU
from jamsface_jax.models.vit import HEADS, Attention
from jamsface_jax.weights.layer_program import (
  LayerProgram,
  Value,
  shape_of,
  trace,
)
from jamsface_jax.weights.onnx_file import packages
from jamsface_jax.weights.pytorch_names import torch_name

OPSET = 17  # The oldest with layer normalisation.
IR_VERSION = 8  # Of the same time, for runtimes of the same time.
INPUT, OUTPUT = "images", "embeddings"


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
    arrays: its variables by PyTorch's names, float32, or float16 to be kept
      so; the graph computes in float32.
    metadata: texts to keep in the file.
    image_size: height and width of the images.
    uint8: the input is pixels uint8 [N, H, W, 3], which the graph normalises;
      else float32 [N, 3, H, W] that is normalised already.

  Returns:
    An ONNX file; output float32 [N, D], not normalised.
  """
  onnx, _ = packages()
  helper, kinds = onnx.helper, onnx.TensorProto
  graph = _Graph(onnx, arrays)
  x = INPUT
  shape = ("N", 3, image_size, image_size)
  if uint8:
    shape = ("N", image_size, image_size, 3)
    x = graph.node("Cast", INPUT, to=kinds.FLOAT)
    x = graph.node("Div", x, graph.number(127.5))
    x = graph.node("Sub", x, graph.number(1))
    x = graph.node("Transpose", x, perm=(0, 3, 1, 2))
  program = trace(model, image_size)
  graph.node("Identity", _write(graph, x, model, program), output=OUTPUT)
  kind = kinds.UINT8 if uint8 else kinds.FLOAT
  embeddings = ("N", shape_of(program.result)[1])
  proto = helper.make_model(
    helper.make_graph(
      graph.nodes,
      type(model).__name__,
      [helper.make_tensor_value_info(INPUT, kind, shape)],
      [helper.make_tensor_value_info(OUTPUT, kinds.FLOAT, embeddings)],
      graph.initializers,
    ),
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="jamsface_jax",
  )
  helper.set_model_props(proto, dict(metadata))
  onnx.checker.check_model(proto, full_check=True)
  return proto.SerializeToString()


def _write(
  graph: "_Graph", images: str, model: nn.Module, program: LayerProgram
) -> str:
  """Adds the nodes of a backbone; returns the name of the embeddings.

  Maps are [N, C, H, W] in the graph and [N, H, W, C] in the program; all else
  has the same axes in both.
  """
  names = {program.images: images}

  def name_of(value: Value) -> str:
    if value in program.parameters and value not in names:
      torch = torch_name(model, program.parameters[value])
      names[value] = graph.variable(torch)
    return names[value]

  for equation in program.equations:
    x = equation.invars[0]
    (result,) = equation.outvars
    match equation.primitive.name, equation.params.get("name"):
      case "layer", _:
        path = equation.params["path"]
        y = _layer(
          graph,
          name_of(x),
          program.modules[path],
          torch_name(model, path),
          shape=shape_of(x),
        )
      case "add", _:
        y = graph.node("Add", *map(name_of, equation.invars))
      case "max", _ if isinstance(equation.invars[1], jax.extend.core.Literal):
        y = graph.node("Relu", name_of(x))
      case "slice", _:
        _, height, width, _ = equation.params["strides"]
        y = graph.slice(name_of(x), axes=(2, 3), steps=(height, width))
      case "reshape", _ if len(shape_of(result)) == 2:
        y = graph.node("Flatten", name_of(x))
      case "reshape", _ if len(shape_of(x)) == 4 and len(shape_of(result)) == 3:
        y = graph.reshape(name_of(x), 0, 0, shape_of(result)[1])
        y = graph.node("Transpose", y, perm=(0, 2, 1))
      case "reshape", _ if len(shape_of(x)) == 3 and len(shape_of(result)) == 4:
        _, height, width, channels = shape_of(result)
        y = graph.node("Transpose", name_of(x), perm=(0, 2, 1))
        y = graph.reshape(y, 0, channels, height, width)
      case "reduce_sum", _:
        y = graph.node("GlobalAveragePool", name_of(x))
        y = graph.node("Flatten", y)
      case "div", _:  # Of the sum over a map by its places.
        y = name_of(x)
      case "jit", "clip":
        limits = [
          graph.number(limit.val)
          for limit in equation.invars[1:]
          if isinstance(limit, jax.extend.core.Literal)
        ]
        y = graph.node("Clip", name_of(x), *limits)
      case kind, _:
        raise TypeError(f"{type(model).__name__}: {kind!r} has no node here")
    names[result] = y
  return names[program.result]


def _layer(
  graph: "_Graph",
  x: str,
  layer: nn.Module,
  name: str,
  *,
  shape: tuple[int, ...],
) -> str:
  """Adds the nodes of a layer.

  Args:
    graph: to add to.
    x: the name of the input.
    layer: one of `layer_program.LAYERS`.
    name: its name in PyTorch.
    shape: the input's in the program.

  Returns:
    The name of the result.
  """
  match layer:
    case nn.Conv():
      return graph.conv(
        x,
        name,
        stride=layer.strides if isinstance(layer.strides, int) else 1,
        # Else "VALID".
        padding=layer.padding if isinstance(layer.padding, int) else 0,
        groups=layer.feature_group_count,
      )
    case Conv():
      return graph.conv(
        x, name, stride=layer.stride, padding=layer.kernel_size // 2
      )
    case BatchNorm():
      return graph.batch_norm(x, name, layer.epsilon)
    case nn.LayerNorm() if len(shape) == 4:
      x = graph.node("Transpose", x, perm=(0, 2, 3, 1))
      x = graph.layer_norm(x, name, layer.epsilon)
      return graph.node("Transpose", x, perm=(0, 3, 1, 2))
    case nn.LayerNorm():
      return graph.layer_norm(x, name, layer.epsilon)
    case PReLU():
      return graph.prelu(x, name)
    case nn.Dense() | Linear() if len(shape) == 2:
      return graph.linear(x, name)
    case nn.Dense() | Linear():
      return graph.token_linear(x, name)
    case Entry():
      return _entry(graph, x, layer)
    case SqueezeExcitation():
      return _squeeze_excitation(graph, x, name)
    case Attention():
      return _attention(graph, x, name, tokens=shape[1], channels=shape[2])
    case CrossCovariance():
      _, tokens, channels = shape
      return _cross_covariance(
        graph, x, name, tokens=tokens, channels=channels, heads=layer.heads
      )
    case SplitConvs():
      return _split_convs(graph, x, name, layer.parts, channels=shape[3])
    case Encoding():
      _, height, width, _ = shape
      places = graph.fixed(waves(height, width).transpose(2, 0, 1)[None])
      places = graph.conv(places, f"{name}.token_projection")
      return graph.node("Add", x, places)
    case Factor():
      return graph.node("Mul", x, graph.variable(name))
    case Gelu():
      y = graph.node("Erf", graph.node("Mul", x, graph.number(0.5**0.5)))
      y = graph.node("Mul", x, graph.node("Add", y, graph.number(1)))
      return graph.node("Mul", y, graph.number(0.5))
  raise TypeError(f"{type(layer).__name__} has no nodes here")


def _entry(graph: "_Graph", x: str, layer: Entry) -> str:
  if crop := layer.side_crop:
    x = graph.slice(x, axes=(3,), starts=(crop,), ends=(-crop,))
  if layer.is_plain:
    return x
  factor, summand = (
    graph.constant(array.reshape(1, 3, 1, 1)) for array in layer.line()
  )
  return graph.node("Add", graph.node("Mul", x, factor), summand)


def _squeeze_excitation(graph: "_Graph", x: str, name: str) -> str:
  y = graph.node("GlobalAveragePool", x)
  y = graph.node("Relu", graph.conv(y, f"{name}.fc1"))
  y = graph.node("Sigmoid", graph.conv(y, f"{name}.fc2"))
  return graph.node("Mul", x, y)


def _attention(
  graph: "_Graph", x: str, name: str, *, tokens: int, channels: int
) -> str:
  query, key, value = _query_key_value(
    graph, x, name, (tokens, HEADS, channels // HEADS), perm=(2, 0, 3, 1, 4)
  )
  scale = graph.constant(np.float32((channels // HEADS) ** -0.5))
  x = _attend(graph, query, key, value, scale)
  x = graph.node("Transpose", x, perm=(0, 2, 1, 3))
  x = graph.reshape(x, 0, tokens, channels)
  return graph.token_linear(x, f"{name}.proj")


def _cross_covariance(
  graph: "_Graph",
  x: str,
  name: str,
  *,
  tokens: int,
  channels: int,
  heads: int,
) -> str:
  query, key, value = _query_key_value(
    graph, x, name, (tokens, heads, channels // heads), perm=(2, 0, 3, 4, 1)
  )
  query, key = (
    graph.node("LpNormalization", one, axis=-1, p=2) for one in (query, key)
  )
  scale = graph.variable(f"{name}.temperature")
  x = _attend(graph, query, key, value, scale)
  x = graph.node("Transpose", x, perm=(0, 3, 1, 2))
  x = graph.reshape(x, 0, tokens, channels)
  return graph.token_linear(x, f"{name}.proj")


def _query_key_value(
  graph: "_Graph",
  x: str,
  name: str,
  shape: tuple[int, int, int],
  perm: tuple[int, ...],
) -> list[str]:
  """Three maps of the tokens, [N, *shape], each in the order of `perm`.

  That is of the axes (N, tokens, 3, heads, channels of a head), the third
  first.
  """
  tokens, heads, channels = shape
  x = graph.token_linear(x, f"{name}.qkv")
  x = graph.reshape(x, 0, tokens, 3, heads, channels)
  x = graph.node("Transpose", x, perm=perm)
  return [
    graph.node("Gather", x, graph.constant(np.int64(k)), axis=0)
    for k in range(3)
  ]


def _attend(
  graph: "_Graph", query: str, key: str, value: str, scale: str
) -> str:
  """Weighs values by the softmax of what query and key have in common."""
  key = graph.node("Transpose", key, perm=(0, 1, 3, 2))
  scores = graph.node("Mul", graph.node("MatMul", query, key), scale)
  return graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)


def _split_convs(
  graph: "_Graph", x: str, name: str, parts: int, *, channels: int
) -> str:
  size = -(-channels // parts)
  bounds = [*range(0, channels, size), channels]
  *taken, last = (
    graph.slice(x, axes=(1,), starts=(start,), ends=(end,))
    for start, end in itertools.pairwise(bounds)
  )
  done: list[str] = []
  for k, part in enumerate(taken):
    part = graph.node("Add", done[-1], part) if done else part
    done.append(graph.conv(part, f"{name}.{k}", padding=1, groups=size))
  return graph.node("Concat", *done, last, axis=1)


class _Graph:
  """Nodes as they are added; names of tensors in, names of tensors out."""

  def __init__(self, onnx: ModuleType, arrays: Mapping[str, np.ndarray]):
    self.nodes: list[Any] = []
    self.initializers: list[Any] = []
    self._onnx = onnx
    self._arrays = arrays
    self._numbers: dict[float, str] = {}

  def node(
    self, kind: str, *inputs: str, output: str = "", **attributes: Any
  ) -> str:
    """Adds a node and returns the name of its result."""
    output = output or f"{kind.lower()}_{len(self.nodes)}"
    self.nodes.append(
      self._onnx.helper.make_node(kind, inputs, [output], output, **attributes)
    )
    return output

  def constant(self, array: np.ndarray | np.generic, name: str = "") -> str:
    """Adds an array and returns its name."""
    name = name or f"constant_{len(self.initializers)}"
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    self.initializers.append(self._onnx.numpy_helper.from_array(array, name))
    return name

  def fixed(self, array: np.ndarray) -> str:
    """Adds numbers that are no variables of the network, apart from those."""
    array = np.ascontiguousarray(array)
    value = self._onnx.numpy_helper.from_array(array)
    return self.node("Constant", output=f"fixed_{len(self.nodes)}", value=value)

  def number(self, value: float) -> str:
    """Adds a number, float32, unless it is there; returns its name."""
    if value not in self._numbers:
      self._numbers[value] = self.constant(np.float32(value))
    return self._numbers[value]

  def variable(self, name: str) -> str:
    """Adds a variable, under PyTorch's name; returns what holds it."""
    return self._exact(self._arrays[name], name)

  def _exact(self, array: np.ndarray, name: str) -> str:
    """Adds an array under a name; returns that of its numbers in float32."""
    kept = self.constant(array, name)
    if array.dtype == np.float32:
      return kept
    return self.node("Cast", kept, to=self._onnx.TensorProto.FLOAT)

  def variables(self, name: str, *parts: str) -> list[str]:
    """Adds those variables of a layer that it has."""
    names = [f"{name}.{part}" for part in parts]
    return [self.variable(name) for name in names if name in self._arrays]

  def conv(
    self,
    x: str,
    name: str,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
  ) -> str:
    """A convolution of [N, C, H, W]."""
    return self.node(
      "Conv",
      x,
      *self.variables(name, "weight", "bias"),
      kernel_shape=self._arrays[f"{name}.weight"].shape[2:],
      strides=(stride, stride),
      pads=(padding,) * 4,
      group=groups,
    )

  def batch_norm(self, x: str, name: str, epsilon: float) -> str:
    """Batch normalisation by running statistics."""
    parts = ("weight", "bias", "running_mean", "running_var")
    names = self.variables(name, *parts)
    return self.node("BatchNormalization", x, *names, epsilon=epsilon)

  def layer_norm(self, x: str, name: str, epsilon: float) -> str:
    """Layer normalisation over the last axis."""
    names = self.variables(name, "weight", "bias")
    return self.node("LayerNormalization", x, *names, epsilon=epsilon)

  def prelu(self, x: str, name: str) -> str:
    """A slope per channel of [N, C, H, W]."""
    slope = self._arrays[f"{name}.weight"].reshape(-1, 1, 1)
    return self.node("PRelu", x, self._exact(slope, f"{name}.weight"))

  def is_low_rank(self, name: str) -> bool:
    """Whether a linear layer is a product of two."""
    return f"{name}.linear1.weight" in self._arrays

  def linear(self, x: str, name: str) -> str:
    """A linear layer on [N, C], or two that make one of low rank."""
    if self.is_low_rank(name):
      return self.linear(self.linear(x, f"{name}.linear1"), f"{name}.linear2")
    names = self.variables(name, "weight", "bias")
    return self.node("Gemm", x, *names, transB=1)

  def token_linear(self, x: str, name: str) -> str:
    """A linear layer on the last axis of [N, T, C], as `linear`."""
    if self.is_low_rank(name):
      x = self.token_linear(x, f"{name}.linear1")
      return self.token_linear(x, f"{name}.linear2")
    kernel = self.node(
      "Transpose", self.variable(f"{name}.weight"), perm=(1, 0)
    )
    x = self.node("MatMul", x, kernel)
    for bias in self.variables(name, "bias"):
      x = self.node("Add", x, bias)
    return x

  def slice(
    self,
    x: str,
    *,
    axes: tuple[int, ...],
    starts: tuple[int, ...] | None = None,
    ends: tuple[int, ...] | None = None,
    steps: tuple[int, ...] | None = None,
  ) -> str:
    """A part of some axes; all of it, in steps of 1, where nothing is said."""
    largest = np.iinfo(np.int64).max
    parts = (
      starts or (0,) * len(axes),
      ends or (largest,) * len(axes),
      axes,
      steps or (1,) * len(axes),
    )
    constants = [self.constant(np.array(part, np.int64)) for part in parts]
    return self.node("Slice", x, *constants)

  def reshape(self, x: str, *sizes: int) -> str:
    """A new shape; 0 keeps a size."""
    return self.node("Reshape", x, self.constant(np.array(sizes, np.int64)))
