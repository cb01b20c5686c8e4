"""Data sets in a bucket: copied once, whole, checked, by nobody twice."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from jamsface_jax.data import local_copy as local_copy_file
from jamsface_jax.data.images import open_images
from jamsface_jax.data.local_copy import is_here, keep_copies_in, local_copy
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation.tasks import open_tasks
from jamsface_jax.storage.bucket import Bucket


@pytest.fixture
def address(gcs, dataset, request, tmp_path):
  """The data set of the tests in a bucket; copies go to `tmp_path`."""
  address = f"gs://data/{request.node.name}/tiny"
  root = pathlib.Path(dataset)
  files = [path for path in root.rglob("*") if path.is_file()]
  Bucket(address).upload({str(p.relative_to(root)): str(p) for p in files})
  keep_copies_in(str(tmp_path / "copies"))
  forget()
  yield address
  keep_copies_in("")
  forget()


def forget():
  """What another process would not know."""
  local_copy_file._copy.cache_clear()
  local_copy_file._copied.clear()


def downloads(gcs):
  return [path for method, path, *_ in gcs.log if "alt=media" in path]


def test_a_data_set_is_copied_once_and_is_the_same(gcs, dataset, address):
  assert is_here(dataset) and not is_here(address)
  here = RecordSource(dataset, 32)
  copy = RecordSource(address, 32)
  assert is_here(address)
  assert copy.fingerprint == here.fingerprint and copy.name == here.name
  ids = np.arange(len(here))
  np.testing.assert_array_equal(copy.read(ids)[0], here.read(ids)[0])
  assert sorted(os.listdir(copy.directory)) == sorted(os.listdir(dataset))
  gcs.log.clear()
  forget()  # Another process asks what there is, and copies nothing.
  assert RecordSource(address, 32).directory == copy.directory
  assert not downloads(gcs) and len(gcs.log) == 1
  (task,) = open_tasks(f"{address}", 32)
  assert task.source.directory == copy.directory
  images = open_images(address, 32, root=None, color_order=None)
  assert len(images) == len(here)


def test_a_directory_is_what_it_is(dataset):
  assert local_copy(dataset) == dataset


def test_a_copy_that_was_interrupted_goes_on(gcs, dataset, address):
  directory = local_copy(address)
  os.remove(f"{directory}/dataset.json")
  (shard,) = pathlib.Path(directory).glob("*.array_record*")
  shard.rename(f"{shard}.partial")  # Half of it, say.
  gcs.log.clear()
  forget()
  assert local_copy(address) == directory
  assert len(downloads(gcs)) == 2
  assert sorted(os.listdir(directory)) == sorted(os.listdir(dataset))


def test_other_content_is_another_copy(dataset, address):
  first = local_copy(address)
  Bucket(address).write("pairs.txt", b"0\n")
  forget()
  assert local_copy(address) != first
  assert pathlib.Path(local_copy(address), "pairs.txt").read_text() == "0\n"


def test_bytes_that_change_on_their_way_are_noticed(gcs, address, monkeypatch):
  from gcs_server import Object  # noqa: PLC0415

  monkeypatch.setattr(Object, "crc32c", "AAAAAA==")
  monkeypatch.setattr(Object, "md5", "AAAAAAAAAAAAAAAAAAAAAA==")
  with pytest.raises(Exception, match=r"[Cc]hecksum"):
    local_copy(address)


def test_a_disk_that_is_too_small_is_one_sentence(address, monkeypatch):
  usage = shutil.disk_usage("/")._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(InputError, match=r"needs [\d,]+ bytes in .*--data_cache"):
    local_copy(address)
  monkeypatch.undo()

  def fill(*arguments):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(Bucket, "download", fill)
  with pytest.raises(InputError, match="does not fit.*make room"):
    local_copy(address)


@pytest.mark.parametrize(
  ("place", "says"),
  [
    ("gs://data/none", "is not there: copy one to it"),
    ("gs://missing/x", "there is no bucket 'missing'"),
    ("gs://data", "of the form gs://BUCKET/NAME"),
  ],
)
def test_what_is_not_there_is_named(gcs, tmp_path, place, says):
  with pytest.raises(InputError, match=says):
    RecordSource(place, 32)
