"""Files of weights: arrays by name, and texts by name.

Written and read: safetensors (https://github.com/huggingface/safetensors) and
NumPy's `.npz`. Read too: PyTorch's and ONNX's. A file is told by how it begins.
"""

import dataclasses
import json
import math
import operator
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jamsface_jax.errors import InputError
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.weights import torch_file

METADATA = "metadata"  # Of an `.npz`: the entry that holds the texts as JSON.

_DTYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}
_WRITTEN = {dtype: name for name, dtype in _DTYPES.items()}
_MOST = 4  # Times the bytes of a PyTorch file that its tensors have.
_MAX_HEADER = 100_000_000  # Bytes; the limit of safetensors' own reader.
# Files of others, by how they begin, in front or after four bytes: what they
# are, and what to do with them.
_FOREIGN = {
  b"\x89HDF\r\n\x1a\n": (
    "HDF5, as Keras writes",
    "turn it into ONNX with tf2onnx (python -m tf2onnx.convert --keras FILE"
    " --output w.onnx) and give w.onnx",
  ),
  b"\x12\x01\0\0\0\0\0\0": (
    "a .params of MXNet",
    "turn it and its symbol into ONNX in MXNet 1.9 (mxnet.onnx.export_model)"
    " and give that",
  ),
  b"TFL3": (
    "TensorFlow Lite",
    "turn it into ONNX with tf2onnx (python -m tf2onnx.convert --tflite FILE"
    " --output w.onnx) and give w.onnx",
  ),
  b"7767517\n": (
    "ncnn's description of a network",
    "give the file that it was made from",
  ),
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """What a file of weights holds.

  Attributes:
    format: "safetensors", "numpy" or "pytorch".
    arrays: by name, in the order of the file.
    metadata: texts by name; empty for PyTorch's files.
    ordered: whether the order of the arrays is that of the network.
  """

  format: str
  arrays: dict[str, np.ndarray]
  metadata: dict[str, str]
  ordered: bool


class _DamagedError(ValueError):
  """Says what is wrong with a file."""


def read(path: str) -> WeightFile:
  """Reads a file of weights that is not ONNX.

  Raises:
    InputError: no such file, not a file of weights, or damaged.
  """
  try:
    with open(path, "rb", opener=plain) as file:
      start = file.read(len(torch_file.OLD_MAGIC))
    if start[8:9] == b"{":
      return _read_safetensors(path)
    if start.startswith(b"PK\x03\x04"):
      with torch_file.open_archive(path) as archive:
        names = archive.namelist()
      if any(name.endswith(".npy") for name in names):
        return _read_npz(path)
      if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
          f"{path!r} is TorchScript, a program beside its tensors: write these"
          " in PyTorch with torch.save(torch.jit.load(FILE).state_dict(),"
          " 'w.pth') and give w.pth."
        )
      return _read_pytorch(path)
    if start == torch_file.OLD_MAGIC:
      return _read_pytorch(path)
  except OSError as error:
    raise InputError(
      f"{path!r} cannot be read ({error.strerror}): give a file of weights."
    ) from None
  except (
    _DamagedError,
    torch_file.TorchFileError,
  ) as error:
    raise InputError(
      f"{path!r} cannot be used ({error}): give another file, or save its"
      " state_dict alone."
    ) from None
  for begins, (kind, advice) in _FOREIGN.items():
    if begins in (start[: len(begins)], start[4 : 4 + len(begins)]):
      raise InputError(f"{path!r} is {kind}: {advice}.")
  raise InputError(
    f"{path!r} is not a file of weights: give a .safetensors, .npz, .onnx, or a"
    " .pth of torch.save."
  )


def write_safetensors(
  path: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
  """Writes a safetensors file, arrays in the order given.

  Args:
    path: the new file.
    arrays: of any dtype that the format has.
    metadata: texts, which the format keeps as `__metadata__`.
  """
  header: dict = {"__metadata__": dict(metadata)}
  offset = 0
  for name, array in arrays.items():
    header[name] = {
      "dtype": _WRITTEN[array.dtype],
      "shape": array.shape,
      "data_offsets": (offset, offset + array.nbytes),
    }
    offset += array.nbytes
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # Numbers begin at a multiple of 8.
  with open(path, "wb", opener=plain) as file:
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array in arrays.values():
      kind = _DTYPES[_WRITTEN[array.dtype]]  # In its order of bytes.
      file.write(np.ascontiguousarray(array, kind).data)


def write_npz(
  path: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
  """Writes NumPy's `.npz`, with the texts as JSON in the entry `metadata`."""
  with open(
    path, "wb", opener=plain
  ) as file:  # By name, NumPy would add an ending.
    texts = {METADATA: np.array(json.dumps(metadata))}
    np.savez(file, allow_pickle=True, **texts, **arrays)


def _read_safetensors(path: str) -> WeightFile:
  total = os.path.getsize(path)
  with open(path, "rb", opener=plain) as file:
    size = int.from_bytes(file.read(8), "little")
    if size > min(_MAX_HEADER, total - 8):
      raise _DamagedError("its header reaches beyond the file")
    try:
      header = plain_json.parse(file.read(size))
      metadata = header.pop("__metadata__", {})
      entries = sorted(
        (_entry(name, **entry) for name, entry in header.items()),
        key=lambda entry: entry.start,
      )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise _DamagedError(f"its header is damaged: {error!r}") from None
    data = file.read()
  arrays, expected = {}, 0
  for entry in entries:
    # The format has neither holes nor overlaps.
    size = math.prod(entry.shape) * entry.dtype.itemsize
    if (
      entry.start != expected
      or min(entry.shape, default=0) < 0
      or entry.stop - entry.start != size
      or entry.stop > len(data)
    ):
      raise _DamagedError(f"{entry.name!r} does not fit the numbers it has")
    numbers = np.frombuffer(data, np.uint8, size, entry.start)
    arrays[entry.name] = numbers.view(entry.dtype).reshape(entry.shape)
    expected = entry.stop
  return WeightFile("safetensors", arrays, _texts(metadata), ordered=False)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """What the header of a safetensors file says of an array."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int
  stop: int


def _entry(name: str, dtype: Any, shape: Any, data_offsets: Any) -> _Entry:
  """Reads what a header says; errors of many kinds if it makes no sense."""
  start, stop = map(operator.index, data_offsets)
  shape = tuple(map(operator.index, shape))
  return _Entry(name, _DTYPES[dtype], shape, start, stop)


def _read_npz(path: str) -> WeightFile:
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
    metadata = plain_json.parse(str(arrays.pop(METADATA, "{}")))
  except Exception as error:  # zipfile and NumPy have many for damage.
    raise _DamagedError(f"it is damaged: {error}") from None
  return WeightFile("numpy", arrays, _texts(metadata), ordered=True)


def _read_pytorch(path: str) -> WeightFile:
  found = _find_network(torch_file.read_torch(path))
  arrays = {
    str(name): value
    for name, value in found.items()
    if isinstance(value, np.ndarray)
  }
  # Tensors may share their numbers, which others will copy.
  if sum(a.nbytes for a in arrays.values()) > _MOST * os.path.getsize(path):
    raise _DamagedError("its tensors show the same numbers over and over")
  return WeightFile("pytorch", arrays, {}, ordered=True)


# Where trainers put a network in checkpoints that hold other tensors too.
_NETWORK_KEYS = ("state_dict_backbone", "state_dict", "backbone", "model")


def _find_network(found: dict) -> dict:
  """The network in a training checkpoint, under whatever name.

  It is the one dict with tensors by name, or the one under a name of
  `_NETWORK_KEYS`. What an optimizer keeps is by number.

  Raises:
    _DamagedError: there is none, or several.
  """
  while not any(isinstance(value, np.ndarray) for value in found.values()):
    inner = {key: value for key, value in found.items() if _has_tensors(value)}
    known = {key: inner[key] for key in _NETWORK_KEYS if key in inner}
    if len(inner) > 1 and len(known) == 1:
      inner = known
    if len(inner) != 1:
      raise _DamagedError(
        f"it has tensors under {', '.join(map(repr, inner))}, and which is the"
        " network is not known"
        if inner
        else "it has no tensors by name"
      )
    (found,) = inner.values()
  return found


def _has_tensors(value: object) -> bool:
  """Whether this is a dict that has tensors by name, at any depth."""
  rest, seen = [value], set()
  while rest:
    one = rest.pop()
    if not isinstance(one, dict) or id(one) in seen:
      continue
    seen.add(id(one))  # A dict may hold itself.
    named = [value for key, value in one.items() if isinstance(key, str)]
    if any(isinstance(value, np.ndarray) for value in named):
      return True
    rest.extend(named)
  return False


def _texts(metadata: object) -> dict[str, str]:
  if not isinstance(metadata, dict) or not all(
    isinstance(text, str) for text in metadata.values()
  ):
    raise _DamagedError("its metadata are not texts")
  return metadata
