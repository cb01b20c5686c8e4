"""Data sets that are converted into a bucket."""

import os
import pathlib

import numpy as np
import pytest

from data_prep import from_folder
from jamsface_jax.data import local_copy
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.storage.bucket import Bucket


@pytest.fixture
def address(gcs, request, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  yield f"gs://data/{request.node.name}/tiny"
  local_copy._copy.cache_clear()
  local_copy._copied.clear()


def convert(monkeypatch, image_folder, output, *flags):
  words = ["x", f"--input={image_folder / 'images'}", f"--output={output}"]
  pairs = f"--pairs={image_folder / 'pairs.txt'}"
  monkeypatch.setattr("sys.argv", [*words, pairs, *flags])
  assert from_folder.main() == 0


def test_it_is_the_one_that_a_disk_would_have(
  address, image_folder, dataset, monkeypatch, capsys
):
  convert(monkeypatch, image_folder, address)
  assert f"sent to {address}" in capsys.readouterr().out
  here, there = RecordSource(dataset, 32), RecordSource(address, 32)
  assert (there.name, there.fingerprint) == (here.name, here.fingerprint)
  ids = np.arange(len(here))
  np.testing.assert_array_equal(there.read(ids)[0], here.read(ids)[0])
  names = [name for name in os.listdir(dataset) if name != "lock"]
  assert Bucket(address).list_files() == sorted(names)
  with pytest.raises(InputError, match="holds a data set already"):
    convert(monkeypatch, image_folder, address)


def test_sending_goes_on(address, image_folder, monkeypatch, capsys):
  """The bucket fails after two files; then the same command sends the rest."""
  upload, sent = Bucket.upload, []

  def failing(self, files):
    if len(sent) == 2:
      raise OSError(5, "the bucket did not answer")
    sent.extend(files)
    upload(self, files)

  def noting(self, files):
    sent.extend(files)
    upload(self, files)

  with monkeypatch.context() as patch, pytest.raises(RunError, match="again"):
    patch.setattr(Bucket, "upload", failing)
    convert(patch, image_folder, address)
  place = Bucket(address)
  assert sorted(place.blobs()) == sorted(sent) and len(sent) == 2
  (directory,) = pathlib.Path(os.environ["XDG_CACHE_HOME"]).glob(
    "*/uploads/*-*[!d]"
  )
  before = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
  with pytest.raises(InputError, match="another command began"):
    convert(monkeypatch, image_folder, address, "--min_images=2")
  with monkeypatch.context() as patch:
    patch.setattr(Bucket, "upload", noting)
    convert(patch, image_folder, address)
  assert "is whole since an earlier attempt" in capsys.readouterr().out
  assert before == {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
  assert len(sent) == len(set(sent))
  assert sorted([*sent, "dataset.json"]) == place.list_files()


FOLDER = pathlib.Path(from_folder.__file__).parent
COMMANDS = sorted(path.stem for path in FOLDER.glob("from_*.py"))
NEEDED = {
  "from_ijb": ["--meta=x"],
  "from_list": ["--root=x"],
  "from_pairs": ["--protocol=lfw", "--pairs=x"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_converter_knows_addresses(run, tmp_path, name):
  flags = ["--input=x", *NEEDED.get(name, ())]
  done = run(f"data_prep.{name}", *flags, f"--output=s3://{tmp_path.name}/x")
  assert done.returncode == 2, done.stderr
  assert "is an address and not a path" in done.stderr
  assert not pathlib.Path("s3:").exists()
