"""Where shards end, and what conversions do whatever the engine."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
import tracemalloc

import cv2
import numpy as np
import pytest
from array_record.python import array_record_module
from conftest import convert

from data_prep.writing import conversion, writer
from data_prep.writing.shards import FinishedShard, ShardWriter
from data_prep.writing.writer import DatasetAssembler
from jamsface_jax.data import records
from jamsface_jax.errors import InputError

LIMITED = """
import resource, signal, sys
from data_prep import from_folder
from jamsface_jax.errors import run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def main():
  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
  from_folder.convert(sys.argv[1], sys.argv[2], name="tiny", identities=None,
    min_images=1, pairs=None, skip_bad=False, exclude=None, threads=2)
run_command(main)
"""


def test_full_disk_is_one_sentence(image_folder, tmp_path):
  """As far as this can be had without one: no file may pass 9,000 bytes."""
  done = subprocess.run(
    [sys.executable, "-c", LIMITED, image_folder / "images", tmp_path / "out"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1, done.stderr
  [line] = done.stderr.splitlines()
  assert "images-00000.array_record' cannot be written (" in line
  assert "large" in line and line.endswith("keeps the finished shards.")
  assert not (tmp_path / "out").exists()


def stop_after(patch, shards):
  accept = DatasetAssembler.accept

  def accept_some(self, finished):
    if len(self.finished) == shards:
      raise KeyboardInterrupt
    accept(self, finished)

  patch.setattr(DatasetAssembler, "accept", accept_some)


@pytest.fixture
def padded(image_folder, tmp_path):
  """The image folder, each file so long that it is a shard of its own."""
  for path in (image_folder / "images").glob("*/*.jpg"):
    copy = tmp_path / "images" / path.parent.name / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes() + bytes(6000))
  return tmp_path


@pytest.mark.parametrize("change", ["another size", "another name", "fewer"])
def test_images_that_changed_between_two_attempts(
  padded, tmp_path, monkeypatch, change
):
  """Shards of the first attempt would not go with the second's."""
  changes = {"pairs": None, "shard_bytes": 6000}
  with monkeypatch.context() as patch:
    stop_after(patch, 3)
    with pytest.raises(KeyboardInterrupt):
      convert(padded, tmp_path / "out", **changes)
  paths = sorted((padded / "images").glob("*/*.jpg"))
  if change == "another size":
    paths[1].write_bytes(paths[1].read_bytes()[:-6000])
  elif change == "another name":
    paths[1].rename(paths[1].with_name("Person_00_0002b.jpg"))
  else:  # Of the finished shards the third alone is known, and now too many.
    for path in paths:
      path.write_bytes(path.read_bytes()[:-6000])
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    entry = json.loads(lines[2]) | {"number": 36}
    before = journal.with_name(entry["shard"]["file"])
    entry["shard"]["file"] = "images-00036.array_record"
    before.rename(journal.with_name(entry["shard"]["file"]))
    journal.write_text(json.dumps(entry) + "\n")
  with pytest.raises(InputError, match="part of another conversion"):
    convert(padded, tmp_path / "out", **changes)


def test_sizes_of_files_come_in_order(tmp_path):
  items = [conversion.Item(0, str(k), 0) for k in range(5000)]
  for k in range(0, 5000, 7):
    (tmp_path / str(k)).write_bytes(bytes(k % 50))
  found = list(conversion.look_up_files(str(tmp_path), iter(items)))
  assert [item.name for item in found] == [item.name for item in items]
  assert [item.size for item in found] == [
    k % 50 if k % 7 == 0 else 0 for k in range(5000)
  ]


def test_ray_that_is_not_installed(image_folder, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(InputError, match=r"pip install 'jamsface-jax\[ray\]'"):
    convert(image_folder, tmp_path / "out", engine="ray")


def test_shards_that_are_damaged_or_stale_are_written_again(
  padded, tmp_path, monkeypatch, capsys
):
  """Of the same size, and the image of the same date."""
  changes = {"pairs": None, "shard_bytes": 6000}
  with monkeypatch.context() as patch:
    stop_after(patch, 3)
    with pytest.raises(KeyboardInterrupt):
      convert(padded, tmp_path / "out", **changes)
  shard = tmp_path / "out" / "images-00001.array_record"
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 1
  shard.write_bytes(data)
  image = min((padded / "images").glob("*/*.jpg"))
  date = image.stat()
  time.sleep(0.02)  # Clocks of file systems tick every 4 ms.
  image.write_bytes(image.read_bytes()[:-1] + b"x")
  os.utime(image, ns=(date.st_atime_ns, date.st_mtime_ns))
  convert(padded, tmp_path / "out", **changes)
  said = capsys.readouterr().err
  assert f"shard {str(shard)!r} is not what was written" in said
  assert "images of shard 0 have changed" in said
  convert(padded, tmp_path / "whole", **changes)
  for path in (tmp_path / "whole").iterdir():
    assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize(
  ("images", "recipe"),
  [(30, "small"), (19_999, "small"), (20_000, "ms1m_r50")],
)
def test_the_command_that_trains_is_for_so_many_images(images, recipe):
  words = shlex.split(conversion.training_command("a set", images, "--more"))
  assert words[-4:] == [
    f"--config=configs/{recipe}.py",
    "--config.data.directory=a set",
    "--workdir=W",
    "--more",
  ]


@pytest.mark.parametrize("min_images", [1, 3])
def test_what_was_left_out_is_listed_once_however_often_it_stops(
  padded, tmp_path, monkeypatch, capsys, min_images
):
  """Classes that become too small, whose shards come again, among them."""
  changes = {
    "pairs": None,
    "shard_bytes": 12_000,
    "skip_bad": True,
    "min_images": min_images,
  }
  for path in sorted((padded / "images").glob("*/*.jpg"))[1::3]:
    path.write_bytes(b"broken" * 1200)
  (padded / "images" / "Person_01" / "odd\tname.jpg").write_bytes(b"")
  convert(padded, tmp_path / "whole", **changes)
  whole = (tmp_path / "whole" / "skipped.txt").read_text().splitlines()
  assert len({line.split("\t")[0] for line in whole}) == len(whole) > 12
  assert f"{len(whole)} left out, see" in capsys.readouterr().out

  accept = DatasetAssembler.accept
  for stop in (2, 5, 9, 20, 3):  # 20: when classes are taken out of shards.
    calls = []

    def accept_some(self, finished, calls=calls, stop=stop):
      if len(calls) == stop:
        raise KeyboardInterrupt
      calls.append(0)
      accept(self, finished)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
      patch.setattr(DatasetAssembler, "accept", accept_some)
      convert(padded, tmp_path / "out", **changes)
    if (tmp_path / "out" / "dataset.json").exists():
      break
    assert not (tmp_path / "out" / "skipped.txt").exists()
  else:
    convert(padded, tmp_path / "out", **changes)
  for path in (tmp_path / "whole").iterdir():
    assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
  left_out = records.read_index(str(tmp_path / "out")).left_out
  assert left_out["images"] == len(whole)


def growth(work):
  """Bytes that Python holds after a piece of work that it did not before."""
  tracemalloc.start()
  try:
    work()
    return tracemalloc.get_traced_memory()[0]
  finally:
    tracemalloc.stop()


def test_images_that_are_left_out_take_no_memory(tmp_path):
  """Their lines are on the disk as soon as their shard is."""
  shards, items, reason = 20, 500, "broken JPEG: " + 60 * "x"

  def make(number):
    with ShardWriter(assembler.directory, number) as shard:
      for k in range(items):
        shard.skip(f"{number}/{k}", reason)
      return shard.finish()

  out = tmp_path / "out"
  with DatasetAssembler(
    str(out), name="t", classes=["a"], source="test"
  ) as assembler:
    with ShardWriter(assembler.directory, shards) as shard:
      image = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
      shard.add(0, "sound", image, (2, 2))
      assembler.accept(shard.finish())

    def write():
      for number in range(shards):
        assembler.accept(make(number))

    lines = [
      f"{number}/{k}\t{reason}\n"
      for number in range(shards)
      for k in range(items)
    ]
    assert growth(write) < len("".join(lines)) / 10
    assert (out / "journal.jsonl").stat().st_size > len("".join(lines))
    assert assembler.skipped == len(lines)
  assert (out / "skipped.txt").read_text() == "".join(lines)
  assert records.read_index(str(out)).left_out == {"images": len(lines)}


def test_images_that_are_left_out_take_little_memory_in_a_shard(tmp_path):
  names = [f"folder/{k:08d}.jpg" for k in range(20_000)]
  with ShardWriter(str(tmp_path), 0) as shard:

    def skip():
      for name in names:
        # A new string each time, as a decoder gives them.
        shard.skip(name, "".join(["broken JPEG: ", 60 * "x"]))

    assert growth(skip) < 30 * len(names)  # A line of them has 120 bytes.
    lines = shard.finish().skipped
  assert lines[7] == f"{names[7]}\tbroken JPEG: {60 * 'x'}"
  assert len(lines) == len(names)


def test_a_sequence_of_broken_images_is_cut_into_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(writer, "SHARD_ITEMS", 3)
  opened = writer.DatasetWriter(
    str(tmp_path / "out"), name="t", classes=["a"], source="test"
  )
  with pytest.raises(KeyboardInterrupt), opened as sequence:
    for k in range(8):
      sequence.skip(str(k), "broken")
    raise KeyboardInterrupt
  entries = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
  assert [json.loads(one)["skipped"] for one in entries] == [
    [f"{k}\tbroken" for k in some] for some in (range(3), range(3, 6))
  ]
  with pytest.raises(InputError, match="no image"), opened as sequence:
    assert (sequence.position, sequence.skipped) == (6, 6)


def test_a_compressed_shard_in_the_journal_of_a_stranger(tmp_path):
  """A few bytes may unpack to any number; nothing of it is read."""
  assembler = DatasetAssembler(
    str(tmp_path), name="t", classes=["a", "b"], source="s"
  )
  with pytest.raises(InputError, match="not one of .* .it is compressed."):
    with assembler:
      path = tmp_path / "images-00000.array_record"
      file = array_record_module.ArrayRecordWriter(
        str(path), "group_size:1,zstd:3"
      )
      file.write(records.encode_record(records.Record(0, "x", bytes(2**20))))
      file.close()
      digest, size = records.file_digest(str(path))
      labels = np.zeros(1, np.int32)  # And none of the second class.
      shard = records.Shard(path.name, 1, size, digest)
      assembler.accept(FinishedShard(0, 1, "", shard, labels, [(2, 2)], []))
