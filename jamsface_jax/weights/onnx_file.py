"""ONNX files of backbones: run, and read layer by layer.

Needs the packages of the extra `onnx`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.weights.normalization import USUAL, Normalization
from jamsface_jax.weights.pytorch_names import BATCH_NORM, CONV, LINEAR, PRELU


def packages() -> tuple[ModuleType, ModuleType]:
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


def session(
  path: str, normalization: Normalization = USUAL
) -> Callable[[np.ndarray], np.ndarray]:
  """Opens a network in onnxruntime, on the CPU.

  Args:
    path: an ONNX file with one input of images.
    normalization: of what it takes, if that is no pixels.

  Returns:
    Maps uint8 pixels [N, H, W, 3] to the first output, whatever of the two
    forms of `build` the network takes. One of a fixed batch is run as often as
    it takes, the last time with zeros beside the images.
  """
  _, runtime = packages()
  network = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
  (entry,) = network.get_inputs()

  def run(images: np.ndarray, batch: int) -> np.ndarray:
    count = len(images)
    images = np.pad(images, [(0, -count % batch), *[(0, 0)] * 3])
    return np.concatenate(
      [
        network.run(None, {entry.name: images[start : start + batch]})[0]
        for start in range(0, len(images), batch)
      ]
    )[:count]

  def embed(pixels: np.ndarray) -> np.ndarray:
    if entry.type != "tensor(uint8)":
      mean, std = np.array(normalization.mean), np.array(normalization.std)
      pixels = ((pixels - mean) / std).astype(np.float32)
      pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    if isinstance(entry.shape[0], int):
      return run(pixels, entry.shape[0])
    try:
      return run(pixels, max(len(pixels), 1))
    except Exception:
      # insightface's torch2onnx.py traces one image, and then calls the batch
      # free: its Reshape knows of one. What else is wrong shows again.
      return run(pixels, 1)

  return embed


# What nodes of a graph are called here; a Clip may have other limits than 6,
# which shows when the graph is run.
ACTIVATIONS = {"PRelu": "prelu", "Clip": "relu6", "Relu": "relu"}


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
class OnnxFile:
  """What an ONNX file holds.

  Attributes:
    arrays: constants by name.
    layers: in the order in which they run; None if there are others than those
      of `OnnxLayer`.
    obstacle: what layer that was.
    metadata: texts by name.
    activations: kinds of nodes of those of `ACTIVATIONS` that there are.
    embedding_size: length of the first output; None: the graph does not say.
  """

  arrays: dict[str, np.ndarray]
  layers: list[OnnxLayer] | None
  obstacle: str
  metadata: dict[str, str]
  activations: frozenset[str]
  embedding_size: int | None


def read(path: str) -> OnnxFile:
  """Reads the variables of an ONNX file.

  Raises:
    InputError: no such file, not ONNX, or with variables in other files.
  """
  onnx, _ = packages()
  try:
    # Only this file: what it says of others is not followed.
    with open(path, "rb", opener=plain) as file:
      proto = onnx.load(file, load_external_data=False)
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
  if any(_is_elsewhere(onnx, one) for one in _messages(proto)):
    raise InputError(
      f"{path!r} keeps its variables in other files: save it as one file."
    )
  try:
    arrays = {t.name: _array(onnx, t) for t in proto.graph.initializer}
    layers, obstacle = None, ""
    try:
      layers = _layers(onnx, proto.graph, dict(arrays))
    except _ObstacleError as error:
      obstacle = str(error)
  except _DamagedError as error:
    raise InputError(f"{path!r} is damaged: {error}.") from None
  metadata = {entry.key: entry.value for entry in proto.metadata_props}
  kinds = frozenset(node.op_type for node in proto.graph.node)
  sizes = [
    size.dim_value
    for output in proto.graph.output[:1]
    for size in output.type.tensor_type.shape.dim
  ]
  return OnnxFile(
    arrays,
    layers,
    obstacle,
    metadata,
    activations=kinds & set(ACTIVATIONS),
    embedding_size=(sizes[-1] or None) if sizes else None,
  )


class _DamagedError(ValueError):
  """A constant that cannot be read; says which and why."""


def _messages(message: Any) -> Iterator[Any]:
  """Yields all messages in one, at any depth, and itself."""
  rest = [message]
  while rest:
    one = rest.pop()
    yield one
    for field, value in one.ListFields():
      if field.type == field.TYPE_MESSAGE:
        repeated = hasattr(value, "__len__")
        rest.extend(value if repeated else [value])


def _is_elsewhere(onnx: ModuleType, message: Any) -> bool:
  """Whether these are numbers in another file, wherever in a graph.

  `numpy_helper` would read them from any place that the file names, relative to
  the folder where the command runs.
  """
  return isinstance(message, onnx.TensorProto) and (
    message.data_location == onnx.TensorProto.EXTERNAL
    or bool(message.external_data)
  )


def _array(onnx: ModuleType, tensor: Any) -> np.ndarray:
  """The numbers of a constant.

  Raises:
    _DamagedError: they cannot be read.
  """
  try:
    return onnx.numpy_helper.to_array(tensor)
  except Exception as error:  # Of several kinds, by what is damaged.
    raise _DamagedError(
      f"constant {tensor.name!r} cannot be read ({one_line(error, 100)})"
    ) from None


class _ObstacleError(ValueError):
  """A node that no layer here stands for."""


def _layers(
  onnx: ModuleType, graph: Any, arrays: dict[str, np.ndarray]
) -> list[OnnxLayer]:
  """Finds the layers of a graph; `arrays` are its constants, by name."""
  found: list[OnnxLayer] = []
  products: dict[str, OnnxLayer] = {}  # By the name of their result.
  for node in _in_order(graph):
    attributes = {
      entry.name: onnx.helper.get_attribute_value(entry)
      for entry in node.attribute
    }
    known = [arrays[name] for name in node.input[1:] if name in arrays]
    if node.op_type == "Constant" and "value" in attributes:
      arrays[node.output[0]] = _array(onnx, attributes["value"])
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
    elif node.op_type == "Clip" and _is_relu6(known, attributes):
      pass
    elif any(
      name in arrays and arrays[name].dtype.kind == "f" for name in node.input
    ):
      raise _ObstacleError(f"{node.op_type} {node.name!r}")
  return found


def _is_relu6(limits: list[np.ndarray], attributes: dict[str, Any]) -> bool:
  """Whether a Clip has the limits 0 and 6; before opset 11 as attributes."""
  found = limits or [attributes.get("min", -1), attributes.get("max", 0)]
  return [float(limit) for limit in found] == [0, 6]


def _in_order(graph: Any) -> list[Any]:
  """The nodes in an order in which they run, shortcuts after the long paths.

  PyTorch writes what ran first, which may be the shortcut: of what a node
  needs, what is deepest comes first here. What nothing needs comes last.
  """
  makers = {name: node for node in graph.node for name in node.output}
  depths: dict[str, int] = {}
  for node in graph.node:  # ONNX has them in an order that runs.
    depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
    depths |= dict.fromkeys(node.output, depth)
  ordered, done = [], set()
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
    elif needed and needed[0] is not node:
      waiting.append(needed[0])
    else:
      ordered.append(waiting.pop())
      done.add(id(node))
  return ordered


def _with_bias(kind: str, *arrays: np.ndarray) -> OnnxLayer:
  return OnnxLayer(kind, dict(zip(("weight", "bias"), arrays, strict=False)))
