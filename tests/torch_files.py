"""Files of PyTorch, written without it."""

import pickle
import zipfile

import numpy as np


class Storage:
  def __init__(self, key, array, kind="FloatStorage"):
    self.array = array
    self.identity = ("storage", Named("torch", kind), key, "cpu", array.size)


class Named:
  """A name in a module that need not exist."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  """A call of a name."""

  def __init__(self, module, name, *arguments):
    self.function, self.arguments = Named(module, name), arguments


def dump(value, protocol=2):
  """Pickles plain data, names, calls and storages, without any of them there.

  `pickle` itself refuses to write names that it cannot import.
  """
  out = [b"\x80\x02"]

  def write(value):
    match value:
      case Named():
        out.append(f"c{value.module}\n{value.name}\n".encode())
      case Call():
        write(value.function)
        write(value.arguments)
        out.append(pickle.REDUCE)
      case Storage():
        write(value.identity)
        out.append(pickle.BINPERSID)
      case dict():
        out.append(pickle.EMPTY_DICT + pickle.MARK)
        for key, item in value.items():
          write(key)
          write(item)
        out.append(pickle.SETITEMS)
      case tuple():
        out.append(pickle.MARK)
        for item in value:
          write(item)
        out.append(pickle.TUPLE)
      case _:  # Without the protocol before and the stop after.
        out.append(pickle.dumps(value, protocol)[2:-1])

  write(value)
  return b"".join(out) + pickle.STOP


def tensor(storage, shape, strides, offset=0):
  return Call(
    "torch._utils",
    "_rebuild_tensor_v2",
    storage,
    offset,
    shape,
    strides,
    False,
    Call("collections", "OrderedDict"),
  )


def write_torch(path, value, storages, byteorder=b"little", **changes):
  data = value if isinstance(value, bytes) else dump(value)
  with zipfile.ZipFile(path, "w", **changes) as archive:
    archive.writestr("archive/data.pkl", data)
    archive.writestr("archive/byteorder", byteorder)
    for storage in storages:
      archive.writestr(
        f"archive/data/{storage.identity[2]}", storage.array.tobytes()
      )
  return str(path)


def write_pth(path, arrays):
  storages = [
    Storage(str(k), np.ascontiguousarray(array, np.float32))
    for k, array in enumerate(arrays.values())
  ]
  entries = {}
  for (name, array), storage in zip(arrays.items(), storages, strict=True):
    strides = [s // 4 for s in np.empty(array.shape, np.float32).strides]
    entries[name] = tensor(storage, array.shape, tuple(strides))
  return write_torch(path, entries, storages)


OLD_MAGIC = 0x1950A86A20F9469CFC6C  # Of torch/serialization.py.


def write_old_torch(path, value, storages, little=True, keys=None):
  """Writes what `torch.save` wrote before version 1.6, as its source says.

  Five pickles (a magic number, a version, the machine, the value, the keys of
  the storages), then for each key a count of 64 bits and the numbers.
  """
  order = "<" if little else ">"
  machine = {"protocol_version": 1001, "little_endian": little}
  machine["type_sizes"] = {"short": 2, "int": 4, "long": 4}
  keys = [s.identity[2] for s in storages] if keys is None else keys
  with open(path, "wb") as file:
    for part in (OLD_MAGIC, 1001, machine):
      file.write(pickle.dumps(part, 2))
    file.write(value if isinstance(value, bytes) else dump(value))
    file.write(pickle.dumps(keys, 2))
    for storage in storages:
      array = storage.array
      file.write(array.size.to_bytes(8, "little"))
      file.write(array.astype(array.dtype.newbyteorder(order)).tobytes())
  return str(path)


def old_storage(key, array, kind="FloatStorage", view=None):
  """A storage as old files name it: with what it is a part of, if it is."""
  storage = Storage(key, array, kind)
  storage.identity = (*storage.identity, view)
  return storage
