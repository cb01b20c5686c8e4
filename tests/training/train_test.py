"""Whole runs: killed, resumed, refused, evaluated, exported."""

import glob
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess

import jax
import numpy as np
import pytest
from conftest import assert_one_sentence, convert
from tiny_runs import (
  assert_equal,
  command,
  environment,
  read_lines,
  read_state,
  tiny_config,
  wait_for_step,
  without_speed,
)

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.head.concentration import COUNTS
from jamsface_jax.reports import page as page_lib
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import CheckpointReader, Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.settings.variants import PUBLISHED
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.train import train


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
  """A run that was never stopped."""
  workdir = tmp_path_factory.mktemp("run") / "w"
  assert train(tiny_config(dataset), RunDirectory(str(workdir))) == 0
  return workdir


def test_a_run_leaves_what_it_promises(finished, dataset, capsys):
  lines = read_lines(finished)
  steps = [line["step"] for line in lines if "train/loss" in line]
  assert steps == list(range(1, 13))
  for name in (
    "train/loss",
    "train/cross_entropy",
    "train/accuracy",
    "train/margin_angular_mean",
    "train/margin_cosine_mean",
    "train/learning_rate",
    "train/images_per_second",
    "train/data_wait_fraction",
  ):
    assert np.isfinite(lines[-2][name]), name
  assert {"tiny/accuracy", "tiny/accuracy_std", "tiny/threshold"} < set(
    lines[-1]
  )
  assert {"tiny/eer", "tiny/auc", "tiny/tar@1e-1"} < set(lines[-1])
  # Of the twelve classes one is richer: its margin is the least.
  assert -1 <= lines[-1]["train/margin_angular_rank"] < 0
  assert "tiny/tar@1e-2" not in lines[-1]  # Twelve negatives are too few.
  for plot in ("training", "margins", "roc", "scores_tiny"):
    data = (finished / "plots" / f"{plot}.png").read_bytes()
    assert data.startswith(b"\x89PNG")
  page = (finished / "report.html").read_text()
  for title in ("ROC of tiny", "Scores of tiny", "Angular margin: rank"):
    assert title in page
  assert "12 of 12, finished" in page and "8 cpu (cpu)" in page
  assert any((finished / "tensorboard").iterdir())
  assert sorted(os.listdir(finished / "checkpoints")) == ["12", "4", "8"]
  assert read_state(tiny_config(dataset), finished).step == 12
  # The same command again: nothing is trained, the result is said again.
  assert train(tiny_config(dataset), RunDirectory(str(finished))) == 0
  out = capsys.readouterr().out
  assert "tiny: accuracy" in out
  assert (finished / "summary.txt").read_text() in out
  assert read_lines(finished) == lines


@pytest.mark.slow
def test_profile_on_request(dataset, tmp_path):
  """Three steps of a resumed run, which viewers open."""
  workdir = str(tmp_path / "w")
  config = tiny_config(
    dataset, **{"profile_steps": "3:5", "schedule.length": 6.0}
  )
  train(config, RunDirectory(workdir))
  pattern = f"{workdir}/tensorboard/plugins/profile/*/*"
  files = {path.rpartition(".")[2]: path for path in glob.glob(pattern)}
  assert set(files) == {"pb", "gz"}
  with gzip.open(files["gz"]) as file:
    events = json.load(file)["traceEvents"]
  steps = {
    int(event["args"]["step_num"])
    for event in events
    if event.get("name") == "train" and "step_num" in event.get("args", {})
  }
  assert steps == {3, 4, 5}
  assert read_lines(tmp_path / "w")[-2]["step"] == 6


@pytest.mark.slow
def test_the_report_is_written_at_each_evaluation_and_ends_no_run(
  dataset, tmp_path, monkeypatch, capsys
):
  written = page_lib.write
  steps = []

  def write(runs, output):
    steps.append(json.loads(runs[0].metrics.read_lines()[-1])["step"])
    if len(steps) == 2:
      raise OSError(28, "No space left on device")
    written(runs, output)

  monkeypatch.setattr(page_lib, "write", write)
  config = tiny_config(
    dataset, **{"evaluation.every": 2, "schedule.length": 6.0}
  )
  assert train(config, RunDirectory(str(tmp_path / "w"))) == 0
  assert steps == [2, 4, 6]
  assert (
    "step 4: report.html was not written ([Errno 28] No space left on device);"
    " the run goes on." in capsys.readouterr().out
  )
  assert "6 of 6, finished" in (tmp_path / "w" / "report.html").read_text()


@pytest.mark.slow
def test_it_learns(dataset, tmp_path):
  config = tiny_config(
    dataset,
    **{
      "schedule.length": 80.0,
      "schedule.decay": "cosine",
      "optimizer.reference_batch": 32,
      "checkpoint.every": 1000,
    },
  )
  train(config, RunDirectory(str(tmp_path / "w")))
  lines = read_lines(tmp_path / "w")
  assert lines[0]["train/cross_entropy"] > 5
  assert lines[-2]["train/cross_entropy"] < 2
  assert lines[-1]["tiny/accuracy"] > 0.9


def train_and_kill(config, workdir, monkeypatch, stop):
  """Stopped before step `stop + 1`, without a chance to clean up."""
  from jamsface_jax.training.step_log import StepLog

  class Killed(BaseException):
    pass

  add = StepLog.add

  def kill(self, step, metrics, ids):
    if step == stop + 1:
      raise Killed
    add(self, step, metrics, ids)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(StepLog, "add", kill)
    train(config, RunDirectory(str(workdir)))


@pytest.mark.parametrize(
  "stop",
  [
    pytest.param(1, marks=pytest.mark.slow),
    5,
    pytest.param(11, marks=pytest.mark.slow),
  ],
)
def test_resumed_run_equals_the_undisturbed(
  finished, dataset, tmp_path, monkeypatch, stop
):
  config = tiny_config(dataset)
  train_and_kill(config, tmp_path / "w", monkeypatch, stop)
  assert train(config, RunDirectory(str(tmp_path / "w"))) == 0
  assert_equal(read_state(config, tmp_path / "w"), read_state(config, finished))
  assert without_speed(read_lines(tmp_path / "w")) == without_speed(
    read_lines(finished)
  )


@pytest.mark.slow
def test_adamw_on_a_sample_resumes_exactly(dataset, tmp_path, monkeypatch):
  config = tiny_config(
    dataset,
    **{
      "optimizer.name": "adamw",
      "optimizer.learning_rate": 0.1,
      "head.sample_rate": 0.5,
      "schedule.length": 6.0,
      "checkpoint.every": 2,
      "evaluation.data": "",
    },
  )
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert train(config, RunDirectory(str(whole))) == 0
  train_and_kill(config, killed, monkeypatch, stop=3)
  assert train(config, RunDirectory(str(killed))) == 0
  got, want = read_state(config, killed, 6), read_state(config, whole, 6)
  assert_equal(got, want)
  moments = jax.tree.leaves(want.opt_state["head"]["weights"])
  assert [m.shape for m in moments if m.ndim] == [(64, 32)] * 2
  assert all(np.any(m) for m in moments)


def test_margins_of_a_pass_resume_in_its_middle(
  dataset, tmp_path, monkeypatch, capsys
):
  """37 images are 2.3 batches: passes end with steps 3, 5, 7, 10 and 12."""
  config = tiny_config(
    dataset,
    **{f"head.{k}": v for k, v in PUBLISHED["kappaface"].items()},
    **{"head.scale": 16.0},
  )
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert train(config, RunDirectory(str(whole))) == 0
  train_and_kill(config, killed, monkeypatch, stop=8)
  middle = read_state(config, killed, 8)  # Of the pass of steps 8 to 10.
  assert middle.seen["head"][COUNTS].sum() == 16
  assert train(config, RunDirectory(str(killed))) == 0
  assert_equal(read_state(config, killed), read_state(config, whole))
  lines = without_speed(read_lines(whole))
  assert without_speed(read_lines(killed)) == lines
  # A step's line has the margins that it had.
  least = [
    line["train/margin_angular_min"] for line in lines if "train/loss" in line
  ]
  changed = np.flatnonzero(np.diff(least)) + 2
  np.testing.assert_array_equal(changed, [4, 6, 8, 11])
  assert least[0] == np.float32(0.8) and least[3] < 0.6
  assert -1 <= lines[-1]["train/margin_angular_rank"] <= 1
  assert "0.8 (by concentration, made anew" in capsys.readouterr().out


@pytest.mark.slow
def test_kill_9_in_mid_epoch_changes_nothing(dataset, tmp_path):
  kills = (7, 31)
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  for step in kills:
    process = subprocess.Popen(
      command(dataset, killed),
      env=environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    wait_for_step(killed, step, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    steps = os.listdir(killed / "checkpoints")
    assert "60" not in steps
  for workdir in (killed, whole):
    subprocess.run(
      command(dataset, workdir), env=environment(), check=True, timeout=300
    )
  config = read_settings(RunDirectory(str(whole)))
  assert_equal(read_state(config, killed, 60), read_state(config, whole, 60))
  assert without_speed(read_lines(killed)) == without_speed(read_lines(whole))


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint(dataset, tmp_path):
  process = subprocess.Popen(
    command(dataset, tmp_path / "w", "--config.checkpoint.every=1000"),
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_for_step(tmp_path / "w", 7, process)
  process.terminate()
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 75
  assert "run the same command again" in out
  (step,) = (int(s) for s in os.listdir(tmp_path / "w" / "checkpoints"))
  assert 7 < step < 60


@pytest.mark.slow
def test_two_processes_equal_one(dataset, tmp_path):
  """Two processes of two devices against one process of four."""
  flags = (
    "--config.schedule.length=6",
    f"--config.evaluation.data={dataset}",
  )
  one, two = tmp_path / "one", tmp_path / "two"
  subprocess.run(
    command(dataset, one, *flags), env=environment(4), check=True, timeout=300
  )
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      command(
        dataset,
        two,
        *flags,
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        f"--process_id={k}",
      ),
      env=environment(2),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for k in range(2)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert "finished 6 steps" in outputs[0]
  assert "finished" not in outputs[1]  # Said once.
  for a, b in zip(
    without_speed(read_lines(one)), without_speed(read_lines(two)), strict=True
  ):
    assert a.keys() == b.keys()
    for name in a:
      want = a[name] and pytest.approx(a[name], rel=1e-3, abs=1e-4)
      assert b[name] == want, name  # What cannot be measured is None.
  # One process goes on with what two have written.
  config = read_settings(RunDirectory(str(two)))
  got, want = read_state(config, two, 6), read_state(config, one, 6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    got.params,
    want.params,
  )


def test_loss_that_is_not_finite_stops_the_run(dataset, tmp_path):
  config = tiny_config(
    dataset,
    **{"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0},
  )
  with pytest.raises(RunError, match="the loss of step") as error:
    train(config, RunDirectory(str(tmp_path / "w")))
  (path,) = (tmp_path / "w").glob("not_finite_*.json")
  assert str(path) in str(error.value)
  report = json.loads(path.read_text())
  assert len(report["ids"]) == 16 and report["step"] <= 5
  assert report["metrics"]["train/loss"] in ("nan", "inf")
  saved = os.listdir(tmp_path / "w" / "checkpoints")
  assert all(int(step) < report["step"] for step in saved)


def test_other_data_is_refused(image_folder, finished, dataset, tmp_path):
  convert(image_folder, tmp_path / "other", without_last=1, pairs=None)
  with pytest.raises(InputError, match="data_fingerprint"):
    train(
      tiny_config(str(tmp_path / "other"), **{"evaluation.data": dataset}),
      RunDirectory(str(finished)),
    )


def test_data_that_moved_is_the_same_data(finished, dataset, tmp_path):
  shutil.copytree(dataset, tmp_path / "moved")
  assert (
    train(tiny_config(str(tmp_path / "moved")), RunDirectory(str(finished)))
    == 0
  )


@pytest.mark.slow
def test_best_checkpoint_is_kept(dataset, tmp_path):
  config = tiny_config(
    dataset,
    **{
      "evaluation.every": 2,
      "checkpoint.every": 1000,
      "checkpoint.keep_last": 1,
      "checkpoint.keep_best": "tiny/auc",
    },
  )
  train(config, RunDirectory(str(tmp_path / "w")))
  lines = [x for x in read_lines(tmp_path / "w") if "tiny/auc" in x]
  assert len(lines) == 6
  best = max(x["tiny/auc"] for x in lines)
  kept = {int(step) for step in os.listdir(tmp_path / "w" / "checkpoints")}
  assert 12 in kept and len(kept) <= 2
  assert any(x["step"] in kept and x["tiny/auc"] == best for x in lines)
  for name in ("lfw/accuracy", "tiny/acuracy", "tiny/eer"):
    config = replaced(config, {"checkpoint.keep_best": name})
    with pytest.raises(InputError, match=f"{name}' is not .* tiny/auc"):
      train(config, RunDirectory(str(tmp_path / "v")))


def test_restores_on_another_mesh(finished, dataset):
  config = tiny_config(dataset)
  want = read_state(config, finished)
  mesh = sharding.make_mesh(2)
  components = make_components(config, 12, 37)
  checkpoints = Checkpoints(
    RunDirectory(str(finished)), keep_last=3, keep_best=""
  )
  got = checkpoints.restore(
    12, state.state_shapes(components, config.data.image_size, mesh)
  )
  checkpoints.close()
  weights = got.params["head"]["weights"]
  assert {s.data.shape for s in weights.addressable_shards} == {(32, 32)}
  assert_equal(jax.device_get(got), want)


def test_reader_refuses_what_is_not_there(finished, tmp_path):
  with pytest.raises(InputError, match="no checkpoint"):
    CheckpointReader(RunDirectory(str(tmp_path)))
  reader = CheckpointReader(RunDirectory(str(finished)))
  with pytest.raises(InputError, match="of step 5: it has 4, 8, 12"):
    reader.choose(5)
  assert reader.choose(None) == 12 and reader.choose(8) == 8
  assert reader.metadata(12)["num_classes"] == 12


def test_evaluate_command_repeats_the_run(run, finished, dataset, tmp_path):
  done = run(
    "jamsface_jax.evaluate",
    f"--workdir={finished}",
    f"--data={dataset}",
    f"--output={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  last = read_lines(finished)[-1]
  row = next(x for x in done.stdout.splitlines() if "tiny/auc" in x)
  assert float(row.split()[1]) == pytest.approx(last["tiny/auc"], abs=1e-3)
  assert (tmp_path / "roc.png").exists()


def test_evaluation_needs_pairs(image_folder, finished, run, tmp_path):
  convert(image_folder, tmp_path / "bare", pairs=None)
  assert_one_sentence(
    run(
      "jamsface_jax.evaluate",
      f"--workdir={finished}",
      f"--data={tmp_path}/bare",
    ),
    "has no pairs.txt",
  )


@pytest.mark.slow
def test_a_finished_run_without_test_sets_is_not_evaluated_again(run, tmp_path):
  """Fixed margins and no test set: class centres are all that is measured."""
  flags = ("--config=configs/demo.py:tiny,cosface", f"--workdir={tmp_path}")
  first = run("jamsface_jax.main", *flags)
  assert first.returncode == 0, first.stderr
  lines = (tmp_path / "metrics.jsonl").read_bytes()
  assert b"train/centre_angle_mean" in lines
  again = run("jamsface_jax.main", *flags)
  assert again.returncode == 0, again.stderr
  assert (tmp_path / "metrics.jsonl").read_bytes() == lines
