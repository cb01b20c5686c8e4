import shutil

import cv2
import numpy as np
import pytest
import simplejpeg

from data_prep.writer import DatasetWriter
from jamsface_jax.data import decoding, records
from jamsface_jax.data.sources import RecordSource


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


def test_source_reads_rows_in_order(shards):
  directory, stored = shards
  ids = np.array([36, 0, 17, 17])
  images, labels = RecordSource(directory, 40).read(ids)
  for image, label, i in zip(images, labels, ids, strict=True):
    np.testing.assert_array_equal(image, decoding.decode_image(stored[i].image))
    assert label == stored[i].label
