"""JSON, arrays, archives and weights that promise more than they have."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import peak_memory
import pytest

from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_array import map_array, read_array
from jamsface_jax.storage.plain_zip import UnsoundZipError, open_zip
from jamsface_jax.storage.run_directory import RunFile
from jamsface_jax.weights import weight_files

MIB = 2**20


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_json_is_no_json(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="too deeply"):
    RunFile(str(tmp_path / "config.json")).read_json()
  (tmp_path / "dataset.json").write_text(text)
  with pytest.raises(InputError, match="is damaged"):
    records.read_index(str(tmp_path))


@pytest.mark.parametrize(
  "text", ["[" + "[]," * 300_000 + "0]", "[" + "{}," * 300_000 + "0]"]
)
def test_memory_of_json_is_bounded(text):
  """The small lists are what Python writes largest."""
  most = peak_memory.peak_above(lambda: plain_json.parse(text))
  assert most < 32 * len(text)


def npy(shape, kind="<f4", data=b""):
  head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
  head += " " * (-(len(head) + 11) % 64) + "\n"
  length = struct.pack("<H", len(head))
  return b"\x93NUMPY\x01\x00" + length + head.encode() + data


@pytest.mark.parametrize(
  "data",
  [
    npy((2**40,)),
    npy((2**33, 2**33, 2**33)),
    npy((2**62, 4)),
    npy((-5,)),
    npy((3,), "<f4", bytes(11)),
    npy((3,), "|O", bytes(24)),
    npy("(" * 5000),
    b"",
    b"\x93NUMPY\x01\x00\xff\xff",
    b"PK\x03\x04" + bytes(50),
  ],
)
def test_arrays_that_are_not_in_the_file(tmp_path, data):
  path = tmp_path / "labels.npy"
  path.write_bytes(data)
  with pytest.raises((ValueError, OSError)):
    read_array(path)


def test_arrays_that_are(tmp_path):
  want = np.arange(6, dtype=np.int32).reshape(2, 3)
  np.save(tmp_path / "a.npy", want)
  assert isinstance(map_array(tmp_path / "a.npy"), np.memmap)
  np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), want)


def overlapping(members, size, name):
  """An archive whose list has many members at the place of one."""
  data = bytes(size)
  local = struct.pack(
    "<IHHHHHIIIHH",
    0x04034B50, 20, 0, 0, 0, 0, zlib.crc32(data), size, size, 1, 0,
  )  # fmt: skip
  body = local + b"a" + data
  listed = b""
  for number in range(members):
    member = name.format(number).encode()
    listed += struct.pack(
      "<IHHHHHHIIIHHHHHII",
      0x02014B50, 20, 20, 0, 0, 0, 0, zlib.crc32(data), size, size,
      len(member), 0, 0, 0, 0, 0, 0,
    ) + member  # fmt: skip
  end = struct.pack(
    "<IHHHHIIH",
    0x06054B50, 0, 0, members, members, len(listed), len(body), 0,
  )  # fmt: skip
  return body + listed + end


@pytest.mark.parametrize("name", ["net/data/{}", "a{}.npy"])
def test_members_that_overlap_are_refused(tmp_path, name):
  path = tmp_path / "weights"
  path.write_bytes(overlapping(500, 4 * MIB, name))

  def read():
    with pytest.raises(InputError, match="its members overlap"):
      weight_files.read(str(path))

  assert peak_memory.peak_above(read) < 16 * MIB


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path):
  path = tmp_path / "weights.npz"
  np.savez_compressed(path, a=np.zeros(50 * MIB, np.uint8))

  def read():
    with pytest.raises(InputError, match="20 times as many"):
      weight_files.read(str(path))

  assert peak_memory.peak_above(read) < 16 * MIB


def test_an_honest_archive_is_opened(tmp_path):
  path = tmp_path / "a.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for number in range(5):
      archive.writestr(f"{number}", bytes(1000))
  with open_zip(str(path)) as archive:
    assert archive.read("3") == bytes(1000)
  path.write_bytes(b"not one")
  with pytest.raises(UnsoundZipError, match="damaged"):
    open_zip(str(path))


def test_a_member_in_an_npz_that_promises_more(tmp_path):
  path = tmp_path / "w.npz"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.npy", npy((2**36,)))

  def read():
    with pytest.raises(InputError, match="damaged"):
      weight_files.read(str(path))

  assert peak_memory.peak_above(read) < 16 * MIB


def test_safetensors_with_a_deep_head(tmp_path):
  text = b'{"a":' * 50_000
  path = tmp_path / "w.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text)
  with pytest.raises(InputError, match="its header is damaged"):
    weight_files.read(str(path))


def test_tensors_that_show_the_same_numbers_again_and_again(
  tmp_path, monkeypatch
):
  numbers = np.zeros(1000, np.float32)
  path = tmp_path / "w.pth"
  path.write_bytes(overlapping(0, 10, "{}") + bytes(4000))
  monkeypatch.setattr(
    weight_files.torch_file,
    "read_torch",
    lambda _: {f"t{k}": numbers for k in range(10)},
  )
  with pytest.raises(InputError, match="over and over"):
    weight_files.read(str(path))


def test_lines_of_metrics_that_are_deep(tmp_path):
  assert json.loads("1") == plain_json.parse("1") == plain_json.parse(b"1")
  with pytest.raises(ValueError):
    plain_json.parse(io.StringIO("[").getvalue())
