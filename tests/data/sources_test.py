import dataclasses
import hashlib
import io
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.writing.writer import DatasetWriter
from jamsface_jax.data import decoding, records
from jamsface_jax.data.sampling import example_order
from jamsface_jax.data.sources import (
  MixedSource,
  NoiseSource,
  RecordSource,
  open_source,
)
from jamsface_jax.errors import InputError
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings


@pytest.fixture(scope="module")
def shards(dataset, tmp_path_factory):
  """The images of `dataset` in shards of a few, and all its records."""
  directory = str(tmp_path_factory.mktemp("shards") / "data")
  stored = list(records.RecordReader(dataset).scan())
  classes = records.read_classes(dataset)
  with DatasetWriter(
    directory, name="x", classes=classes, source="x", shard_bytes=5000
  ) as writer:
    for record in stored:
      writer.add(record.label, record.name, record.image, (40, 40))
  assert len(records.read_index(directory).shards) > 5
  return directory, stored


def test_records_of_many_shards_come_in_the_order_asked(shards):
  directory, stored = shards
  ids = np.random.default_rng(0).integers(len(stored), size=200).tolist()
  assert records.RecordReader(directory).read(ids) == [stored[i] for i in ids]


def test_an_empty_read_is_empty(shards):
  assert records.RecordReader(shards[0]).read([]) == []


def test_a_shard_is_opened_when_it_is_needed(shards, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(shards[0], copy)
  reader = records.RecordReader(str(copy))
  (copy / reader.index.shards[1].file).unlink()
  first = reader.index.shards[0].records
  assert reader.read(range(first)) == shards[1][:first]
  with pytest.raises(Exception, match="damaged"):
    reader.read([first])


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("size", [(40, 40), (20, 20), (61, 61), (80, 20)])
def test_decoding_in_place_gives_the_pixels_of_opencv(shards, size, quality):
  # (80, 20) holds exactly as many bytes as the image without being it.
  image = decoding.decode_image(shards[1][0].image)
  data = simplejpeg.encode_jpeg(image, quality=quality)
  pixels = np.zeros((*size, 3), np.uint8)
  decoding.decode_into(data, pixels)
  want = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  if size != (40, 40):
    how = cv2.INTER_AREA if size[0] < 40 else cv2.INTER_LINEAR
    want = cv2.resize(want, size[::-1], interpolation=how)
  np.testing.assert_array_equal(pixels, want)


@pytest.mark.parametrize("size", [40, 20, 80])
def test_decoding_in_place_refuses_a_truncated_jpeg(shards, size):
  data = shards[1][0].image
  pixels = np.zeros((size, size, 3), np.uint8)
  with pytest.raises(decoding.DecodingError, match="broken JPEG"):
    decoding.decode_into(data[:-20], pixels)


def test_a_png_is_read_in_place(shards):
  image = decoding.decode_image(shards[1][0].image)
  _, data = cv2.imencode(".png", image[:, :, ::-1])
  pixels = np.zeros_like(image)
  decoding.decode_into(data.tobytes(), pixels)
  np.testing.assert_array_equal(pixels, image)


@pytest.mark.parametrize(
  "odd", ["", "smaller", "larger", "wider", "png", "turned"]
)
def test_one_size_is_believed_as_long_as_it_is_true(odd, tmp_path):
  """The index states 32 x 32, and one of nine images is otherwise."""
  rng = np.random.default_rng(0)
  faces = rng.integers(0, 255, (9, 32, 32, 3), np.uint8)
  images = [simplejpeg.encode_jpeg(face) for face in faces]
  shape = {"smaller": (20, 20), "larger": (50, 50), "wider": (16, 64)}.get(odd)
  other = rng.integers(0, 255, (*(shape or (32, 32)), 3), np.uint8)
  if odd == "png":
    images[4] = cv2.imencode(".png", other)[1].tobytes()
  elif odd == "turned":
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(other).save(stream, "JPEG", exif=exif)
    images[4] = stream.getvalue()
  elif odd:
    images[4] = simplejpeg.encode_jpeg(other)
  directory = str(tmp_path / "data")
  with DatasetWriter(directory, name="x", classes=["a", "b"], source="x") as w:
    for number, image in enumerate(images):
      w.add(number % 2, f"{number}.jpg", image, (32, 32))
  source = RecordSource(directory, 32)
  want = np.empty((9, 32, 32, 3), np.uint8)
  for row, image in enumerate(images):
    decoding.decode_into(image, want[row])
  for _ in range(2):
    got, labels = source.read(np.arange(9))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(labels, np.arange(9) % 2)
  assert source._is_one_size == (not odd)


def test_source_reads_rows_in_order(shards):
  directory, stored = shards
  ids = np.array([36, 0, 17, 17])
  images, labels = RecordSource(directory, 40).read(ids)
  for image, label, i in zip(images, labels, ids, strict=True):
    np.testing.assert_array_equal(image, decoding.decode_image(stored[i].image))
    assert label == stored[i].label


def write(directory, labels, stored):
  classes = [f"class {k}" for k in range(max(labels) + 1)]
  with DatasetWriter(
    str(directory), name="x", classes=classes, source="x", shard_bytes=5000
  ) as writer:
    for label, record in zip(labels, stored, strict=True):
      writer.add(label, record.name, record.image, (40, 40))
  return RecordSource(str(directory), 40)


def before_labels(directory):
  """The data set as it was written before there was labels.npy."""
  path = directory / "dataset.json"
  fields = json.loads(path.read_text())
  del fields["labels_sha256"]
  path.write_text(json.dumps(fields))
  (directory / "labels.npy").unlink()
  return RecordSource(str(directory), 40)


def count_reads(monkeypatch):
  read, asked = records.RecordReader.read, []

  def counting(self, ids):
    asked.extend(ids)
    return read(self, ids)

  monkeypatch.setattr(records.RecordReader, "read", counting)
  return asked


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("in_order", [True, False])
def test_labels_are_those_of_the_records(
  shards, tmp_path, monkeypatch, in_order, stored
):
  labels = np.sort(np.random.default_rng(0).integers(6, size=37))
  if not in_order:
    labels = np.random.default_rng(1).permutation(labels)
  source = write(tmp_path / "data", labels.tolist(), shards[1])
  if not stored:
    source = before_labels(tmp_path / "data")
  asked = count_reads(monkeypatch)
  got = source.labels()
  np.testing.assert_array_equal(got, labels)
  assert got.dtype == np.int32
  assert not (stored and asked)
  np.testing.assert_array_equal(source.read(np.arange(37))[1], labels)


def test_labels_in_order_need_few_reads(shards, tmp_path, monkeypatch):
  write(tmp_path / "data", [0] * 20 + [1] * 17, shards[1])
  source = before_labels(tmp_path / "data")
  asked = count_reads(monkeypatch)
  assert source.labels().sum() == 17
  assert sorted(asked) == [0, 19, 20, 36]


def test_balanced_sampling_reads_no_record(shards, tmp_path, monkeypatch):
  labels = np.random.default_rng(2).integers(5, size=37)
  source = write(tmp_path / "data", labels.tolist(), shards[1])
  asked = count_reads(monkeypatch)
  order = example_order("class_balanced", seed=0, source=source)
  ids = order(np.arange(5 * 30))
  assert not asked
  counts = np.bincount(source.read(ids)[1], minlength=5)
  assert counts.tolist() == [30] * 5


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (lambda path: path.unlink(), "labels.npy.* is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:-4]), "checksum"),
    (lambda path: np.save(path, np.zeros(37, np.int32)), "checksum"),
  ],
)
def test_damaged_labels(shards, tmp_path, damage, says):
  source = write(tmp_path / "data", [0] * 20 + [1] * 17, shards[1])
  damage(tmp_path / "data" / "labels.npy")
  with pytest.raises(InputError, match=f"{says}.*copy the data set again"):
    source.labels()


class MakesFolder:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["too few", "of another type", "pickle"])
def test_labels_of_another_form(shards, tmp_path, kind):
  """Not even with the right checksum; a pickle is not opened."""
  write(tmp_path / "data", [0] * 37, shards[1])
  path = tmp_path / "data" / "labels.npy"
  labels = {
    "too few": np.zeros(36, np.int32),
    "of another type": np.zeros(37),
    "pickle": np.array([MakesFolder(str(tmp_path / "ran"))] * 37),
  }
  np.save(path, labels[kind])
  index = records.read_index(str(tmp_path / "data"))
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  index = dataclasses.replace(index, labels_sha256=digest)
  with pytest.raises(InputError, match="labels.npy.* is damaged"):
    records.read_labels(str(tmp_path / "data"), index)
  assert not (tmp_path / "ran").exists()


def test_mixed_sources_have_classes_of_their_own():
  parts = [NoiseSource(3, 10, 8), NoiseSource(4, 5, 8), NoiseSource(2, 7, 8)]
  mixed = MixedSource(parts)
  assert len(mixed) == 22 and mixed.num_classes == 9
  np.testing.assert_array_equal(mixed.class_sizes, [4, 3, 3, 2, 1, 1, 1, 4, 3])
  np.testing.assert_array_equal(np.bincount(mixed.labels()), mixed.class_sizes)
  ids = np.random.default_rng(0).permutation(22)
  images, labels = mixed.read(ids)
  np.testing.assert_array_equal(labels, mixed.labels()[ids])
  whole = np.concatenate([p.read(np.arange(len(p)))[0] for p in parts])
  np.testing.assert_array_equal(images, whole[ids])
  few, _ = mixed.read(np.array([12, 11]))  # Of one source alone.
  np.testing.assert_array_equal(few, whole[[12, 11]])


def test_fingerprint_of_a_mixture_is_that_of_all_in_order():
  one, other = NoiseSource(3, 10, 8), NoiseSource(4, 5, 8)
  prints = {
    MixedSource(parts).fingerprint
    for parts in ([one, other], [other, one], [one, one], [one])
  }
  assert len(prints) == 4
  assert MixedSource([one, other]).fingerprint in prints


def test_a_run_may_read_several_data_sets(shards, dataset):
  config = replaced(
    Settings(),
    {"data.image_size": 40, "data.directory": f"{dataset},{shards[0]}"},
  )
  source = open_source(config.data)
  one = RecordSource(dataset, 40)
  assert len(source) == 2 * 37 and source.num_classes == 24
  assert source.fingerprint != one.fingerprint
  np.testing.assert_array_equal(
    source.labels()[37:], one.labels() + one.num_classes
  )
  config = replaced(config, {"data.directory": dataset})
  assert open_source(config.data).fingerprint == one.fingerprint
