"""The layers of an ONNX graph, in the order in which they run.

What a graph does before its first layer is told apart: images that it turns to
PyTorch's axes, and the normalisation that exporters of MXNet leave in it.
Constants may be whole numbers with a scale: kernels of whole numbers in a graph
that computes in float32 are read as what it computes with.
"""

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

from jamsface_jax.errors import one_line
from jamsface_jax.weights.pytorch_names import BATCH_NORM, CONV, LINEAR, PRELU


@dataclasses.dataclass(frozen=True)
class OnnxLayer:
  """A layer of a graph with variables.

  Attributes:
    kind: CONV, BATCH_NORM, PRELU or LINEAR of `pytorch_names`.
    arrays: its variables under PyTorch's names ("weight", "bias", ...), with
      PyTorch's axes. The running variance is one for an epsilon of 1e-5.
  """

  kind: str
  arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class OnnxEntry:
  """What a graph does to images before its first layer.

  Attributes:
    factor: what red, green and blue are multiplied by, in the graph's order.
    summand: what is then added.
  """

  factor: np.ndarray
  summand: np.ndarray

  @property
  def is_plain(self) -> bool:
    """Whether it does nothing."""
    return bool((self.factor == 1).all() and (self.summand == 0).all())


# What Python raises of attributes and numbers that are of another kind.
_OF_OTHER_KINDS = (
  ArithmeticError,
  AttributeError,
  LookupError,
  TypeError,
  ValueError,
)


class DamagedError(ValueError):
  """A constant or a node that cannot be read; says which and why."""


class ObstacleError(ValueError):
  """A node that no layer here stands for; says which."""


def array_of(onnx: ModuleType, tensor: Any) -> np.ndarray:
  """The numbers of a constant.

  Raises:
    DamagedError: they cannot be read.
  """
  try:
    return onnx.numpy_helper.to_array(tensor)
  except Exception as error:  # Of several kinds, by what is damaged.
    name = getattr(tensor, "name", "")  # It need not be one.
    raise DamagedError(
      f"constant {name!r} cannot be read ({one_line(error, 100)})"
    ) from None


def find_layers(
  onnx: ModuleType, graph: Any, arrays: dict[str, np.ndarray]
) -> tuple[list[OnnxLayer], OnnxEntry]:
  """Finds the layers of a graph, and what comes before them.

  Args:
    onnx: the package.
    graph: its GraphProto.
    arrays: the constants, by name; those that are computed are added.

  Raises:
    ObstacleError: a node has no place among such layers.
    DamagedError: a constant or a node cannot be read.
  """
  return _Reader(onnx, graph, arrays).read()


class _Reader:
  """Goes through the nodes of a graph, and keeps what it finds."""

  def __init__(
    self, onnx: ModuleType, graph: Any, arrays: dict[str, np.ndarray]
  ):
    self._onnx = onnx
    self._graph = graph
    self._arrays = arrays
    self._layers: list[OnnxLayer] = []
    self._products: dict[str, OnnxLayer] = {}  # By the name of their result.
    # What holds the images still, by name, and what was done to them.
    one, none = np.ones(3, np.float32), np.zeros(3, np.float32)
    self._entry = OnnxEntry(one, none)
    self._images = {one.name for one in graph.input if one.name not in arrays}

  def read(self) -> tuple[list[OnnxLayer], OnnxEntry]:
    for node in _in_order(self._graph):
      try:
        understood = self._read_node(node)
      except (DamagedError, ObstacleError):
        raise
      except _OF_OTHER_KINDS as error:
        raise DamagedError(
          f"{node.op_type} {node.name!r} is not as ONNX has it"
          f" ({one_line(error, 100)})"
        ) from None
      if not understood and any(
        name in self._arrays and self._arrays[name].dtype.kind == "f"
        for name in node.input
      ):
        raise ObstacleError(f"{node.op_type} {node.name!r}")
    return self._layers, self._entry

  def _read_node(self, node: Any) -> bool:
    """Takes a node, whose attributes need not be what ONNX says they are."""
    attributes = {
      entry.name: self._onnx.helper.get_attribute_value(entry)
      for entry in node.attribute
    }
    return (
      self._read_constant(node, attributes)
      or self._read_entry(node, attributes)
      or self._read_layer(node, attributes)
      or node.op_type in ("Dropout", "Reshape", "Flatten")
      or (node.op_type == "Clip" and self._is_relu6(node, attributes))
    )

  def _read_constant(self, node: Any, attributes: dict[str, Any]) -> bool:
    """Computes what needs constants alone."""
    if node.op_type == "Constant":
      if "value" in attributes:
        self._arrays[node.output[0]] = array_of(self._onnx, attributes["value"])
      return True
    if not all(name in self._arrays for name in node.input if name):
      return False
    inputs = [self._arrays[name] for name in node.input if name]
    try:
      array = _computed(node.op_type, inputs, attributes)
    except (ValueError, IndexError) as error:
      raise DamagedError(
        f"constant {node.output[0]!r} cannot be computed"
        f" ({one_line(error, 100)})"
      ) from None
    if array is not None:
      self._arrays[node.output[0]] = array
    return array is not None

  def _read_entry(self, node: Any, attributes: dict[str, Any]) -> bool:
    """Follows the images to the first layer."""
    if self._layers or not node.input or node.input[0] not in self._images:
      return False
    known = [
      self._arrays[name] for name in node.input[1:] if name in self._arrays
    ]
    factor, summand = self._entry.factor, self._entry.summand
    match node.op_type:
      case "Cast" | "Identity":
        pass
      case "Transpose" if list(attributes.get("perm", ())) == [0, 3, 1, 2]:
        pass
      case "Sub" | "Add" | "Mul" | "Div" if known and known[0].size in (1, 3):
        number = np.float32(known[0]).reshape(-1)
        if node.op_type in ("Mul", "Div"):
          number = number if node.op_type == "Mul" else 1 / number
          self._entry = OnnxEntry(factor * number, summand * number)
        else:
          number = number if node.op_type == "Add" else -number
          self._entry = OnnxEntry(factor, summand + number)
      case _:
        return False
    self._images.add(node.output[0])
    return True

  def _read_layer(self, node: Any, attributes: dict[str, Any]) -> bool:
    """Takes a node with variables."""
    known = [
      self._arrays[name] for name in node.input[1:] if name in self._arrays
    ]
    match node.op_type:
      case "Conv" if len(known) == len(node.input) - 1:
        layer = _with_bias(CONV, *known)
      case "BatchNormalization" if len(known) == 4:
        names = ("weight", "bias", "running_mean", "running_var")
        layer = OnnxLayer(BATCH_NORM, dict(zip(names, known, strict=True)))
        # Only variance + epsilon counts.
        epsilon = attributes.get("epsilon", 1e-5)
        layer.arrays["running_var"] = layer.arrays["running_var"] + np.float32(
          epsilon - 1e-5
        )
      case "PRelu" if len(known) == 1:
        layer = OnnxLayer(PRELU, {"weight": known[0].reshape(-1)})
      case "Gemm" if known and known[0].ndim == 2:
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        if {**plain, "transB": 0, **attributes} | {"transB": 1} != plain:
          return False
        kernel = known[0] if attributes.get("transB", 0) else known[0].T
        layer = _with_bias(LINEAR, kernel, *known[1:])
      case "MatMul" if known and known[0].ndim == 2:
        layer = _with_bias(LINEAR, known[0].T)
        self._products[node.output[0]] = layer
      case "Add" if known and node.input[0] in self._products:
        self._products[node.input[0]].arrays["bias"] = known[0]
        return True
      case _:
        return False
    self._layers.append(layer)
    return True

  def _is_relu6(self, node: Any, attributes: dict[str, Any]) -> bool:
    """Whether a Clip has the limits 0 and 6; before opset 11 as attributes."""
    found = [
      self._arrays[name] for name in node.input[1:] if name in self._arrays
    ] or [attributes.get("min", -1), attributes.get("max", 0)]
    return [float(limit) for limit in found] == [0, 6]


def _computed(
  kind: str, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> np.ndarray | None:
  """The result of a node whose inputs are all known; None: of another kind.

  None of these makes much out of little.
  """
  match kind:
    case "Identity" | "Unsqueeze" | "Squeeze":
      # Axes of 1 do not count in what is read.
      return inputs[0]
    case "Reshape":
      return inputs[0].reshape(inputs[1].astype(int))
    case "Transpose":
      return inputs[0].transpose(attributes.get("perm"))
    case "DequantizeLinear":
      return _dequantized(*inputs, **attributes)
    case "Cast" if attributes.get("to") == 1 and inputs[0].dtype.kind == "f":
      return inputs[0].astype(np.float32)
  return None


def _dequantized(
  x: np.ndarray,
  scale: np.ndarray,
  zero: np.ndarray | None = None,
  *,
  axis: int = 1,
  block_size: int = 0,
  **_: Any,
) -> np.ndarray:
  """(x - zero) * scale: of all, of each channel, or of blocks of an axis."""

  def spread(numbers: np.ndarray) -> np.ndarray:
    if block_size:
      numbers = np.repeat(numbers, block_size, axis)
      return np.take(numbers, range(x.shape[axis]), axis)
    if numbers.ndim == 1 and numbers.size > 1:
      return numbers.reshape(
        [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]
      )
    return numbers

  whole = x.astype(np.float32)
  if zero is not None:
    whole = whole - spread(zero).astype(np.float32)
  return whole * spread(scale)


def _in_order(graph: Any) -> list[Any]:
  """The nodes in an order in which they run, shortcuts after the long paths.

  PyTorch writes what ran first, which may be the shortcut: of what a node
  needs, what is deepest comes first here. What nothing needs comes last.

  Raises:
    DamagedError: nodes need each other in a circle.
  """
  makers = {n: node for node in graph.node for n in node.output if n}
  depths: dict[str, int] = {}
  for node in graph.node:  # ONNX has them in an order that runs.
    depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
    depths |= dict.fromkeys(node.output, depth)
  ordered, begun, done = [], set(), set()
  waiting = [
    makers[output.name] for output in graph.output if output.name in makers
  ][::-1]
  waiting = list(graph.node)[::-1] + waiting
  while waiting:
    node = waiting[-1]
    needed = [
      makers[name]
      for name in sorted(node.input, key=lambda name: -depths.get(name, 0))
      if name in makers and id(makers[name]) not in done
    ]
    if id(node) in done:
      waiting.pop()
    elif needed:
      begun.add(id(node))
      if id(needed[0]) in begun:
        raise DamagedError("its nodes need each other in a circle")
      waiting.append(needed[0])
    else:
      ordered.append(waiting.pop())
      done.add(id(node))
  return ordered


def _with_bias(kind: str, *arrays: np.ndarray) -> OnnxLayer:
  return OnnxLayer(kind, dict(zip(("weight", "bias"), arrays, strict=False)))
