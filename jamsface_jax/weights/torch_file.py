"""Reads the tensors of a PyTorch file without PyTorch and without running it.

A file of `torch.save` is a zip archive with a pickle, which says what there is,
and a file of raw numbers for every storage. The pickle is read by
`storage.plain_pickle`: what it names is never imported or called.
"""

import dataclasses
import math
import zipfile
from typing import Any, Literal

import ml_dtypes
import numpy as np

from jamsface_jax.storage.plain_pickle import (
  Copies,
  Global,
  PickleRefusedError,
  PlainUnpickler,
  refuse,
)
from jamsface_jax.storage.plain_zip import UnsoundZipError, open_zip

# What `torch.save` wrote before version 1.6 starts with.
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_MAX_DIMENSIONS = 8
_BYTE_ORDERS: dict[bytes, Literal["<", ">"]] = {b"little": "<", b"big": ">"}
_STORAGES = {
  "DoubleStorage": np.dtype(np.float64),
  "FloatStorage": np.dtype(np.float32),
  "HalfStorage": np.dtype(np.float16),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype(np.int64),
  "IntStorage": np.dtype(np.int32),
  "ShortStorage": np.dtype(np.int16),
  "CharStorage": np.dtype(np.int8),
  "ByteStorage": np.dtype(np.uint8),
  "BoolStorage": np.dtype(np.bool_),
}
_GLOBALS = {
  ("torch._utils", "_rebuild_tensor_v2"): "tensor",
  ("torch._utils", "_rebuild_parameter"): "parameter",
  ("collections", "OrderedDict"): "dict",
} | {("torch", name): name for name in _STORAGES}


class TorchFileError(ValueError):
  """Damaged, or more than tensors, numbers and texts; says what."""


def read_torch(path: str) -> dict:
  """Reads a file of `torch.save`.

  Args:
    path: a zip archive.

  Returns:
    What was saved: nested dicts, lists and tuples of numbers, texts, and
    tensors as NumPy arrays, which share memory where the file's do.

  Raises:
    TorchFileError: damaged, or more than that; nothing has run.
  """
  try:
    with open_archive(path) as archive:
      found = _read_archive(archive)
  except PickleRefusedError as error:
    raise TorchFileError(str(error)) from None
  if not isinstance(found, dict):
    raise TorchFileError(f"it holds a {type(found).__name__}, not a state_dict")
  return found


def open_archive(path: str) -> zipfile.ZipFile:
  """Opens a zip archive.

  Raises:
    TorchFileError: it is damaged.
  """
  try:
    return open_zip(path)
  except UnsoundZipError as error:
    raise TorchFileError(str(error)) from None


def _read_archive(archive: zipfile.ZipFile) -> object:
  names = archive.namelist()
  pickles = [name for name in names if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise TorchFileError("it is a zip archive, but not of torch.save")
  if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
    raise TorchFileError("it is compressed, as torch.save does not")
  prefix = pickles[0].removesuffix("data.pkl")
  order = b"little"
  if prefix + "byteorder" in names:
    order = _read_member(archive, prefix + "byteorder")
  if order not in _BYTE_ORDERS:
    raise TorchFileError(f"it is damaged: byte order {ascii(order)[:20]}")
  found = _Unpickler(archive, prefix, _BYTE_ORDERS[order]).load()
  _check_keys(found)
  return found


def _check_keys(found: object) -> None:
  """Refuses dicts with other keys than texts and numbers."""
  rest, seen = [found], set()
  while rest:
    one = rest.pop()
    if id(one) in seen:  # What is shared, or holds itself.
      continue
    seen.add(id(one))
    if isinstance(one, dict):
      if not all(isinstance(key, str | int) for key in one):
        refuse("key that is neither text nor a number")
      rest.extend(one.values())
    elif isinstance(one, list | tuple):
      rest.extend(one)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  try:
    return archive.read(name)
  except Exception as error:  # Such as a password that is wanted.
    raise TorchFileError(f"it is damaged: {error}") from None


@dataclasses.dataclass(frozen=True)
class _Storage:
  """The numbers that tensors are views of."""

  values: np.ndarray


class _Dict(dict):
  """An OrderedDict: what it has as attribute is left out."""

  def __setstate__(self, state: object) -> None:
    """Leaves out the versions of modules, which a state_dict has."""
    if not isinstance(state, dict):
      refuse("state in an unknown form")


class _Unpickler(PlainUnpickler):
  """Adds dicts, floats, storages and tensors to plain data."""

  instructions = PlainUnpickler.instructions | {
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
    "BINFLOAT",
    "BINPERSID",
  }
  globals = PlainUnpickler.globals | _GLOBALS

  def __init__(
    self, archive: zipfile.ZipFile, prefix: str, order: Literal["<", ">"]
  ):
    super().__init__(_read_member(archive, prefix + "data.pkl"))
    self._archive = archive
    self._prefix = prefix
    self._order = order
    self._storages: dict[str, _Storage] = {}

  def persistent_load(self, pid: Any) -> _Storage:
    """Gives the storage that a persistent id names, read once."""
    match pid:
      case ("storage", Global(kind), str(key), str(), int(count)) if (
        kind in _STORAGES
      ):
        if key not in self._storages:
          try:
            data = _read_member(self._archive, f"{self._prefix}data/{key}")
          except TorchFileError as error:
            raise PickleRefusedError(str(error)) from None
          dtype = _STORAGES[kind].newbyteorder(self._order)
          if len(data) != count * dtype.itemsize:
            refuse(f"storage of {count} numbers in {len(data)} bytes")
          self._storages[key] = _Storage(np.frombuffer(data, dtype))
        return self._storages[key]
    refuse("storage in an unknown form")

  @staticmethod
  def call(meaning: str, arguments: tuple, copies: Copies) -> object:
    """See `PlainUnpickler.call`."""
    match meaning, arguments:
      case "dict", ():
        return _Dict()
      case "parameter", (np.ndarray() as tensor, *_):
        return tensor
      case "tensor", (
        _Storage(values),
        int(offset),
        tuple(shape),
        tuple(strides),
        *_,
      ):
        return _tensor(values, offset, shape, strides)
    return PlainUnpickler.call(meaning, arguments, copies)


def _tensor(
  values: np.ndarray, offset: int, shape: tuple, strides: tuple
) -> np.ndarray:
  """A view of a storage, within its bounds."""
  sizes = (*shape, *strides, offset)
  if len(shape) != len(strides) or not all(
    type(size) is int and size >= 0 for size in sizes
  ):
    refuse("tensor in an unknown form")
  last = offset + sum(
    (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
  )
  # More elements than numbers, with strides of 0, would be a bomb.
  if len(shape) > _MAX_DIMENSIONS or not (
    0 not in shape and last < len(values) and math.prod(shape) <= len(values)
  ):
    refuse("tensor that does not fit its numbers")
  return np.lib.stride_tricks.as_strided(
    values[offset:],
    shape,
    [stride * values.itemsize for stride in strides],
    writeable=False,
  )
