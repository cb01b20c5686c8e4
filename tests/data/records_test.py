import dataclasses
import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from array_record.python import array_record_module
from conftest import assert_one_sentence, convert

from data_prep.writing.writer import DatasetWriter
from jamsface_jax.data import decoding, open_shards, records
from jamsface_jax.data.sources import NoiseSource, RecordSource
from jamsface_jax.errors import InputError


@pytest.fixture
def copy(dataset, tmp_path):
  """A data set that may be damaged."""
  shutil.copytree(dataset, tmp_path / "copy")
  return tmp_path / "copy"


def edit(directory, **fields):
  path = directory / "dataset.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", ["a/b.jpg", "Zoë/ä.png", ""])
def test_record_round_trip(name):
  record = records.Record(2**40, name, bytes(range(256)))
  assert records.decode_record(records.encode_record(record)) == record


@pytest.mark.parametrize("data", [b"", b"123456789", b"\0" * 8 + b"\xff\xff"])
def test_bytes_that_are_no_record(data):
  with pytest.raises(ValueError, match="bytes"):
    records.decode_record(data)


def test_folder_becomes_data_set(image_folder, dataset):
  index = records.read_index(dataset)
  assert (index.images, index.classes, index.image_size) == (37, 12, (40, 40))
  assert index.class_sizes == (4,) + (3,) * 11
  assert records.read_classes(dataset)[3] == "Person_03"
  for record in records.RecordReader(dataset).scan():
    path = image_folder / "images" / record.name
    assert record.image == path.read_bytes()  # Copied, never recompressed.
    assert record.name.startswith(f"Person_{record.label:02d}/")


def test_several_shards_read_as_one(tmp_path):
  with DatasetWriter(
    str(tmp_path / "d"),
    name="d",
    classes=["a", "b"],
    source="s",
    shard_bytes=1000,
  ) as writer:
    for i in range(50):
      writer.add(i % 2, f"{i}", bytes([i]) * 100, (1, 1))
  reader = records.RecordReader(str(tmp_path / "d"))
  assert len(reader.index.shards) > 3
  ids = [49, 0, 17, 17, 30]
  assert [r.name for r in reader.read(ids)] == [str(i) for i in ids]
  assert [r.image[0] for r in reader.scan()] == list(range(50))


def test_unfinished_data_set_is_none(tmp_path):
  with (
    pytest.raises(RuntimeError),
    DatasetWriter(
      str(tmp_path / "d"), name="d", classes=["a"], source="s"
    ) as writer,
  ):
    writer.add(0, "x", b"x", (1, 1))
    raise RuntimeError
  assert not (tmp_path / "d").exists()
  with DatasetWriter(
    str(tmp_path / "d"), name="d", classes=["a"], source="s"
  ) as writer:
    writer.add(0, "x", b"x", (1, 1))
  assert sorted(os.listdir(tmp_path / "d")) == [
    "classes.txt",
    "dataset.json",
    "images-00000.array_record",
    "labels.npy",
  ]


def write(directory, *, stop=None, source="s", broken=(), shard_bytes=1000):
  """Forty records of two classes in small shards; fails at number `stop`."""
  with DatasetWriter(
    str(directory),
    name="d",
    classes=["a", "b"],
    source=source,
    shard_bytes=shard_bytes,
  ) as writer:
    begin = writer.position
    for i in range(begin, 40):
      if i == stop:
        raise KeyboardInterrupt
      if i in broken:
        writer.skip(f"{i}", "broken")
      else:
        writer.add(i % 2, f"{i}", bytes([i]) * 100, (i % 3, 1))
  return begin


def contents(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("stop", [0, 5, 9, 23, 39])
def test_interrupted_conversion_goes_on(tmp_path, stop):
  broken = (3, 4, 20, 38)
  assert write(tmp_path / "whole", broken=broken) == 0
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / "cut", stop=stop, broken=broken)
  # A kill may also tear the journal's last line.
  journal = tmp_path / "cut" / "journal.jsonl"
  if stop == 39:
    journal.write_bytes(journal.read_bytes()[:-10])
  begin = write(tmp_path / "cut", broken=broken)
  assert (begin > 0) == (stop > 10)
  assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
  index = records.read_index(str(tmp_path / "cut"))
  assert index.class_sizes == (17, 19) and index.image_size is None
  skipped = (tmp_path / "cut" / "skipped.txt").read_text()
  assert skipped == "".join(f"{i}\tbroken\n" for i in broken)


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_shard_that_was_lost_is_written_again(tmp_path, damage):
  write(tmp_path / "whole")
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / "cut", stop=39)
  shard = tmp_path / "cut" / "images-00001.array_record"
  if damage == "missing":
    shard.unlink()
  else:
    shard.write_bytes(shard.read_bytes()[:-1])
  assert 0 < write(tmp_path / "cut") < 20  # One after the other from there.
  assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_part_of_another_conversion_is_refused(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / "cut", stop=30)
  with pytest.raises(InputError, match="part of another conversion"):
    write(tmp_path / "cut", source="other")


def test_fingerprint_follows_the_content(dataset, image_folder, tmp_path):
  convert(image_folder, tmp_path / "same")
  convert(image_folder, tmp_path / "fewer", min_images=4, pairs=None)
  prints = [
    records.read_index(str(d)).fingerprint()
    for d in (dataset, tmp_path / "same", tmp_path / "fewer")
  ]
  assert prints[0] == prints[1] != prints[2]


def test_missing_and_truncated_shards_are_named(copy):
  shard = copy / "images-00000.array_record"
  data = shard.read_bytes()
  shard.write_bytes(data[:-100])
  with pytest.raises(InputError, match="images-00000.*bytes instead of"):
    RecordSource(str(copy), 40)
  shard.unlink()
  with pytest.raises(InputError, match="images-00000.*missing"):
    RecordSource(str(copy), 40)


@pytest.mark.parametrize("how", ["zstd:3", "brotli:3", "snappy"])
def test_shards_that_others_have_compressed(copy, how):
  """A few bytes may unpack to any number; ArrayRecord vouches for the rest."""
  index = records.read_index(str(copy))
  shard = copy / index.shards[0].file
  writer = array_record_module.ArrayRecordWriter(
    str(shard), f"group_size:1,{how}"
  )
  for number in range(index.images):
    record = records.Record(number % index.classes, str(number), bytes(2**20))
    writer.write(records.encode_record(record))
  writer.close()
  digest, size = records.file_digest(str(shard))
  edit(
    copy,
    shards=[
      dataclasses.asdict(index.shards[0]) | {"sha256": digest, "bytes": size}
    ],
  )
  with pytest.raises(InputError, match="damaged .it is compressed."):
    records.RecordReader(str(copy)).read([0])


def test_flipped_bytes_are_noticed(copy):
  shard = copy / "images-00000.array_record"
  data = bytearray(shard.read_bytes())
  for place in range(2000, len(data) - 2000, 500):
    data[place] ^= 0xFF
  shard.write_bytes(data)
  with pytest.raises(InputError, match="copy"):
    list(records.RecordReader(str(copy)).scan())


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"color_order": "BGR"}, "color_order 'BGR'"),
    ({"images": 38}, "counts 38 images but its shards hold 37"),
    ({"format": 2}, "damaged"),
    ({"shards": 3}, "damaged"),
  ],
)
def test_damaged_index(copy, fields, says):
  edit(copy, **fields)
  with pytest.raises(InputError, match=says):
    records.read_index(str(copy))


def test_label_outside_the_classes(copy, tmp_path):
  edit(copy, classes=11)
  source = RecordSource(str(copy), 40)
  with pytest.raises(InputError, match=r"has label 11, outside \[0, 11\)"):
    source.read(np.arange(37))
  with (
    pytest.raises(InputError, match=r"label 1, outside \[0, 1\)"),
    DatasetWriter(
      str(tmp_path / "e"), name="e", classes=["a"], source="s"
    ) as writer,
  ):
    writer.add(1, "x", b"x", (1, 1))


def test_source_decodes_and_scales(dataset):
  images, labels = RecordSource(dataset, 20).read(np.array([36, 0]))
  assert images.shape == (2, 20, 20, 3) and images.dtype == np.uint8
  assert labels.tolist() == [11, 0] and labels.dtype == np.int32
  # Halving is the mean of each 2 x 2 block.
  whole, _ = RecordSource(dataset, 40).read(np.array([36, 0]))
  blocks = whole.reshape(2, 20, 2, 20, 2, 3).mean((2, 4))
  np.testing.assert_allclose(images, blocks, atol=1)
  # The files were made from noise images, in RGB; JPEG blurs them.
  noise, _ = NoiseSource(12, 37, 40).read(np.array([0]))
  error = np.abs(whole[1].astype(int) - noise[0]).mean()
  swapped = np.abs(whole[1][:, :, ::-1].astype(int) - noise[0]).mean()
  assert error < 12 < 24 < swapped


@pytest.mark.parametrize("cut", [0, 1, 10, 600, -2])
def test_truncated_images_do_not_decode(image_folder, cut):
  path = next((image_folder / "images").glob("*/*.jpg"))
  with pytest.raises(decoding.DecodingError):
    decoding.decode_image(path.read_bytes()[:cut])


def test_grey_and_png_images_decode():
  grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
  for extension in (".png", ".jpg"):
    data = cv2.imencode(extension, grey)[1].tobytes()
    pixels = decoding.decode_image(data)
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_allclose(
      pixels.astype(int), np.repeat(grey[:, :, None], 3, 2), atol=6
    )
  colour = np.zeros((8, 8, 3), np.uint8)
  colour[:] = (10, 100, 200)
  data = cv2.imencode(".png", colour[:, :, ::-1])[1].tobytes()
  np.testing.assert_array_equal(decoding.decode_image(data), colour)


@pytest.fixture
def folder(image_folder, tmp_path):
  """An image folder that may be damaged."""
  shutil.copytree(image_folder / "images", tmp_path / "in")
  return tmp_path / "in"


def test_broken_image_is_named_or_skipped(run, folder, tmp_path):
  bad = folder / "Person_00" / "Person_00_0002.jpg"
  bad.write_bytes(bad.read_bytes()[:300])
  flags = [f"--input={folder}", f"--output={tmp_path / 'out'}"]
  assert_one_sentence(
    run("data_prep.from_folder", *flags), str(bad), "--skip_bad"
  )
  assert not (tmp_path / "out" / "dataset.json").exists()
  done = run("data_prep.from_folder", *flags, "--skip_bad")
  assert done.returncode == 0, done.stderr
  assert records.read_index(str(tmp_path / "out")).images == 36
  skipped = (tmp_path / "out" / "skipped.txt").read_text()
  assert skipped.startswith("Person_00/Person_00_0002.jpg\t")
  assert len(skipped.splitlines()) == 1
  again = run("data_prep.from_folder", *flags, "--skip_bad")
  assert_one_sentence(again, "holds a data set already")


def test_empty_and_missing_folders(run, folder, tmp_path):
  out = f"--output={tmp_path / 'out'}"
  (folder / "Nobody").mkdir()
  assert_one_sentence(
    run("data_prep.from_folder", f"--input={folder}", out),
    str(folder / "Nobody"),
    "no image",
  )
  assert_one_sentence(
    run("data_prep.from_folder", f"--input={tmp_path / 'none'}", out),
    "is not a folder",
  )
  assert_one_sentence(
    run("data_prep.from_folder", f"--input={folder / 'Person_00'}", out),
    "no sub-folder",
  )
  names = tmp_path / "names.txt"
  names.write_text("2\nPerson_01\t3\nPerson_99\t1\n")
  assert_one_sentence(
    run(
      "data_prep.from_folder", f"--input={folder}", out, f"--identities={names}"
    ),
    "Person_99",
  )


def test_choice_of_identities(image_folder, tmp_path):
  names = tmp_path / "names.txt"
  names.write_text("3\nPerson_00\t4\nPerson_05\t3\nPerson_07\t3\n")
  convert(image_folder, tmp_path / "out", identities=str(names), pairs=None)
  assert records.read_classes(str(tmp_path / "out")) == [
    "Person_00",
    "Person_05",
    "Person_07",
  ]
  convert(image_folder, tmp_path / "rich", min_images=4, pairs=None)
  assert records.read_classes(str(tmp_path / "rich")) == ["Person_00"]


def test_at_most_so_many_images_of_an_identity(image_folder, run, tmp_path):
  """The first by name; Person_00 has four images, the others three."""
  done = run(
    "data_prep.from_folder",
    f"--input={image_folder / 'images'}",
    f"--output={tmp_path / 'out'}",
    "--max_images=3",
  )
  assert done.returncode == 0, done.stderr
  reader = records.RecordReader(str(tmp_path / "out"))
  names = [record.name for record in reader.scan()]
  assert len(names) == 36
  assert [n for n in names if n.startswith("Person_00")] == [
    f"Person_00/Person_00_000{k}.jpg" for k in (1, 2, 3)
  ]
  assert_one_sentence(
    run(
      "data_prep.from_folder",
      f"--input={image_folder / 'images'}",
      f"--output={tmp_path / 'other'}",
      "--max_images=2",
      "--min_images=3",
    ),
    "--max_images=2 is below --min_images=3",
  )
  assert not (tmp_path / "other").exists()


def test_the_last_images_are_kept_apart(image_folder, run, tmp_path, capsys):
  """Person_00 has four images, the others three."""

  def names(part, min_images, **flags):
    directory = str(tmp_path / part)
    convert(image_folder, directory, pairs=None, min_images=min_images, **flags)
    return [record.name for record in records.RecordReader(directory).scan()]

  known = names("known", 3, only_last=1)
  assert known == ["Person_00/Person_00_0004.jpg"]
  assert f"--config.evaluation.known={tmp_path / 'known'}" in (
    capsys.readouterr().out
  )
  train = names("train", 3, without_last=1)
  assert sorted(train + known) == names("whole", 3)
  assert records.read_classes(str(tmp_path / "known")) == ["Person_00"]
  # Classes are those of all, whoever gives images away.
  assert len(records.read_classes(str(tmp_path / "train"))) == 12
  assert len(names("two", 1, only_last=2)) == 24
  assert_one_sentence(
    run(
      "data_prep.from_folder",
      f"--input={image_folder / 'images'}",
      f"--output={tmp_path / 'out'}",
      "--without_last=3",
      "--min_images=2",
    ),
    "no identity with 5 images, 3 to leave out",
  )


def test_class_whose_images_are_all_broken(folder, tmp_path):
  for path in (folder / "Person_03").iterdir():
    path.write_bytes(b"no image")
  folder.rename(tmp_path / "images")
  convert(tmp_path, tmp_path / "out", pairs=None, skip_bad=True)
  classes = records.read_classes(str(tmp_path / "out"))
  assert len(classes) == 11 and "Person_03" not in classes


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
  """A data set of more shards than the process may open files."""
  write(tmp_path / "d")
  reader = records.RecordReader(str(tmp_path / "d"))
  count = len(reader.index.shards)
  assert count == 4
  monkeypatch.setattr(open_shards, "most_open", lambda: 2)
  before = os.listdir("/proc/self/fd")
  for _ in range(2):
    assert len(list(reader.scan())) == 40
  assert len(os.listdir("/proc/self/fd")) <= len(before) + 2


# `ulimit -n`, which the kernel holds the process to.
UNDER_A_LIMIT = """
import resource, sys
from jamsface_jax.data.records import RecordReader
reader = RecordReader(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(reader.index.shards), hard))
print(*(len(list(reader.scan())) for _ in range(2)))
"""


def test_more_shards_than_the_system_lets_a_process_open(tmp_path):
  write(tmp_path / "d", shard_bytes=1)
  assert len(records.read_index(str(tmp_path / "d")).shards) == 40
  done = subprocess.run(
    [sys.executable, "-c", UNDER_A_LIMIT, str(tmp_path / "d")],
    capture_output=True,
    text=True,
  )
  assert done.stdout == "40 40\n", done.stderr
