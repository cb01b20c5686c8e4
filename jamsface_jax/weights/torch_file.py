"""Reads the tensors of a PyTorch file without PyTorch and without running it.

A file of `torch.save` is a zip archive with a pickle, which says what there is,
and a file of raw numbers for every storage. Before version 1.6, and still with
`_use_new_zipfile_serialization=False`, it is a row of pickles (a magic number,
a version, what machine wrote it, what there is, the keys of the storages) and
then the numbers of each storage after their count (`_legacy_save` in
`torch/serialization.py`). Pickles are read by `storage.plain_pickle`: what they
name is never imported or called.
"""

import dataclasses
import math
import zipfile
from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np

from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.plain_pickle import (
  Copies,
  Global,
  PickleRefusedError,
  PlainUnpickler,
  refuse,
)
from jamsface_jax.storage.plain_zip import UnsoundZipError, open_zip

# What `torch.save` wrote before version 1.6 starts with: a pickled number.
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OLD_VERSION = 1001

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
  ("torch._utils", "_rebuild_tensor"): "tensor",  # Before version 0.4.
  ("torch._utils", "_rebuild_parameter"): "parameter",
  ("collections", "OrderedDict"): "dict",
} | {
  (module, name): name
  for name in _STORAGES
  for module in ("torch", "torch.cuda")
}


class TorchFileError(ValueError):
  """Damaged, or more than tensors, numbers and texts; says what."""


def read_torch(path: str) -> dict:
  """Reads a file of `torch.save`.

  Args:
    path: a zip archive, or a file that begins with `OLD_MAGIC`.

  Returns:
    What was saved: nested dicts, lists and tuples of numbers, texts, and
    tensors as NumPy arrays, which share memory where the file's do.

  Raises:
    TorchFileError: damaged, or more than that; nothing has run.
  """
  try:
    with open(path, "rb", opener=plain) as file:
      old = file.read(len(OLD_MAGIC)) == OLD_MAGIC
    if old:
      with open(path, "rb", opener=plain) as file:
        found = _read_old(file.read())
    else:
      with open_archive(path) as archive:
        found = _read_archive(archive)
    _check_keys(found)
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
  storages: dict[str, _Storage] = {}

  def storage(key: str, dtype: np.dtype, count: int) -> _Storage:
    if key not in storages:
      try:
        data = _read_member(archive, f"{prefix}data/{key}")
      except TorchFileError as error:
        raise PickleRefusedError(str(error)) from None
      dtype = dtype.newbyteorder(_BYTE_ORDERS[order])
      if len(data) != count * dtype.itemsize:
        refuse(f"storage of {count} numbers in {len(data)} bytes")
      storages[key] = _Storage(np.frombuffer(data, dtype))
    return storages[key]

  return _Unpickler(_read_member(archive, prefix + "data.pkl"), storage).load()


def _read_old(data: bytes) -> object:
  """Reads what PyTorch wrote before version 1.6."""
  start = len(OLD_MAGIC)

  def load(storage: "_Open" = _no_storage) -> object:
    nonlocal start
    unpickler = _Unpickler(data, storage, start)
    found = unpickler.load()
    start = unpickler.end
    return found

  if load() != _OLD_VERSION:
    raise TorchFileError("it is of an unknown version of torch.save")
  match load():
    case {"little_endian": bool(little)}:
      order: Literal["<", ">"] = "<" if little else ">"
    case _:
      raise TorchFileError("it is damaged: it has no byte order")
  # The numbers come after the pickle that says what they are: it is run once
  # to learn that, with zeros, and once with them.
  told: dict[str, np.ndarray] = {}

  def promise(key: str, dtype: np.dtype, count: int) -> _Storage:
    if not 0 <= count * dtype.itemsize <= len(data):
      refuse(f"storage of {count} numbers in {len(data)} bytes")
    zeros = told.setdefault(key, np.zeros(count, dtype))
    if (zeros.dtype, len(zeros)) != (dtype, count):
      refuse(f"storage {ascii(key)[:40]} of two kinds")
    return _Storage(zeros)

  begin = start
  load(promise)
  storages = _old_storages(data, order, keys=load(), told=told, start=start)
  start = begin
  return load(lambda key, dtype, count: storages[key])


def _old_storages(
  data: bytes,
  order: Literal["<", ">"],
  *,
  keys: object,
  told: dict[str, np.ndarray],
  start: int,
) -> dict[str, "_Storage"]:
  """The numbers at the end of a file of before 1.6, by their keys.

  Raises:
    TorchFileError: they are not what the file says that they are.
  """
  if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(told):
    raise TorchFileError("it is damaged: its list of storages does not fit")
  storages = {}
  for key in keys:
    count = int.from_bytes(data[start : start + 8], "little")
    dtype = told[key].dtype.newbyteorder(order)
    start += 8
    if count != len(told[key]) or start + count * dtype.itemsize > len(data):
      raise TorchFileError("it is damaged or cut off: storages do not fit")
    storages[key] = _Storage(np.frombuffer(data, dtype, count, start))
    start += count * dtype.itemsize
  return storages


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


# Gives the storage of a key, of such numbers and so many.
_Open = Callable[[str, np.dtype, int], _Storage]


def _no_storage(key: str, dtype: np.dtype, count: int) -> _Storage:
  refuse("storage where none belongs")


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
  texts = "latin-1"  # Names in files that Python 2 wrote.

  def __init__(self, data: bytes, storage: _Open, start: int = 0):
    super().__init__(data, start)
    self._storage = storage

  def persistent_load(self, pid: Any) -> _Storage:
    """Gives the storage that a persistent id names."""
    match pid:
      case ("storage", Global(kind), str(key), str(), int(count), *view) if (
        kind in _STORAGES
      ):
        storage = self._storage(key, _STORAGES[kind], count)
        match view:
          case [] | [None]:
            return storage
          # Before version 0.4, of a part of another's numbers.
          case [(str(), int(offset), int(size))] if (
            0 <= offset <= offset + size <= count
          ):
            return _Storage(storage.values[offset : offset + size])
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
