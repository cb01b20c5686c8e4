"""Verification sets come out as they were packed, and nothing in them runs."""

import inspect
import os
import pickle

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence

from data_prep import from_bin
from data_prep.writing.writer import DatasetWriter
from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.pairs_file import read_pairs


def jpegs(count, extension=".jpg"):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (count, 24, 24, 3), np.uint8)
  return [cv2.imencode(extension, image)[1].tobytes() for image in pixels]


FLAGS = [k % 3 != 0 for k in range(23)]


def convert(path, content, protocol=2, **changes):
  data = content
  if not isinstance(content, bytes):
    data = pickle.dumps(content, protocol)
  (path / "set.bin").write_bytes(data)
  settings = {"name": "tiny", "skip_bad": False, "threads": 2} | changes
  output = str(path / "set")
  from_bin.convert(str(path / "set.bin"), output, **settings)
  return output


def written(directory):
  reader = records.RecordReader(directory)
  found = list(reader.scan())
  path = os.path.join(directory, records.PAIRS_FILE)
  return found, read_pairs(path, [record.name for record in found])


@pytest.mark.parametrize(
  "pack, flags",
  [
    (bytes, list),
    (bytes, np.array),
    (bytes, lambda flags: [np.bool_(flag) for flag in flags]),
    (bytes, lambda flags: [int(flag) for flag in flags]),
    (lambda image: np.frombuffer(image, np.uint8), np.array),
  ],
  ids=["lists", "array", "scalars", "ints", "image arrays"],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_images_and_pairs_come_out_as_packed(tmp_path, pack, flags, protocol):
  images = jpegs(46)
  content = [pack(image) for image in images], flags(FLAGS)
  found, pairs = written(convert(tmp_path, content, protocol))
  assert [record.image for record in found] == images
  assert [record.name for record in found[:3]] == [
    "00000_a.jpg",
    "00000_b.jpg",
    "00001_a.jpg",
  ]
  assert pairs.same.tolist() == FLAGS
  np.testing.assert_array_equal(pairs.first, np.arange(0, 46, 2))
  np.testing.assert_array_equal(pairs.second, np.arange(1, 46, 2))
  # KFold(10, shuffle=False) on 23: three folds of three, then seven of two.
  want = [0, 0, 0, 1, 1, 1, 2, 2, 2, *np.repeat(np.arange(3, 10), 2)]
  assert pairs.folds.tolist() == want


def test_set_of_python_2(tmp_path):
  images = jpegs(46)
  body = b"".join(b"T" + len(x).to_bytes(4, "little") + x for x in images)
  flags = b"".join(b"\x88" if flag else b"\x89" for flag in FLAGS)
  found, pairs = written(
    convert(tmp_path, b"\x80\x02](" + body + b"e](" + flags + b"e\x86.")
  )
  assert [record.image for record in found] == images
  assert pairs.same.tolist() == FLAGS


def test_each_image_is_a_class_and_png_keeps_its_name(tmp_path):
  images = jpegs(4) + jpegs(42, ".png")
  output = convert(tmp_path, (images, FLAGS))
  index = records.read_index(output)
  assert (index.name, index.images, index.classes) == ("tiny", 46, 46)
  assert index.image_size == (24, 24)
  found, _ = written(output)
  assert found[4].name == "00002_a.png"
  classes = records.read_classes(output)
  assert [classes[record.label] for record in found] == [
    record.name for record in found
  ]


def test_shared_image_is_written_once(tmp_path):
  images = jpegs(46)
  images[7] = images[2]
  found, pairs = written(convert(tmp_path, (images, FLAGS)))
  assert len(found) == 45
  assert found[pairs.second[3]].name == "00001_a.jpg"
  assert [found[k].image for k in pairs.second] == images[1::2]


def test_bad_image_takes_its_pair_along(tmp_path):
  images = jpegs(46)
  images[5] = images[5][:200]
  with pytest.raises(InputError, match=r"'00002_b\.jpg'.*--skip_bad"):
    convert(tmp_path, (images, FLAGS))
  assert not os.path.exists(tmp_path / "set")
  output = convert(tmp_path, (images, FLAGS), skip_bad=True)
  found, pairs = written(output)
  assert len(found) == 45
  assert pairs.same.tolist() == FLAGS[:2] + FLAGS[3:]
  assert pairs.folds.tolist()[:3] == [0, 0, 1]  # As with the image.
  with open(os.path.join(output, "skipped.txt")) as file:
    assert file.read().startswith("00002_b.jpg\tbroken JPEG")


@pytest.mark.parametrize(
  "content, part",
  [
    ([1, 2, 3], "not a pair of images and flags"),
    ((jpegs(2), "yes"), "flag"),
    ((jpegs(4), [True, 2]), "flag"),
    ((jpegs(4), []), "flag"),
    ((jpegs(5), [True, False]), "5 images for 2 pairs instead of 4"),
    ((7, [True, False]), "list of images"),
    ((["text"] * 4, [True, False]), "image 0 is of type str"),
    (
      ([np.zeros((2, 2), np.uint8)] * 4, [True, False]),
      "image 0 is an array uint8 (2, 2)",
    ),
    ((jpegs(4), [True, True]), "all of one kind"),
    ((jpegs(2), [True]), "all of one kind"),
    (pickle.dumps((jpegs(4), [True, False]))[:-90], "cut off"),
    (b"", "cut off"),
    (b"PK\x03\x04 a zip file", "GLOBAL|instruction|cut off|reference|damaged"),
  ],
)
def test_other_content_is_refused(tmp_path, content, part):
  with pytest.raises(InputError) as error:
    convert(tmp_path, content)
  assert any(p in str(error.value) for p in part.split("|"))
  assert "\n" not in str(error.value)
  assert not os.path.exists(tmp_path / "set")


def test_interrupted_conversion_goes_on(tmp_path, monkeypatch):
  images = jpegs(46)
  images[5] = b"broken"
  # A shard for each image, so that some are complete when it stops.
  defaults = inspect.unwrap(DatasetWriter.__init__).__kwdefaults__
  monkeypatch.setitem(defaults, "shard_bytes", 1)
  whole = convert(tmp_path, (images, FLAGS), skip_bad=True)
  (tmp_path / "again").mkdir()
  add, added = DatasetWriter.add, []

  def stop_after_ten(self, *arguments):
    if len(added) == 10:
      raise KeyboardInterrupt
    added.append(arguments)
    add(self, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(DatasetWriter, "add", stop_after_ten)
    with pytest.raises(KeyboardInterrupt):
      convert(tmp_path / "again", (images, FLAGS), skip_bad=True)
  output = tmp_path / "again" / "set"
  assert not os.path.exists(output / records.INDEX_FILE)
  first = (output / "images-00000.array_record").stat().st_mtime_ns
  convert(tmp_path / "again", (images, FLAGS), skip_bad=True)
  assert (output / "images-00000.array_record").stat().st_mtime_ns == first
  for file in os.listdir(whole):
    with open(os.path.join(whole, file), "rb") as one:
      assert (output / file).read_bytes() == one.read()


class Runs:
  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def test_pickle_that_calls_os_system_is_refused_and_nothing_ran(tmp_path, run):
  marker = tmp_path / "ran"
  content = (jpegs(4), [True, Runs(f"touch {marker}")])
  (tmp_path / "set.bin").write_bytes(pickle.dumps(content))
  process = run(
    "data_prep.from_bin",
    f"--input={tmp_path / 'set.bin'}",
    f"--output={tmp_path / 'set'}",
  )
  assert_one_sentence(process, "set.bin", "global 'posix.system'")
  assert not marker.exists()
  assert not os.path.exists(tmp_path / "set")


def test_command_line(tmp_path, capsys):
  (tmp_path / "lfw.bin").write_bytes(pickle.dumps((jpegs(46), FLAGS), 2))
  output = tmp_path / "lfw"
  flags = [f"--input={tmp_path / 'lfw.bin'}", f"--output={output}"]
  assert from_bin.main(flags) == 0
  printed = capsys.readouterr().out
  assert f"23 pairs ({sum(FLAGS)} of one person) of 46 images" in printed
  assert printed.endswith(f"--data={output}\n")
  assert records.read_index(str(output)).name == "lfw"
