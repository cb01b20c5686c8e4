"""What was called finished is there after a loss of power."""

import contextlib
import dataclasses
import json
import os
import pathlib
import pickle

import from_bin_test
import from_ijb_test
import jax
import numpy as np
import pytest
import recordio_test
from conftest import convert
from power_loss import NAMES, Disk
from tiny_runs import tiny_config
from writers_test import (
  converting,
  embedding,
  evaluating,
  pairing,
  run_main,
  searching,
)

from data_prep import align, clean, from_bin, from_list, inspect, synthesize
from data_prep.writing.writer import DatasetAssembler
from jamsface_jax import model_card, report, search
from jamsface_jax.ablation import tables
from jamsface_jax.ablation.comparison import make_comparison
from jamsface_jax.ablation.directory import ComparisonDirectory
from jamsface_jax.ablation.statistics import tune
from jamsface_jax.ablation.trials import plan_trials, plan_tuning
from jamsface_jax.commands import commands
from jamsface_jax.data import local_copy, records
from jamsface_jax.embedding.files import EmbeddingFiles
from jamsface_jax.export import FORMATS
from jamsface_jax.pods.accelerators import Topology
from jamsface_jax.pods.check import check
from jamsface_jax.run.launches import note_launch
from jamsface_jax.run.metrics_file import drop_after
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save, read_settings
from jamsface_jax.storage.bucket import Bucket
from jamsface_jax.storage.run_directory import RunDirectory, RunFile
from jamsface_jax.training.train import train
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


def align_faces(folder, directory, made):
  """Aligns faces at one place of each photograph; notes what was looked at."""

  def locate(image, _):
    made.append(image)
    return np.array([[9, 9], [30, 9], [20, 20], [11, 30], [29, 30.0]])

  align.align(
    str(folder),
    str(directory),
    locate,
    origin={},
    size=32,
    extension="png",
    skip_bad=False,
    threads=1,
  )


@pytest.mark.parametrize("names", NAMES)
def test_aligned_faces(disk, image_folder, tmp_path, names):
  """A face that the journal names is not made again, nor lost."""
  made = []
  align_faces(image_folder / "images", tmp_path / "disk" / "out", made)
  disk.after_loss(tmp_path / "after", names)
  assert len(made) == 37
  align_faces(image_folder / "images", tmp_path / "after" / "out", made)
  assert len(made) == 37
  assert contents(tmp_path / "after" / "out") == (
    contents(tmp_path / "disk" / "out")
  )


@pytest.mark.parametrize("names", NAMES)
def test_a_launch_and_lines_that_were_set_aside(disk, tmp_path, names):
  run = RunDirectory(str(tmp_path / "disk"))
  note_launch(run, {"total_steps": 5})
  disk.after_loss(tmp_path / "begun", names)
  (tmp_path / "disk" / "metrics.jsonl").write_text("none\n")
  assert drop_after(run.metrics, 0) == set()
  disk.after_loss(tmp_path / "after", names)
  begun, after = tmp_path / "begun", tmp_path / "after"
  assert '"total_steps": 5' in (begun / "starts.jsonl").read_text()
  assert (after / "metrics.jsonl.set_aside").read_text() == "none\n"


@dataclasses.dataclass
class Given:
  """What commands read: a run, a folder with pictures, a data set."""

  run: str
  images: pathlib.Path
  dataset: str


def whole(write):
  """A writer of `writers_test` as one of these."""
  return lambda given, output, patch: write(
    RunDirectory(given.run),
    given.dataset if write is evaluating else given.images,
    output / "out",
  )


def reporting(given, output, patch):
  run_main(patch, report, given.run, f"--output={output}/r.html")


def carding(given, output, patch):
  run_main(patch, model_card, given.run, f"--output={output}/card.md")


def exporting(given, output, patch):
  for name in FORMATS:
    export(
      RunDirectory(given.run),
      name,
      f"{output}/{name}",
      step=None,
      input_dtype="uint8",
    )


def importing(given, output, patch):
  file = str(output.parent / "w.npz")
  export(RunDirectory(given.run), "numpy", file, step=None, input_dtype="uint8")
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


def cleaning(given, output, patch):
  folder = output.parent / "e"
  folder.mkdir()
  np.save(folder / "embeddings.npy", np.eye(3, dtype=np.float32))
  np.save(folder / "labels.npy", np.zeros(3, np.int64))
  (folder / "paths.txt").write_text("a\nb\nc\n")
  similarity = ("min_similarity", "class_similarity", "duplicate_similarity")
  clean.clean(str(folder), f"{output}/list", **dict.fromkeys(similarity, 0.5))


def synthesizing(given, output, patch):
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


def inspecting(given, output, patch):
  out = f"{output}/out"
  inspect.inspect(
    given.dataset, against=None, output=out, faces=True, threads=1
  )


def aligning_a_face(given, output, patch):
  align_faces(given.images / "images", output / "out", [])


def listing(given, output, patch):
  folder = given.images / "images"
  names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.jpg"))
  (output.parent / "list").write_text(
    "".join(f"{name} {name[:9]}\n" for name in names)
  )
  from_list.convert(
    str(output.parent / "list"),
    f"{output}/out",
    root=str(folder),
    name="t",
    min_images_per_class=1,
    skip_bad=False,
    exclude=None,
    check_images=True,
    threads=1,
  )


def converting_records(given, output, patch):
  rec, index = recordio_test.im2rec(recordio_test.CLASSES, recordio_test.IMAGES)
  source = recordio_test.save(output.parent / "rec", rec, index)
  recordio_test.convert(source, output / "out")


def converting_a_pickle(given, output, patch):
  content = from_bin_test.jpegs(46), from_bin_test.FLAGS
  data = output.parent / "set.bin"
  data.write_bytes(pickle.dumps(content))
  from_bin.convert(
    str(data), f"{output}/out", name="t", skip_bad=False, threads=1
  )


def converting_templates(given, output, patch):
  root = from_ijb_test.write_ijb(output.parent)
  from_ijb_test.convert(root, str(output / "out"))


def converting_tfds(given, output, patch):
  import from_tfds_test  # TFDS takes seconds.

  path = str(output.parent / "tfds")
  from_tfds_test.NamedFaces(
    data_dir=path, file_format="array_record"
  ).download_and_prepare()
  from_tfds_test.convert("named_faces", output / "out", path)


def finding(given, output, patch):
  folder = output.parent / "e"
  folder.mkdir()
  np.save(folder / "embeddings.npy", np.eye(3, dtype=np.float32))
  np.save(folder / "labels.npy", np.arange(3))
  (folder / "paths.txt").write_text("a\nb\nc\n")
  flags = (f"--images={folder}", f"--gallery={folder}", "--threshold=0.5")
  run_main(patch, search, *flags, f"--output={output}/out")


def comparing(given, output, patch):
  """Its runs are those of `main`, each a process: this is what is its own."""
  tuning = {
    "metric": "m",
    "seeds": (3,),
    "settings": (),
    "factors": (1.0,),
    "choices": {name: (("x=1",),) for name in "ab"},
  }
  comparison = make_comparison(
    {
      "recipes": ("r.py",),
      "seeds": (0, 1),
      "metrics": ("m",),
      "rows": {name: ("x",) for name in "ab"},
      "reference": "a",
      "tuning": tuning,
    }
  )
  place = ComparisonDirectory.at(f"{output}/out")
  tried = {run: {"m": 1.0} for run in plan_tuning(comparison, place)}
  chosen, curves = tune(comparison, tried)
  runs = plan_trials(comparison, place, chosen)
  results = {run: {"m": run.seed + len(run.row)} for run in runs}
  with place.held():
    tables.write(place, comparison, results, curves)


def compiling(given, output, patch):
  settings = tiny_config(given.dataset)
  topology = Topology("cpu:8", None, (8,), 1, jax.devices(), 2**30)
  _, found = check(
    settings,
    topology,
    num_classes=12,
    num_images=37,
    batch_per_device=None,
    models="1",
    cache=f"{output}/cache",
    suggest=False,
  )
  RunFile.at(f"{output}/report.json", "--output").write_json([found])


def training(given, output, patch):
  config = tiny_config(given.dataset, **{"schedule.length": 2.0})
  assert train(config, RunDirectory(f"{output}/out")) == 0


# A command that is added must be put here: how it is run.
WRITERS = {
  "data_prep.align": aligning_a_face,
  "data_prep.clean": cleaning,
  "data_prep.from_bin": converting_a_pickle,
  "data_prep.from_folder": whole(converting),
  "data_prep.from_ijb": converting_templates,
  "data_prep.from_list": listing,
  "data_prep.from_pairs": whole(pairing),
  "data_prep.from_recordio": converting_records,
  "data_prep.from_search": whole(searching),
  "data_prep.from_tfds": converting_tfds,
  "data_prep.inspect": inspecting,
  "data_prep.synthesize": synthesizing,
  "jamsface_jax.ablate": comparing,
  "jamsface_jax.compile_check": compiling,
  "jamsface_jax.embed": whole(embedding),
  "jamsface_jax.evaluate": whole(evaluating),
  "jamsface_jax.export": exporting,
  "jamsface_jax.import_weights": importing,
  "jamsface_jax.main": training,
  "jamsface_jax.model_card": carding,
  "jamsface_jax.report": reporting,
  "jamsface_jax.search": finding,
}
# The one prints; what the other tries it removes.
WRITES_NOTHING = {"jamsface_jax.config", "jamsface_jax.doctor"}
# The clock of a run, and the copy for TensorBoard of what metrics.jsonl has.
SPARED = {"out/goodput.json"}
SLOW = ("from_tfds", "compile_check", "export", "main", "synthesize")


def test_every_command_is_among_those_that_write():
  known = [*commands("data_prep"), *commands("jamsface_jax")]
  assert sorted(WRITERS.keys() | WRITES_NOTHING) == sorted(known)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(n, marks=[pytest.mark.slow] if n.endswith(SLOW) else [])
    for n in WRITERS
  ],
)
def test_all_that_a_command_wrote(
  name, disk, untrained, dataset, image_folder, tmp_path, monkeypatch
):
  """A command has ended: no name and no byte of its output may be missing."""
  given = Given(untrained, image_folder, dataset)
  WRITERS[name](given, tmp_path / "disk", monkeypatch)
  written = kept(tmp_path / "disk")
  assert written
  for names in NAMES:
    disk.after_loss(tmp_path / "after", names)
    assert kept(tmp_path / "after") == written


def kept(directory):
  """What may not be lost of a directory."""
  return {
    name: data
    for name, data in contents(directory).items()
    if name not in SPARED and not name.startswith("out/tensorboard/")
  }


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
