"""A small data set of TFDS, prepared here as ArrayRecord, converts whole."""

import inspect
import io
import os
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import assert_one_sentence

from data_prep import from_tfds
from data_prep.writing.writer import DatasetWriter
from jamsface_jax.data import records
from jamsface_jax.errors import InputError

NAMES = ["zoe", "nobody", "ann", "bob"]


def jpeg(number):
  rng = np.random.default_rng(number)
  pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
  data = cv2.imencode(".jpg", pixels)[1].tobytes()
  return data[:150] if number == BROKEN else data


BROKEN = 30  # An image of the split "broken".
SPLITS = {"train": range(25), "broken": range(25, 33)}


def person(number):
  return NAMES[(0, 2, 3)[number % 3]]


class _Faces(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  LABEL: tfds.features.FeatureConnector

  def _info(self):
    features = {"image": tfds.features.Image(), "label": self.LABEL}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, _):
    return {name: self._generate(split) for name, split in SPLITS.items()}

  def _generate(self, numbers):
    for number in numbers:
      # Given as files, images are kept as they are.
      image = io.BytesIO(jpeg(number))
      yield number, {"image": image, "label": person(number)}

  def _generate_examples(self):
    raise NotImplementedError


class NumberedFaces(_Faces):
  LABEL = tfds.features.ClassLabel(names=NAMES)


class NamedFaces(_Faces):
  LABEL = tfds.features.Text()


class ArrayFaces(NamedFaces):
  """Images that TFDS would have to encode, which it does with TensorFlow."""

  def _generate(self, numbers):
    for number in numbers:
      yield number, {"image": np.zeros((8, 8, 3), np.uint8), "label": "a"}


class LostFaces(NamedFaces):
  def _split_generators(self, _):
    raise ConnectionError("no route to host")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("tfds"))
  for name in "numbered_faces", "named_faces":
    builder = tfds.builder(name, data_dir=path, file_format="array_record")
    builder.download_and_prepare()
  return path


def convert(dataset, directory, data_dir=None, **changes):
  from_tfds.convert(
    dataset,
    str(directory),
    **{
      "name": "tiny",
      "split": "train",
      "data_dir": data_dir,
      "download": False,
      "image_feature": "image",
      "label_feature": "label",
      "skip_bad": False,
      "threads": 2,
    }
    | changes,
  )
  return list(records.RecordReader(str(directory)).scan())


@pytest.mark.parametrize(
  "dataset, order",
  [
    ("numbered_faces", ["zoe", "ann", "bob"]),  # As numbered; nobody is left.
    ("named_faces", ["ann", "bob", "zoe"]),
  ],
)
def test_every_image_arrives_with_its_class(tmp_path, prepared, dataset, order):
  found = convert(dataset, tmp_path / "d", prepared)
  classes = records.read_classes(str(tmp_path / "d"))
  assert classes == order
  got = {record.image: classes[record.label] for record in found}
  assert got == {jpeg(number): person(number) for number in SPLITS["train"]}
  assert len(found) == 25  # No image twice.
  for number, record in enumerate(found):
    assert record.name == f"{classes[record.label]}/{number:08d}.jpg"
  assert records.read_index(str(tmp_path / "d")).image_size == (20, 24)
  assert "tensorflow" not in sys.modules


def test_a_directory_and_a_slice(tmp_path, prepared):
  path = os.path.join(prepared, "named_faces", "1.0.0")
  found = convert(path, tmp_path / "d", split="train[5:11]")
  whole = convert(path, tmp_path / "all")
  assert [record.image for record in found] == [
    record.image for record in whole[5:11]
  ]


def test_download_prepares_once(tmp_path):
  path = str(tmp_path / "tfds")
  found = convert("named_faces", tmp_path / "d", path, download=True)
  again = convert("named_faces", tmp_path / "e", path)
  assert len(found) == 25 and found == again


def test_broken_image_is_named_or_left_out(tmp_path, prepared):
  path = os.path.join(prepared, "named_faces", "1.0.0")
  with pytest.raises(InputError, match=r"example \d of .*--skip_bad"):
    convert(path, tmp_path / "d", split="broken")
  assert not (tmp_path / "d" / records.INDEX_FILE).exists()
  found = convert(path, tmp_path / "e", split="broken", skip_bad=True)
  want = {jpeg(number) for number in SPLITS["broken"] if number != BROKEN}
  assert {record.image for record in found} == want
  skipped = (tmp_path / "e" / "skipped.txt").read_text()
  assert skipped.count("\n") == 1 and person(BROKEN) in skipped


def test_interrupted_conversion_goes_on(tmp_path, prepared, monkeypatch):
  defaults = inspect.unwrap(DatasetWriter.__init__).__kwdefaults__
  monkeypatch.setitem(defaults, "shard_bytes", 3000)
  convert("named_faces", tmp_path / "whole", prepared)
  add = DatasetWriter.add

  def stop_at_15(self, *arguments):
    if self.position == 15:
      raise KeyboardInterrupt
    add(self, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(DatasetWriter, "add", stop_at_15)
    with pytest.raises(KeyboardInterrupt):
      convert("named_faces", tmp_path / "d", prepared)
  convert("named_faces", tmp_path / "d", prepared)
  for file in os.listdir(tmp_path / "whole"):
    want = (tmp_path / "whole" / file).read_bytes()
    assert (tmp_path / "d" / file).read_bytes() == want


@pytest.mark.parametrize(
  "dataset, changes, parts",
  [
    ("no_such_faces", {}, ["'no_such_faces'", "neither"]),
    ("named_faces", {"split": "test"}, ["'test'", "--split"]),
    ("named_faces", {"label_feature": "id"}, ["'id'", "image, label"]),
    ("named_faces", {"image_feature": "label"}, ["not an image"]),
    ("named_faces", {"data_dir": "/nowhere"}, ["not prepared", "--download"]),
    (".", {}, ["neither"]),
    ("array_faces", {"download": True}, ["cannot be prepared", "tensorflow"]),
    ("lost_faces", {"download": True}, ["cannot be prepared", "no route"]),
  ],
)
def test_what_tfds_does_not_have_is_one_sentence(
  tmp_path, prepared, dataset, changes, parts
):
  with pytest.raises(InputError) as error:
    convert(dataset, tmp_path / "d", **{"data_dir": prepared} | changes)
  for part in parts:
    assert part in str(error.value)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "d").exists()


def test_command_line(tmp_path, prepared, run, capsys):
  path = os.path.join(prepared, "numbered_faces", "1.0.0")
  output = tmp_path / "faces"
  assert from_tfds.main([f"--input={path}", f"--output={output}"]) == 0
  printed = capsys.readouterr().out
  assert "25 images of 3 identities (8 to 9 each)" in printed
  assert f"--config.data.directory={output} " in printed
  process = run("data_prep.from_tfds", f"--input={path}", f"--output={output}")
  assert_one_sentence(process, "--output", "holds a data set already")
