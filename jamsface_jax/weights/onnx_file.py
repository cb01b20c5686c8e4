"""ONNX files of backbones: run, and read layer by layer.

Needs the packages of the extra `onnx`.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from jamsface_jax import interruption
from jamsface_jax.errors import InputError
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.weights.normalization import USUAL, Normalization
from jamsface_jax.weights.onnx_layers import (
  DamagedError,
  ObstacleError,
  OnnxEntry,
  OnnxLayer,
  array_of,
  find_layers,
)


def packages() -> tuple[ModuleType, ModuleType]:
  """Imports onnx and onnxruntime.

  Raises:
    InputError: they are not installed.
  """
  try:
    with interruption.postponed():
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
  onnx, runtime = packages()
  proto = _load(onnx, path)
  for spare in set(_spare_inputs(proto.graph)):
    names = [one.name for one in proto.graph.input]
    del proto.graph.input[names.index(spare)]
  network = runtime.InferenceSession(
    proto.SerializeToString(), providers=["CPUExecutionProvider"]
  )
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
      if entry.shape[-1] != 3:  # PyTorch's axes; TensorFlow's are NumPy's.
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


def _spare_inputs(graph: Any) -> Iterator[str]:
  """Yields inputs that are constants, or that nothing reads.

  MXNet's exporter lists the constants, and OpenCV's quantiser leaves the names
  of those that it replaces.
  """
  constants = {tensor.name for tensor in graph.initializer}
  read = {name for node in graph.node for name in node.input}
  for one in graph.input:
    if one.name in constants or one.name not in read:
      yield one.name


# What nodes of a graph are called here; a Clip may have other limits than 6,
# which shows when the graph is run.
ACTIVATIONS = {"PRelu": "prelu", "Clip": "relu6", "Relu": "relu"}
# Nodes that compute with whole numbers. DequantizeLinear is none of them: of
# constants alone, it makes kernels.
_QUANTISED = {
  "QuantizeLinear",
  "DynamicQuantizeLinear",
  "QLinearConv",
  "QLinearMatMul",
  "ConvInteger",
  "MatMulInteger",
}


@dataclasses.dataclass(frozen=True)
class OnnxFile:
  """What an ONNX file holds.

  Attributes:
    arrays: constants by name.
    layers: in the order in which they run; None if there are others than those
      of `OnnxLayer`.
    obstacle: what layer that was.
    metadata: texts by name.
    entry: what it does to images first; None if it has no `layers`.
    activations: kinds of nodes of those of `ACTIVATIONS` that there are.
    embedding_size: length of the first output; None: the graph does not say.
    products: names of the matrices that something is multiplied by, in the
      order of the graph.
  """

  arrays: dict[str, np.ndarray]
  layers: list[OnnxLayer] | None
  obstacle: str
  metadata: dict[str, str]
  entry: OnnxEntry | None
  activations: frozenset[str]
  embedding_size: int | None
  products: tuple[str, ...] = ()


def read(path: str) -> OnnxFile:
  """Reads the variables of an ONNX file.

  Raises:
    InputError: no such file, not ONNX, or with variables elsewhere.
  """
  onnx, _ = packages()
  try:
    proto = _load(onnx, path)
  except OSError as error:
    raise InputError(
      f"{path!r} cannot be read ({error.strerror}): give a file of weights."
    ) from None
  except InputError:
    raise
  except Exception:  # Of protobuf, which has an error class per build.
    proto = None
  if proto is None or not proto.graph.node:
    raise InputError(
      f"{path!r} is not an ONNX file, or it is damaged: give one that"
      " onnxruntime opens."
    )
  quantised = {node.op_type for node in proto.graph.node} & _QUANTISED
  if quantised:
    raise InputError(
      f"{path!r} computes in whole numbers ({min(quantised)}), which a network"
      " here cannot do: give the file that it was quantised from."
    )
  try:
    arrays = {t.name: array_of(onnx, t) for t in proto.graph.initializer}
    layers, obstacle, entry = None, "", None
    try:
      layers, entry = find_layers(onnx, proto.graph, dict(arrays))
    except ObstacleError as error:
      obstacle = str(error)
  except DamagedError as error:
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
    entry=entry,
    activations=kinds & set(ACTIVATIONS),
    embedding_size=(sizes[-1] or None) if sizes else None,
    products=tuple(
      node.input[1]
      for node in proto.graph.node
      if node.op_type == "MatMul" and node.input[1] in arrays
    ),
  )


def _load(onnx: ModuleType, path: str) -> Any:
  """Reads a graph with the numbers that it keeps in files beside it.

  PyTorch's newer exporter writes `w.onnx.data` beside `w.onnx`. Of what a graph
  names, only plain files in its own folder are opened.

  Raises:
    InputError: numbers are elsewhere, or are not what the graph says.
    Exception: of several kinds, it is no ONNX file.
  """
  with open(path, "rb", opener=plain) as file:
    proto = onnx.load(file, load_external_data=False)
  folder = os.path.dirname(path) or "."
  for tensor in _messages(proto):
    if not _is_elsewhere(onnx, tensor):
      continue
    place = {entry.key: entry.value for entry in tensor.external_data}
    name = place.get("location", "")
    beside = os.path.join(folder, name)
    if not name or name != os.path.basename(name) or not os.path.isfile(beside):
      raise InputError(
        f"{path!r} keeps its variables in other files, and {name!r} is none in"
        " its folder: put it there, or save both as one file."
      )
    start, size = (int(place.get(key) or 0) for key in ("offset", "length"))
    with open(beside, "rb", opener=plain) as file:
      file.seek(start)
      tensor.raw_data = file.read(size) if size else file.read()
    if size and len(tensor.raw_data) != size:
      raise InputError(
        f"{path!r} keeps its variables in {name!r}, which is cut off: give both"
        " as they were written."
      )
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
  return proto


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
