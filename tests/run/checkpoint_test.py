"""Checkpoints that are damaged, interrupted, or have no room."""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_runs import assert_equal, read_lines, read_state, tiny_config
from tiny_runs import without_speed as timeless

from jamsface_jax.devices import sharding
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.models import backbone_shapes
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import CheckpointReader, Checkpoints
from jamsface_jax.run.components import make_components, make_model
from jamsface_jax.storage.manifest import (
  MANIFEST_FILE,
  find_damage,
  write_manifest,
)
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.train import train


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "w"
  assert train(tiny_config(dataset), RunDirectory(str(workdir))) == 0
  return workdir


@pytest.fixture
def run_copy(finished, tmp_path):
  """A finished run of checkpoints 4, 8 and 12, to be damaged."""
  shutil.copytree(finished, tmp_path / "w")
  return tmp_path / "w"


def largest(directory):
  """The file with the most bytes: numbers of an array."""
  files = [p for p in directory.rglob("*") if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
  "a bit of the head": lambda d: flip_bit(largest(d / "head")),
  "a bit of the backbone": lambda d: flip_bit(largest(d / "backbone")),
  "a bit of the optimizer": lambda d: flip_bit(
    d / "training" / "manifest.ocdbt"
  ),
  "a bit of the metadata": lambda d: flip_bit(d / "metadata" / "metadata"),
  "file cut off": lambda d: truncate(largest(d / "backbone")),
  "file empty": lambda d: largest(d / "head").write_bytes(b""),
  "file missing": lambda d: largest(d / "training").unlink(),
  "item missing": lambda d: shutil.rmtree(d / "training"),
  "metadata broken": lambda d: (d / "metadata" / "metadata").write_text("{"),
  "structure broken": lambda d: (d / "head" / "_METADATA").write_text("{"),
  "manifest broken": lambda d: truncate(d / MANIFEST_FILE),
  "manifest missing": lambda d: (d / MANIFEST_FILE).unlink(),
}


def contents(directory):
  """All files below a directory and their bytes."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file()
  }


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_sound_one_before_used(
  run_copy, dataset, capsys, damage
):
  newest = run_copy / "checkpoints" / "12"
  whole = contents(newest)
  DAMAGES[damage](newest)
  damaged = contents(newest)
  assert damaged != whole  # It is damaged.
  checkpoints = Checkpoints(
    RunDirectory(str(run_copy)), keep_last=3, keep_best=""
  )
  assert checkpoints.newest_sound() == 8
  checkpoints.close()
  warnings = capsys.readouterr().err
  assert "checkpoint 12 is damaged" in warnings and str(newest) in warnings
  assert "going on from step 8: 4 steps lost" in warnings
  # Nothing is deleted, and the number is free for the sound one.
  assert contents(run_copy / "checkpoints" / "12.damaged") == damaged
  assert not newest.exists()


@pytest.mark.slow
def test_run_with_a_damaged_checkpoint_ends_as_the_undisturbed(
  finished, run_copy, dataset
):
  flip_bit(largest(run_copy / "checkpoints" / "12" / "head"))
  config = tiny_config(dataset)
  assert train(config, RunDirectory(str(run_copy))) == 0
  assert_equal(read_state(config, run_copy), read_state(config, finished))
  assert timeless(read_lines(run_copy)) == timeless(read_lines(finished))


def test_orbax_does_not_see_a_flipped_bit(finished, run_copy, dataset):
  """Why there is a manifest: without it, other numbers come back."""
  directory = run_copy / "checkpoints" / "12"
  flip_bit(largest(directory / "backbone"))
  write_manifest(str(directory))
  config = tiny_config(dataset)
  want, got = (
    jax.tree.leaves(read_state(config, w).params["backbone"])
    for w in (finished, run_copy)
  )
  assert not all(map(np.array_equal, want, got))


@pytest.mark.slow
def test_several_damaged_checkpoints(run_copy, dataset, capsys):
  for step in (8, 12):
    flip_bit(largest(run_copy / "checkpoints" / str(step)))
  # Of an earlier accident: it stays as it is.
  (run_copy / "checkpoints" / "12.damaged").mkdir()
  assert train(tiny_config(dataset), RunDirectory(str(run_copy))) == 0
  assert "going on from step 4: 8 steps lost" in capsys.readouterr().err
  names = {path.name for path in (run_copy / "checkpoints").iterdir()}
  assert names == {"4", "8", "12", "8.damaged", "12.damaged", "12.damaged.2"}
  assert not list((run_copy / "checkpoints" / "12.damaged").iterdir())


@pytest.mark.slow
def test_clean_up_never_prefers_a_damaged_checkpoint(run_copy, dataset):
  """Keeping two, the two newest are damaged: the sound one stays."""
  for step in (8, 12):
    flip_bit(largest(run_copy / "checkpoints" / str(step)))
  config = tiny_config(dataset, **{"checkpoint.keep_last": 2})
  assert train(config, RunDirectory(str(run_copy))) == 0
  directory = run_copy / "checkpoints"
  for step in ("8", "12"):
    assert find_damage(str(directory / step), ()) is None


def test_no_sound_checkpoint_is_refused(run_copy, dataset):
  directory = run_copy / "checkpoints"
  for step in ("4", "8", "12"):
    flip_bit(largest(directory / step))
  before = contents(directory)
  with pytest.raises(RunError, match="none of the 3 .* step 12, .* backup"):
    train(tiny_config(dataset), RunDirectory(str(run_copy)))
  assert contents(directory) == before


@pytest.mark.slow
def test_interrupted_save_and_removal_are_swept_up(
  finished, run_copy, dataset, capsys
):
  directory = run_copy / "checkpoints"
  (directory / "12").rename(directory / "12.saving.orbax-checkpoint-tmp")
  (directory / "4").rename(directory / "4.deleting")
  (directory / "notes.txt").write_text("of the user")
  config = tiny_config(dataset)
  assert train(config, RunDirectory(str(run_copy))) == 0
  assert "save of checkpoint 12 had been" in capsys.readouterr().err
  assert {path.name for path in directory.iterdir()} == {
    "8",
    "12",
    "notes.txt.set_aside",
  }
  assert_equal(read_state(config, run_copy), read_state(config, finished))


def test_reader_takes_the_newest_whose_backbone_is_sound(run_copy, capsys):
  directory = run_copy / "checkpoints"
  flip_bit(largest(directory / "12" / "backbone"))
  reader = CheckpointReader(RunDirectory(str(run_copy)))
  assert reader.choose(None) == 8
  assert "checkpoint 12 is damaged" in capsys.readouterr().err
  with pytest.raises(RunError, match="checkpoint 12 .*/backbone/.* other byte"):
    reader.restore_item(12, "backbone", {})
  # A damaged head is no matter to those who embed.
  flip_bit(largest(directory / "8" / "head"))
  assert CheckpointReader(RunDirectory(str(run_copy))).choose(None) == 8
  assert not (directory / "12.damaged").exists()  # A reader moves nothing.


def test_manifest(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x").write_bytes(b"12345")
  (tmp_path / "b").write_bytes(b"")
  write_manifest(str(tmp_path))
  assert find_damage(str(tmp_path), ()) is None
  (tmp_path / "new").write_bytes(b"later")  # No matter.
  assert find_damage(str(tmp_path), ()) is None
  (tmp_path / "a" / "x").write_bytes(b"12346")
  assert "a/x' has other bytes" in find_damage(str(tmp_path), ())
  assert find_damage(str(tmp_path), ("b",)) is None
  (tmp_path / "a" / "x").write_bytes(b"1234")
  assert "a/x' has 4 bytes of 5" in find_damage(str(tmp_path), ("a",))
  (tmp_path / "b").unlink()
  assert "b' is missing" in find_damage(str(tmp_path), ("b",))


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("num_classes", 13),
    ("data_fingerprint", "abc"),
    ("color_order", "BGR"),
    ("model", {"name": "iresnet", "width": 0.25}),
  ],
)
def test_other_metadata_is_refused(run_copy, dataset, name, value):
  directory = run_copy / "checkpoints" / "12"
  path = directory / "metadata" / "metadata"
  stored = json.loads(path.read_text())
  ours = stored[name]
  stored[name] = value
  path.write_text(json.dumps(stored))
  write_manifest(str(directory))
  with pytest.raises(InputError, match="give the same data and set") as error:
    train(tiny_config(dataset), RunDirectory(str(run_copy)))
  if name == "model":
    assert "model.width 0.25 and not 0.125" in str(error.value)
  else:
    assert f"{name} {value!r} and not {ours!r}" in str(error.value)


def small_state():
  config = tiny_config("")
  components = make_components(config, 12, 37)
  mesh = sharding.make_mesh(-1)
  return (
    state.create_state(0, components, 32, mesh),
    state.state_shapes(components, 32, mesh),
  )


@pytest.mark.slow
def test_best_checkpoint_is_known_after_a_restart(tmp_path):
  """The scores of earlier starts are in the metrics."""
  current, _ = small_state()
  scores = {1: 0.5, 2: 0.9, 3: None}
  (tmp_path / "metrics.jsonl").write_text(
    "".join(
      json.dumps({"step": step, "x/auc": score}) + "\n"
      for step, score in scores.items()
    )
    + '{"step": 4, "x/auc": 1.0'  # Torn.
  )
  checkpoints = Checkpoints(
    RunDirectory(str(tmp_path)), keep_last=1, keep_best="x/auc"
  )
  for step in (1, 2, 3, 4):
    checkpoints.save(step, current, {})
  checkpoints.note_metrics(5, {"x/auc": 0.7})
  checkpoints.save(5, current, {})
  checkpoints.save(6, current, {})
  checkpoints.close()
  assert checkpoints.steps() == [2, 6]


def sentence_of(stderr):
  """All that is printed, though threads of Orbax's and TensorStore's report."""
  (line,) = stderr.splitlines()
  assert line.startswith("error: ")
  return line


FULL_DISK = """
import resource, sys
from jamsface_jax import main
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.errors import run_command

save = Checkpoints.save
def save_with_less_room(self, step, *args):
  if step == 12:
    self.wait()  # That of step 8 has all the room it needs.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
  save(self, step, *args)
Checkpoints.save = save_with_less_room
run_command(main.main)
"""


def flags(dataset, workdir):
  return [
    "--config=configs/demo.py:tiny",
    f"--workdir={workdir}",
    f"--config.data.directory={dataset}",
    "--config.schedule.length=24",
    "--config.checkpoint.every=4",
    "--config.checkpoint.keep_last=100",
  ]


def start(*command):
  return subprocess.run(
    [sys.executable, *command],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      # It warns where it cannot write.
      "JAX_ENABLE_COMPILATION_CACHE": "false",
    },
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_write_error_in_a_save_stops_the_run(dataset, tmp_path):
  """Files may not grow beyond 20 kB when checkpoint 12 is written."""
  done = start("-c", FULL_DISK, *flags(dataset, tmp_path / "w"))
  assert done.returncode == 1, done.stderr
  line = sentence_of(done.stderr)
  assert line.startswith("error: checkpoint 12 could not be written to")
  assert "File too large" in line and "that of step 8 is there" in line
  directory = tmp_path / "w" / "checkpoints"
  names = {path.name for path in directory.iterdir()}
  # What was begun is told from a checkpoint by its name.
  assert {name for name in names if ".saving" not in name} == {"4", "8"}
  done = start("-m", "jamsface_jax.main", *flags(dataset, tmp_path / "w"))
  assert done.returncode == 0, done.stderr
  assert {path.name for path in directory.iterdir()} >= {"8", "12", "24"}


@pytest.fixture
def small_disk(tmp_path):
  """A file system of one and a half megabytes."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("mounting needs root")
  yield disk
  # The last files are let go of a moment after their process.
  for _ in range(20):
    if not subprocess.run(["umount", str(disk)]).returncode:
      break
    time.sleep(0.2)


@pytest.mark.slow
def test_full_disk_stops_the_run(dataset, small_disk):
  workdir = small_disk / "w"
  done = start("-m", "jamsface_jax.main", *flags(dataset, workdir))
  assert done.returncode == 1, (done.stdout, done.stderr)
  line = sentence_of(done.stderr)
  assert "No space left on device" in line and "make room" in line
  newest = CheckpointReader(RunDirectory(str(workdir))).latest_step()
  assert 4 <= newest < 24
  # Metrics may be what finds the disk full, while a checkpoint is written.
  if line.startswith("error: checkpoint"):
    assert f"that of step {newest} is there" in line
  assert find_damage(str(workdir / "checkpoints" / str(newest)), ()) is None
  # With room made, the same command goes on.
  subprocess.run(
    ["mount", "-o", "remount,size=64m", str(small_disk)], check=True
  )
  done = start("-m", "jamsface_jax.main", *flags(dataset, workdir))
  assert done.returncode == 0, done.stderr
  assert f"{newest} done of 24" in done.stdout


def test_state_comes_back_on_the_mesh_that_is_asked_for(tmp_path, mesh):
  current, _ = small_state()
  checkpoints = Checkpoints(
    RunDirectory(str(tmp_path)), keep_last=1, keep_best=""
  )
  checkpoints.save(3, current, {"a": [1, 2]})
  checkpoints.wait()
  shapes = state.state_shapes(
    make_components(tiny_config(""), 12, 37), 32, mesh
  )
  restored = checkpoints.restore(3, shapes)
  assert checkpoints.metadata(3) == {"a": [1, 2]}
  checkpoints.close()
  assert restored.params["head"]["weights"].sharding.mesh == mesh
  assert_equal(jax.device_get(restored), jax.device_get(current))


def change_settings(workdir, **model):
  config = json.loads((workdir / "config.json").read_text())
  config["model"] |= model
  (workdir / "config.json").write_text(json.dumps(config))


def open_network(workdir):
  return open_embedder(
    RunDirectory(str(workdir)),
    step=None,
    batch_size=1,
    flip=False,
    mesh=sharding.make_mesh(-1),
  )


@pytest.mark.parametrize(
  ("model", "said"),
  [
    ({"embedding_size": 10**12}, r"mean: \(1000000000000,\) by the settings"),
    ({"embedding_size": 33}, r"mean: \(33,\) by the settings, \(32,\) there"),
    ({"width": 1e9}, "describes another network"),
    ({"stages": [1, 1, 1]}, "describes another network"),
    ({"stages": [10**6, 1]}, "1,000,001 blocks: give at most 1,000"),
    ({"stages": [1] * 10**5}, "100,000 blocks: give at most 1,000"),
  ],
)
def test_settings_of_another_network(run_copy, model, said):
  """A stranger's may be of any size: nothing is made of it."""
  change_settings(run_copy, **model)
  with pytest.raises(InputError, match=said):
    open_network(run_copy)


def test_arrays_larger_than_their_files(dataset, run_copy):
  """Zeros of any number take a few bytes; settings and manifest go along."""
  numbers, place = 2**17, run_copy / "checkpoints" / "12"
  change_settings(run_copy, embedding_size=numbers)
  config = tiny_config(dataset, **{"model.embedding_size": numbers})
  shapes = backbone_shapes(make_model(config), config.data.image_size)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  shutil.rmtree(place / "backbone")
  with ocp.StandardCheckpointer() as writer:
    writer.save(place / "backbone", zeros)
  (place / MANIFEST_FILE).unlink()
  write_manifest(str(place))
  with pytest.raises(InputError, match=r"promises [\d,]+ MiB of arrays in"):
    open_network(run_copy)
