"""A run in a bucket: what becomes of its checkpoints and its small files."""

import json
import os
import shutil
import stat

import jax
import pytest

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny
from jamsface_jax.storage.bucket import Bucket
from jamsface_jax.storage.run_directory import RunDirectory


@pytest.fixture
def address(gcs, request, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return f"gs://runs/{request.node.name}/w"


@pytest.fixture
def place(address):
  return Bucket(address)


def begin(run, step):
  """What Orbax would have written of a checkpoint."""
  place = Bucket(run.checkpoints.saving_place(step))
  place.write("backbone/x", b"numbers of %d" % step)
  place.write("head/y", b"more")


def save(run, *steps):
  for step in steps:
    run.metrics.append_line(json.dumps({"step": step}))
    begin(run, step)
    run.checkpoints.complete(step)


def test_a_checkpoint_counts_when_its_manifest_is_there(address, place):
  run = RunDirectory(address)
  folder = run.checkpoints
  folder.create()
  assert not run.exists() and not folder.exists()
  begin(run, 12)
  assert folder.steps() == []
  folder.complete(12)
  save(run, 4)
  assert folder.steps() == [4, 12] and run.exists()
  files = json.loads(place.read("checkpoints/12/manifest.json"))["files"]
  assert sorted(files) == ["backbone/x", "head/y"]
  assert folder.find_damage(12, ()) is None


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (lambda p: p.write("backbone/x", b"numberS of 8"), "other bytes"),
    (lambda p: p.write("backbone/x", b"numbers"), "has 7 bytes of 12"),
    (lambda p: p.delete(["backbone/x"]), "is missing"),
    (lambda p: p.write("manifest.json", b"{"), "is broken"),
    (lambda p: p.write("manifest.json", b"[]"), "is broken"),
    (lambda p: p.write("manifest.json", b'{"files": {"a": 1}}'), "is broken"),
  ],
)
def test_damage_is_named_passed_over_and_set_aside(
  address, place, damage, says
):
  run = RunDirectory(address)
  with run.held():
    save(run, 4, 8)
  damage(place.below("checkpoints/8"))
  folder = run.checkpoints
  assert says in folder.find_damage(8, ())
  assert f"'{address}/checkpoints/8/" in folder.find_damage(8, ())
  if "manifest" not in folder.find_damage(8, ()):
    assert folder.find_damage(8, ("head",)) is None
  place.write("checkpoints/8/manifest.json", b'{"files": {"x": {"bytes": 1}}}')
  assert "no file of 'head'" in folder.find_damage(8, ("head",))
  again = RunDirectory(address)
  with again.held():
    lines = [json.loads(line) for line in again.metrics.read_lines()]
    assert [line["step"] for line in lines] == [4]
  assert folder.set_aside(8) == f"{address}/checkpoints/8.damaged"
  assert folder.steps() == [4]
  save(run, 8)
  place.write("checkpoints/8/head/y", b"less")
  assert folder.set_aside(8).endswith("8.damaged.2")
  names = {name.split("/")[1] for name in place.blobs("checkpoints/")}
  assert names == {"4", "8.damaged", "8.damaged.2"}


def test_sweeping_leaves_what_is_whole_or_of_others(address, place):
  run = RunDirectory(address)
  save(run, 4, 8, 12)
  place.delete(["checkpoints/8/manifest.json"])  # A removal, interrupted.
  begin(run, 16)
  place.write("checkpoints/2.damaged/x", b"")
  place.write("checkpoints/notes/x", b"")
  assert run.checkpoints.sweep() == [16]
  names = {name.split("/")[1] for name in place.blobs("checkpoints/")}
  assert names == {"12", "2.damaged", "4", "notes"}
  run.checkpoints.remove(4)
  begin(run, 20)
  begin(run, 200)
  run.checkpoints.discard(20)
  names = {name.split("/")[1] for name in place.blobs("checkpoints/")}
  assert names == {"12", "200", "2.damaged", "notes"}


def test_a_run_goes_on_from_an_empty_disk(address, place, tmp_path):
  run = RunDirectory(address)
  with run.held():
    run.config.write_json({"a": 1})
    run.launches.append_line('"first"')
    save(run, 4)
    run.metrics.append_line('{"step": 5}')
    run.goodput.write_json({"step": 1.0})
    run.results.write_text("of step 5")
    # What was written since the checkpoint is here alone, settings are not.
    assert json.loads(place.read("config.json")) == {"a": 1}
    assert place.read("metrics.jsonl") == b'{"step": 4}\n'
  assert place.read("metrics.jsonl") == b'{"step": 4}\n{"step": 5}\n'
  assert place.read_version("lock") is None
  del run
  shutil.rmtree(tmp_path / "cache")
  again = RunDirectory(address)
  with again.held():
    assert again.config.read_json() == {"a": 1}
    assert again.metrics.read_lines() == ['{"step": 4}\n']
    assert not again.results.exists() and not again.goodput.exists()
    again.launches.append_line('"second"')
    assert again.launches.read_lines() == ['"first"\n', '"second"\n']
    # The history only grows, and is sent as it does.
    assert place.read("starts.jsonl") == b'"first"\n"second"\n'


def test_without_a_checkpoint_no_step_is_taken_back(address, place):
  place.write("metrics.jsonl", b'{"step": 5}\n')
  place.write("model_card.md", b"edited")
  run = RunDirectory(address)
  with run.held():
    assert not run.metrics.exists()
    assert run.model_card.read_text() == "edited"


def test_files_are_read_and_written_at_once_where_none_is_held(address, place):
  writer, reader = RunDirectory(address), RunDirectory(address)
  assert not reader.report.exists()
  with pytest.raises(FileNotFoundError):
    reader.config.read_json()
  writer.report.write_text("one")
  assert reader.report.read_text() == "one"
  writer.report.write_text("two")
  assert reader.report.read_text() == "two" and place.read("report.html")
  with writer.plots.picture("roc").written_whole("wb") as file:
    file.write(b"png")
  assert place.read("plots/roc.png") == b"png"
  results = writer.evaluation.results
  results.write_json([1])
  assert results.path == f"{address}/evaluation/results.json"
  assert place.read("evaluation/results.json") == b"[1]"
  place.delete(["report.html"])
  assert not reader.report.exists()


def test_what_other_libraries_write_is_sent_in_the_end(address, place):
  run = RunDirectory(address)
  with run.held(), open(run.new_events_file(), "w") as file:
    file.write("events")
  other = RunDirectory(address).without_writing()
  with other.held():
    other.config.write_text("dropped")
    other.not_finite(7, 1).write_json({"step": 7})
    os.makedirs(f"{other.tensorboard}/plugins")
    with open(f"{other.tensorboard}/plugins/trace", "w") as file:
      file.write("trace")
  names = list(place.blobs())
  assert names[0] == "not_finite_7_process_1.json"
  assert names[1].startswith("tensorboard/events") and len(names) == 3
  assert names[2] == "tensorboard/plugins/trace"


def test_a_process_that_reads_sends_nothing_old(address, place):
  """Process 1 has read what process 0 goes on to write."""
  place.write("metrics.jsonl", b"1\n")
  reader = RunDirectory(address).without_writing()
  with reader.held():
    assert reader.metrics.read_lines() == ["1\n"]
    place.write("metrics.jsonl", b"1\n2\n")
  assert place.read("metrics.jsonl") == b"1\n2\n"


def test_what_failed_is_sent_and_the_lock_given_back(address, place, gcs):
  run = RunDirectory(address)
  with pytest.raises(KeyError), run.held():
    run.metrics.append_line("1")
    raise KeyError
  assert list(place.blobs()) == ["metrics.jsonl"]


def test_a_second_run_is_refused(address):
  run = RunDirectory(address)
  with run.held(), pytest.raises(InputError, match="in use by process"):
    with RunDirectory(address).held():
      pass


def test_the_local_directory_is_private_and_goes(address, tmp_path):
  runs = tmp_path / "cache" / "jamsface_jax" / "runs"
  run = RunDirectory(address)
  directory = run.local
  assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
  left = runs / "of_a_killed_process"
  left.mkdir()
  (left / ".held").touch()
  other = RunDirectory(address)
  names = [os.path.basename(path) for path in (directory, other.local)]
  assert sorted(os.listdir(runs)) == sorted(names)
  del run
  assert os.listdir(runs) == names[1:]


@pytest.mark.slow
def test_what_a_checkpoint_costs(address, gcs):
  """Requests of Orbax and of ours; each is money, and a wait.

  TensorStore commits arrays together that are ready together, so that their
  number depends on time: 255 to 352 were seen for 101 arrays. Each alone would
  take four: a node written, read back, removed two saves later, and the
  manifest that names it. What is there is asked some 190 times besides.
  """
  config = make_settings(tiny(base_config()))
  components = make_components(config, 12, 37)
  first = state.create_state(0, components, 32, sharding.make_mesh(1))
  run = RunDirectory(address)
  with run.held():
    checkpoints = Checkpoints(run, keep_last=2, keep_best="")
    for step in range(1, 5):  # From the third on, an old one is removed.
      gcs.log.clear()
      checkpoints.save(step, first, {})
      checkpoints.wait()
    checkpoints.close()
  size = sum(array.nbytes for array in jax.tree.leaves(first))
  sent = sum(row[2] for row in gcs.log)
  assert len(gcs.log) < 4 * len(jax.tree.leaves(first)) + 300
  assert sent < 1.1 * size + 200_000  # Manifest, metadata, small files.


def test_a_run_copied_from_a_disk_goes_on(address, place, tmp_path):
  """`gcloud storage cp -r`, which gives the manifest of a disk."""
  on_disk = RunDirectory(str(tmp_path / "w"))
  on_disk.create()
  on_disk.metrics.append_line('{"step": 4}')
  folder = on_disk.checkpoints
  folder.create()
  os.makedirs(f"{folder.saving_place(4)}/backbone")
  with open(f"{folder.saving_place(4)}/backbone/x", "w") as file:
    file.write("numbers")
  folder.complete(4)
  root = tmp_path / "w"
  files = [path for path in root.rglob("*") if path.is_file()]
  place.upload({str(p.relative_to(root)): str(p) for p in files})
  run = RunDirectory(address)
  assert run.checkpoints.find_damage(4, ()) is None
  with run.held():
    assert run.metrics.read_lines() == ['{"step": 4}\n']
  place.write("checkpoints/4/backbone/x", b"numberS")
  assert "other bytes" in run.checkpoints.find_damage(4, ())


def test_a_run_copied_to_a_disk_is_whole(address, place, tmp_path):
  save(RunDirectory(address), 4)
  names = list(place.blobs())
  for name in names:
    os.makedirs(os.path.dirname(tmp_path / "w" / name), exist_ok=True)
  place.download({name: str(tmp_path / "w" / name) for name in names})
  folder = RunDirectory(str(tmp_path / "w")).checkpoints
  assert folder.steps() == [4] and folder.find_damage(4, ()) is None
  with open(f"{folder.place(4)}/backbone/x", "r+") as file:
    file.write("N")
  assert "other bytes" in folder.find_damage(4, ())


@pytest.mark.parametrize(
  "address", ["gs://b", "gs://b/", "gs:///x", "gs://b/a//c", "gs://b/../c"]
)
def test_addresses_of_no_place_are_refused(address):
  with pytest.raises(InputError, match="of the form gs://BUCKET/NAME"):
    RunDirectory(address)
