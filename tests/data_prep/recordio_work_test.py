"""Records of strangers, which are gone through once and not over and over."""

import struct
import time

import pytest

from data_prep.formats.recordio import Image, RecordFile
from jamsface_jax.errors import InputError

MAGIC = 0xCED7230A


def record(size):
  body = struct.pack("<IfQQ", 0, 1.0, 1, 0) + bytes(size)
  return struct.pack("<II", MAGIC, len(body)) + body + bytes(-len(body) % 4)


def write(folder, data, offsets):
  (folder / "train.rec").write_bytes(data)
  lines = "".join(f"{key}\t{at}\n" for key, at in enumerate(offsets))
  (folder / "train.idx").write_text(lines)
  return RecordFile(str(folder / "train.rec"), str(folder / "train.idx"))


def test_many_lines_at_one_large_record(tmp_path):
  with (
    write(tmp_path, record(2**22), [0] * 100_000) as file,
    pytest.raises(InputError, match="again and again"),
  ):
    for _ in file.records():
      pass


def test_many_lines_into_what_looks_like_records(tmp_path):
  """Each says that it ends where no other begins: all is gone through."""
  data = bytearray(record(2**22) + b"end!")
  offsets = range(100, 2**20, 16)
  for offset in offsets:
    length = len(data) - offset - 12
    struct.pack_into("<II", data, offset + offset % 3, MAGIC, length)
  begin = time.process_time()
  with write(tmp_path, bytes(data), [o + o % 3 for o in offsets]) as file:
    try:
      for _ in file.records():
        pass
    except InputError as error:
      assert "again and again" in str(error)
  assert time.process_time() - begin < 5


def test_parts_of_a_record_are_gone_through_once(tmp_path):
  part = struct.pack("<II", MAGIC, 2 << 29)
  first = struct.pack("<II", MAGIC, 1 << 29)
  begin = time.process_time()
  with (
    write(tmp_path, first + 5_000 * part, [0] * 100_000) as file,
    pytest.raises(InputError, match="again and again"),
  ):
    for _ in file.records():
      pass
  assert time.process_time() - begin < 10


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_sound_is_read_to_its_end(tmp_path, shuffled):
  size = len(record(100))
  offsets = list(range(0, 3_000 * size, size))
  if shuffled:
    offsets = offsets[::2] + offsets[1::2]
  with write(tmp_path, 3_000 * record(100), offsets) as file:
    found = list(file.records())
  assert len(found) == 3_000
  assert all(isinstance(one, Image) for one in found)
