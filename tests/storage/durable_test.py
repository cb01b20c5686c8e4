"""What was called finished is there after a loss of power."""

import contextlib
import json
import os
import shutil

import numpy as np
import pytest
from conftest import convert
from power_loss import NAMES, Disk
from writers_test import DIRECTORIES, aligning, run_main

from data_prep import align, clean, inspect, synthesize
from data_prep.writing.writer import DatasetAssembler
from jamsface_jax import model_card, report
from jamsface_jax.data import local_copy, records
from jamsface_jax.embedding.files import EmbeddingFiles
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save, read_settings
from jamsface_jax.storage.bucket import Bucket
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights.exporting import export
from jamsface_jax.weights.importing import import_weights

SHARD = {"pairs": None, "shard_bytes": 6000}


@pytest.fixture
def disk(monkeypatch, tmp_path):
  (tmp_path / "disk").mkdir()
  with contextlib.closing(Disk(monkeypatch, tmp_path / "disk")) as found:
    yield found


def contents(directory):
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob("*"))
    if path.is_file() and path.name != align.JOURNAL_FILE
    if not path.name.endswith("lock")
  }


@pytest.mark.parametrize("names", NAMES)
def test_a_conversion(disk, image_folder, tmp_path, names):
  out = tmp_path / "disk" / "deep" / "out"
  convert(image_folder, out)
  disk.after_loss(tmp_path / "after", names)
  assert contents(tmp_path / "after" / "deep" / "out") == contents(out)
  index = records.read_index(str(tmp_path / "after" / "deep" / "out"))
  assert index.images == 37


@pytest.mark.parametrize("names", NAMES)
def test_shards_of_an_interrupted_conversion(
  disk, image_folder, tmp_path, monkeypatch, names
):
  """A shard that the journal names is not written again, nor lost."""
  accept, accepted = DatasetAssembler.accept, []

  def stop_after_two(self, finished):
    accept(self, finished)
    accepted.append(finished.number)
    if len(accepted) == 2:
      raise KeyboardInterrupt

  monkeypatch.setattr(DatasetAssembler, "accept", stop_after_two)
  out = tmp_path / "disk" / "out"
  with pytest.raises(KeyboardInterrupt):
    convert(image_folder, out, **SHARD)
  disk.after_loss(tmp_path / "after", names)
  convert(image_folder, tmp_path / "after" / "out", **SHARD)
  assert accepted == list(range(len(accepted)))
  convert(image_folder, tmp_path / "whole", **SHARD)
  assert contents(tmp_path / "after" / "out") == contents(tmp_path / "whole")


PLAN = {
  "images": 7,
  "embedding_size": 3,
  "dtype": "float32",
  "norms": False,
  "block": 3,
}


def write_blocks(directory, numbers):
  """Begins or goes on; returns the blocks that were done before."""
  files = EmbeddingFiles(str(directory), PLAN)
  done = np.flatnonzero(files.begin()).tolist()
  files.open(0)
  for block in numbers:
    start, stop = files.rows(block)
    rows = np.arange(start * 3, stop * 3, dtype=np.float32).reshape(-1, 3)
    labels = np.arange(start, stop)
    names = [str(k) for k in range(start, stop)]
    files.write(
      block, {"embeddings.npy": rows, "labels.npy": labels}, names, {}
    )
  files.close()
  return done, files


@pytest.mark.parametrize("names", NAMES)
def test_embeddings(disk, tmp_path, names):
  out, after = tmp_path / "disk" / "e", tmp_path / "after"
  write_blocks(out, [0, 2])
  disk.after_loss(after, names)
  done, files = write_blocks(after / "e", [1])
  assert done == [0, 2]
  files.finish()
  whole = contents(after / "e")
  _, files = write_blocks(out, [1])
  files.finish()
  disk.after_loss(after, names)
  assert contents(after / "e") == whole == contents(out)
  assert json.loads(whole["meta.json"])["images"] == 7


@pytest.mark.parametrize("names", NAMES)
def test_settings_and_a_checkpoint(disk, tmp_path, names):
  run = RunDirectory(str(tmp_path / "disk" / "deep" / "w"))
  with run.held():
    check_or_save(Settings(), run)
    run.checkpoints.create()
    part = os.path.join(run.checkpoints.saving_place(7), "head", "d")
    os.makedirs(part)
    with open(os.path.join(part, "array"), "wb") as file:
      file.write(bytes(range(200)))
    run.checkpoints.complete(7)
    disk.after_loss(tmp_path / "after", names)
  after = RunDirectory(str(tmp_path / "after" / "deep" / "w"))
  assert read_settings(after) == Settings()
  assert after.checkpoints.steps() == [7]
  assert after.checkpoints.find_damage(7, ()) is None


@pytest.mark.parametrize("names", NAMES)
def test_an_export(disk, untrained, tmp_path, names):
  shutil.copytree(untrained, tmp_path / "w")
  output = tmp_path / "disk" / "weights.npz"
  run = RunDirectory(str(tmp_path / "w"))
  export(run, "numpy", str(output), step=None, input_dtype="uint8")
  disk.after_loss(tmp_path / "after", names)
  assert (tmp_path / "after" / "weights.npz").read_bytes() == (
    output.read_bytes()
  )


@pytest.mark.parametrize("names", NAMES)
def test_aligned_faces(disk, image_folder, tmp_path, names):
  made = []

  def locate(image, _):
    made.append(image)
    return np.array([[9, 9], [30, 9], [20, 20], [11, 30], [29, 30.0]])

  def go(directory):
    align.align(
      str(image_folder / "images"),
      str(directory),
      locate,
      origin={},
      size=32,
      extension="png",
      skip_bad=False,
      threads=1,
    )

  go(tmp_path / "disk" / "out")
  disk.after_loss(tmp_path / "after", names)
  assert len(made) == 37
  go(tmp_path / "after" / "out")
  assert len(made) == 37
  assert contents(tmp_path / "after" / "out") == (
    contents(tmp_path / "disk" / "out")
  )


# Aligning, which needs a face to be found, is above.
@pytest.mark.parametrize("write", [w for w in DIRECTORIES if w is not aligning])
def test_all_that_a_command_wrote(
  write, disk, untrained, dataset, image_folder, tmp_path
):
  """A command has ended: no name and no byte of its output may be missing."""
  source = image_folder if write.__name__ != "evaluating" else dataset
  write(RunDirectory(untrained), source, tmp_path / "disk" / "out")
  written = contents(tmp_path / "disk")
  assert written
  for names in NAMES:
    disk.after_loss(tmp_path / "after", names)
    assert contents(tmp_path / "after") == written


def reporting(run, output, patch):
  run_main(patch, report, run, f"--output={output}/r.html")


def carding(run, output, patch):
  run_main(patch, model_card, run, f"--output={output}/card.md")


def exporting(run, output, patch):
  for name in ("safetensors", "stablehlo"):
    export(
      RunDirectory(run),
      name,
      f"{output}/{name}",
      step=None,
      input_dtype="uint8",
    )


def importing(run, output, patch):
  file = str(output.parent / "w.npz")
  export(RunDirectory(run), "numpy", file, step=None, input_dtype="uint8")
  import_weights(
    file,
    RunDirectory(f"{output}/w"),
    model=None,
    embedding_size=None,
    image_size=None,
    color_order=None,
    normalization=None,
    activation=None,
  )


def cleaning(run, output, patch):
  folder = output.parent / "e"
  folder.mkdir()
  np.save(folder / "embeddings.npy", np.eye(3, dtype=np.float32))
  np.save(folder / "labels.npy", np.zeros(3, np.int64))
  (folder / "paths.txt").write_text("a\nb\nc\n")
  similarity = ("min_similarity", "class_similarity", "duplicate_similarity")
  clean.clean(str(folder), f"{output}/list", **dict.fromkeys(similarity, 0.5))


def synthesizing(run, output, patch):
  synthesize.main(
    [
      f"--output={output}/s",
      "--identities=4",
      "--images=12",
      "--tail=zipf:0.1",
      "--test_identities=20",
      "--test_images=2",
      "--pairs=20",
      "--size=32",
      "--workers=1",
    ]
  )


@pytest.mark.parametrize(
  "write", [reporting, carding, exporting, importing, cleaning, synthesizing]
)
def test_all_files_that_a_command_wrote(
  write, disk, untrained, tmp_path, monkeypatch
):
  write(untrained, tmp_path / "disk", monkeypatch)
  written = contents(tmp_path / "disk")
  assert written
  for names in NAMES:
    disk.after_loss(tmp_path / "after", names)
    assert contents(tmp_path / "after") == written


def test_an_inspection(disk, dataset, tmp_path):
  out = str(tmp_path / "disk" / "out")
  inspect.inspect(dataset, against=None, output=out, faces=True, threads=1)
  written = contents(tmp_path / "disk")
  assert len(written) > 2
  for names in NAMES:
    disk.after_loss(tmp_path / "after", names)
    assert contents(tmp_path / "after") == written


def test_a_copy_of_a_data_set(disk, gcs, dataset, tmp_path, monkeypatch):
  """What has its name in the copy is not looked at again."""
  place = Bucket("gs://durable/tiny")
  names = [name for name in os.listdir(dataset) if name != "lock"]
  place.upload({n: os.path.join(dataset, n) for n in names})
  local_copy.keep_copies_in(str(tmp_path / "disk"))
  try:
    copy = local_copy.local_copy(place.address)
  finally:
    local_copy.keep_copies_in("")
  for kind in NAMES:
    disk.after_loss(tmp_path / "after", kind)
    after = tmp_path / "after" / os.path.basename(copy)
    for name in names:
      with open(os.path.join(dataset, name), "rb") as file:
        assert (after / name).read_bytes() == file.read(), name
