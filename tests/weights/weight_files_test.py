"""Files of weights: read as others write them, refused when damaged."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from torch_files import (
  Call,
  Named,
  Storage,
  dump,
  old_storage,
  tensor,
  write_old_torch,
  write_torch,
)

from jamsface_jax.errors import InputError
from jamsface_jax.weights import torch_file, weight_files

rng = np.random.default_rng(0)
ARRAYS = {
  "b.weight": rng.normal(size=(3, 2, 1)).astype(np.float32),
  "a": rng.normal(size=5).astype(np.float32),
}
TEXTS = {"color_order": "RGB", "sign": "\u00e9"}


def assert_same(found, expected):
  assert list(found) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, strict=True)


def test_safetensors_as_its_own_library_reads_them(tmp_path):
  path = str(tmp_path / "w")
  weight_files.write_safetensors(path, ARRAYS, TEXTS)
  assert safetensors.numpy.load_file(path).keys() == ARRAYS.keys()
  for name, array in safetensors.numpy.load_file(path).items():
    np.testing.assert_array_equal(array, ARRAYS[name], strict=True)
  with safetensors.safe_open(path, "numpy") as file:
    assert file.metadata() == TEXTS
  with open(path, "rb") as file:  # Numbers can be mapped as they are.
    assert int.from_bytes(file.read(8), "little") % 8 == 0


def test_safetensors_as_its_own_library_writes_them(tmp_path):
  path = str(tmp_path / "w")
  arrays = ARRAYS | {
    "half": np.float16([1, 2]),
    "count": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
  }
  safetensors.numpy.save_file(arrays, path, TEXTS)
  file = weight_files.read(path)
  assert (file.format, file.ordered) == ("safetensors", False)
  assert file.metadata == TEXTS
  assert_same({k: file.arrays[k] for k in arrays}, arrays)


def test_npz_there_and_back(tmp_path):
  path = str(tmp_path / "w")
  weight_files.write_npz(path, ARRAYS, TEXTS)
  assert os.listdir(tmp_path) == ["w"]
  file = weight_files.read(path)
  assert (file.format, file.ordered) == ("numpy", True)
  assert file.metadata == TEXTS
  assert_same(file.arrays, ARRAYS)
  np.savez(tmp_path / "plain.npz", x=ARRAYS["a"])
  assert weight_files.read(str(tmp_path / "plain.npz")).metadata == {}


def test_torch_files(tmp_path):
  shared = Storage("0", np.arange(12, dtype=np.float32))
  counter = Storage("1", np.array([5]), "LongStorage")
  half = Storage("2", np.float16([1, 2, 3]), "HalfStorage")
  value = {
    "a": tensor(shared, (2, 3), (3, 1), 1),
    "transposed": tensor(shared, (3, 4), (1, 3)),
    "parameter": Call(
      "torch._utils", "_rebuild_parameter", tensor(half, (3,), (1,)), True, ()
    ),
    "count": tensor(counter, (), ()),
    "epoch": 3,
    "rate": 0.1,
  }
  file = weight_files.read(
    write_torch(tmp_path / "x.pth", value, [shared, counter, half])
  )
  assert (file.format, file.ordered) == ("pytorch", True)
  expected = {
    "a": np.arange(1, 7, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(12, dtype=np.float32).reshape(4, 3).T,
    "parameter": half.array,
    "count": np.array(5),
  }
  assert_same(file.arrays, expected)


def test_torch_files_of_big_endian_machines(tmp_path):
  storage = Storage("0", np.arange(4, dtype=">f4"))
  path = tmp_path / "x.pth"
  write_torch(path, {"a": tensor(storage, (4,), (1,))}, [storage], b"big")
  found = weight_files.read(str(path)).arrays["a"]
  np.testing.assert_array_equal(found, np.arange(4))


def test_networks_within_checkpoints(tmp_path):
  storage = Storage("0", np.arange(4, dtype=np.float32))
  inner = {"a": tensor(storage, (4,), (1,))}
  path = tmp_path / "x.pth"
  write_torch(path, {"epoch": 3, "state_dict": {"backbone": inner}}, [storage])
  assert list(weight_files.read(str(path)).arrays) == ["a"]
  optimizer = {"state": {0: {"momentum_buffer": inner["a"]}}}
  for found in (
    {"net_state_dict": inner, "epoch": 3},
    {"generator": {"net": inner}, "optimizer": optimizer},
    {"head": {"b": inner["a"]}, "backbone": inner},
  ):
    write_torch(path, found, [storage])
    assert list(weight_files.read(str(path)).arrays) == ["a"]
  for several in ("state_dict", "backbone"), ("student", "teacher"):
    write_torch(path, dict.fromkeys(several, inner), [storage])
    with pytest.raises(InputError, match="'{}', '{}'".format(*several)):
      weight_files.read(str(path))
  write_torch(path, {"optimizer": optimizer}, [storage])
  with pytest.raises(InputError, match="no tensors by name"):
    weight_files.read(str(path))


@pytest.mark.parametrize("little", [True, False])
def test_torch_files_of_before_1_6(tmp_path, little):
  shared = old_storage("94", np.arange(12, dtype=np.float32))
  counter = old_storage("7", np.array([5]), "LongStorage")
  part = old_storage("94", np.arange(12, dtype=np.float32), view=("95", 4, 3))
  moved = old_storage("8", np.float16([1, 2]), "HalfStorage")
  moved.identity = (
    "storage",
    Named("torch.cuda", "HalfStorage"),
    "8",
    "cuda:0",
    2,
    None,
  )
  network = {
    "module.a": tensor(shared, (2, 3), (3, 1), 1),
    "module.b": Call("torch._utils", "_rebuild_tensor", part, 1, (2,), (1,)),
    "module.count": tensor(counter, (), ()),
    "module.half": tensor(moved, (2,), (1,)),
  }
  storages = [counter, shared, moved]
  path = tmp_path / "068.ckpt"
  value = {"epoch": 68, "net_state_dict": network}
  write_old_torch(path, value, storages, little)
  file = weight_files.read(str(path))
  assert (file.format, file.ordered) == ("pytorch", True)
  expected = {
    "module.a": np.arange(1, 7).reshape(2, 3),
    "module.b": np.array([5, 6]),
    "module.count": np.array(5),
    "module.half": np.array([1, 2]),
  }
  assert list(file.arrays) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(file.arrays[name], array)
    assert file.arrays[name].shape == array.shape


def test_old_torch_files_that_are_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  small = old_storage("0", np.arange(6, dtype=np.float32))
  other = old_storage("0", np.arange(6), "LongStorage")
  long = old_storage("0", np.zeros(0, np.float32))
  long.identity = (*long.identity[:4], 2**60, None)
  good = {"a": tensor(small, (6,), (1,))}
  for value, keys, says in (
    (Call("os", "system", "touch HERE"), None, "global 'os.system'"),
    (good | {"b": tensor(other, (6,), (1,))}, None, "of two kinds"),
    ({"a": tensor(long, (6,), (1,))}, None, "storage of"),
    ({"a": tensor(small, (7,), (1,))}, None, "does not fit its numbers"),
    (good, ["1"], "list of storages"),
    (good, [], "list of storages"),
  ):
    write_old_torch("x", value, [small], keys=keys)
    with pytest.raises(InputError, match=says):
      weight_files.read("x")
  write_old_torch("x", good, [small])
  whole = (tmp_path / "x").read_bytes()
  (tmp_path / "x").write_bytes(whole[:-1])
  with pytest.raises(InputError, match="cut off"):
    weight_files.read("x")
  assert os.listdir() == ["x"]  # Nothing has run.


SMALL = Storage("0", np.arange(6, dtype=np.float32))


@pytest.mark.parametrize(
  ("value", "says"),
  [
    (Call("os", "system", "touch HERE"), "global 'os.system'"),
    (Call("builtins", "eval", "1"), "global 'builtins.eval'"),
    ({"a": Named("torch.nn", "Linear")}, "global 'torch.nn.Linear'"),
    ({"a": tensor(SMALL, (7,), (1,))}, "does not fit its numbers"),
    ({"a": tensor(SMALL, (2, 3), (4, 1))}, "does not fit its numbers"),
    ({"a": tensor(SMALL, (6,), (1,), 1)}, "does not fit its numbers"),
    ({"a": tensor(SMALL, (2**62,), (0,))}, "does not fit its numbers"),
    ({"a": tensor(SMALL, (-1,), (1,))}, "unknown form"),
    ({"a": tensor(SMALL, (True,), (1,))}, "unknown form"),
    ({"a": tensor(SMALL, (1,) * 99, (1,) * 99)}, "does not fit its numbers"),
    ({("a",): 1}, "key that is neither"),
    ([1, 2], "holds a list"),
    ({"a": 1}, "no tensors"),
    (b"\x80\x02}X\x01\x00", "cut off"),
    (b"\x80\x02u.", "damaged at byte"),
  ],
)
def test_torch_files_that_are_refused(tmp_path, monkeypatch, value, says):
  monkeypatch.chdir(tmp_path)
  path = write_torch("x.pth", value, [SMALL])
  with pytest.raises(InputError, match=says):
    weight_files.read(path)
  assert os.listdir() == ["x.pth"]  # Nothing has run.


def test_pickle_that_python_would_run(tmp_path, monkeypatch):
  """The same bytes do harm in Python's own reader: the test can fail."""
  monkeypatch.chdir(tmp_path)
  data = dump(Call("os", "system", "touch HERE"))
  path = write_torch("x.pth", data, [])
  with pytest.raises(InputError, match=r"os\.system"):
    weight_files.read(path)
  assert not os.path.exists("HERE")
  pickle.loads(data)
  assert os.path.exists("HERE")


def test_storage_that_is_short(tmp_path):
  storage = Storage("0", np.arange(6, dtype=np.float32))
  storage.identity = (*storage.identity[:4], 7)
  path = write_torch(
    tmp_path / "x", {"a": tensor(storage, (6,), (1,))}, [storage]
  )
  with pytest.raises(InputError, match="storage of 7 numbers in 24 bytes"):
    weight_files.read(path)
  with pytest.raises(InputError, match="damaged"):
    weight_files.read(
      write_torch(tmp_path / "y", {"a": tensor(SMALL, (6,), (1,))}, [])
    )


def test_compressed_torch_file(tmp_path):
  path = write_torch(
    tmp_path / "x", {"a": 1}, [], compression=zipfile.ZIP_DEFLATED
  )
  with pytest.raises(InputError, match="compressed"):
    weight_files.read(path)


def safetensors_bytes(header, data=b""):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, stop, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
  ("data", "says"),
  [
    (b"", "not a file of weights"),
    (b"GIF89a" * 10, "not a file of weights"),
    (torch_file.OLD_MAGIC + b"more", "instruction b'm' at byte 15"),
    (b"PK\x03\x04 and nothing", "cannot be used"),
    (struct.pack("<Q", 2**60) + b"{}", "beyond the file"),
    (safetensors_bytes(b"{" + b"x" * 20), "header is damaged"),
    (safetensors_bytes({"a": {}}), "header is damaged"),
    (safetensors_bytes({"a": 3}), "header is damaged"),
    (safetensors_bytes({"a": entry(["x"], 0, 4)}, bytes(4)), "header is dam"),
    (safetensors_bytes({"a": entry(3, 0, 4)}, bytes(4)), "header is damaged"),
    (safetensors_bytes({"a": entry([1], 0, 4, "F8")}), "header is damaged"),
    (safetensors_bytes({"a": entry([1], 0, 4)}), "does not fit"),
    (safetensors_bytes({"a": entry([2], 0, 4)}, bytes(4)), "does not fit"),
    (safetensors_bytes({"a": entry([1], 4, 8)}, bytes(8)), "does not fit"),
    (safetensors_bytes({"a": entry([-1, -1], 0, 4)}, bytes(4)), "not fit"),
    (safetensors_bytes({"__metadata__": {"a": 1}}), "not texts"),
  ],
)
def test_files_that_are_refused(tmp_path, data, says):
  path = tmp_path / "x"
  path.write_bytes(data)
  with pytest.raises(InputError, match=says) as error:
    weight_files.read(str(path))
  assert str(path) in str(error.value)


def test_objects_in_npz_are_refused(tmp_path):
  np.savez(tmp_path / "x.npz", a=np.array([print], dtype=object))
  with pytest.raises(InputError, match="damaged"):
    weight_files.read(str(tmp_path / "x.npz"))


def test_no_such_file(tmp_path):
  with pytest.raises(InputError, match="No such file"):
    weight_files.read(str(tmp_path / "x"))
  with pytest.raises(InputError, match="directory"):
    weight_files.read(str(tmp_path))


def test_any_flipped_byte_is_read_or_refused(tmp_path):
  storage = Storage("0", np.arange(6, dtype=np.float32))
  write_torch(tmp_path / "t", {"a": tensor(storage, (6,), (1,))}, [storage])
  weight_files.write_safetensors(str(tmp_path / "s"), ARRAYS, TEXTS)
  weight_files.write_npz(str(tmp_path / "n"), ARRAYS, TEXTS)
  old = old_storage("0", np.arange(6, dtype=np.float32))
  write_old_torch(tmp_path / "o", {"a": tensor(old, (6,), (1,))}, [old])
  for name in "tsno":
    whole = (tmp_path / name).read_bytes()
    for position in range(0, len(whole), 3):
      for change in (0xFF, 0x01):
        data = bytearray(whole)
        data[position] ^= change
        path = tmp_path / "changed"
        path.write_bytes(data)
        try:
          weight_files.read(str(path))
        except InputError:
          pass
