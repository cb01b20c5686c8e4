"""Shares of wall time, with a clock that the test turns."""

import json

import pytest
from tiny_runs import read_lines, tiny_config

from jamsface_jax.run import goodput
from jamsface_jax.run.goodput import KINDS, Goodput
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.step_log import StepLog
from jamsface_jax.training.train import train


@pytest.fixture
def clock(monkeypatch):
  class Clock:
    now = 100.0

    def monotonic(self):
      return self.now

  clock = Clock()
  monkeypatch.setattr(goodput, "time", clock)
  return clock


def test_every_second_is_of_one_kind(tmp_path, clock):
  spent = Goodput(RunDirectory(str(tmp_path)))
  clock.now += 5  # Start-up.
  spent.run("step")
  clock.now += 10
  with spent.spent("data"):
    clock.now += 1
  clock.now += 20
  with spent.spent("checkpoint"):
    clock.now += 4
  assert spent.now() == {
    "step": 30.0,
    "startup": 5.0,
    "data": 1.0,
    "checkpoint": 4.0,
    "evaluation": 0.0,
    "lost": 0.0,
  }
  assert spent.shares()["goodput/step"] == 0.75
  assert spent.sentence() == (
    "wall time 40 s: step 75.0%, startup 12.5%, data 2.5%, checkpoint 10.0%,"
    " evaluation 0.0%, lost 0.0%"
  )


def test_steps_that_are_done_again_are_lost(tmp_path, clock):
  first = Goodput(RunDirectory(str(tmp_path)))
  clock.now += 5
  first.run("step")
  clock.now += 10
  at_checkpoint = first.now()
  with first.spent("checkpoint"):
    clock.now += 2
  clock.now += 6  # Killed after this.
  first.save()

  second = Goodput(RunDirectory(str(tmp_path)))
  clock.now += 3
  second.resume(at_checkpoint)
  second.run("step")
  clock.now += 7
  assert second.now() == {
    "step": 17.0,
    "startup": 8.0,
    "data": 0.0,
    "checkpoint": 2.0,
    "evaluation": 0.0,
    "lost": 6.0,
  }


def test_torn_record_is_no_obstacle(tmp_path, clock):
  (tmp_path / "goodput.json").write_text('{"step"')
  spent = Goodput(RunDirectory(str(tmp_path)))
  spent.resume({"step": 4.0, "startup": 2.0})
  clock.now += 1
  assert spent.now()["step"] == 4 and spent.now()["startup"] == 3


def test_one_process_writes(tmp_path, clock):
  Goodput(RunDirectory(str(tmp_path)).without_writing()).save()
  assert not (tmp_path / "goodput.json").exists()


@pytest.mark.slow
def test_a_run_adds_up_over_its_starts(dataset, tmp_path, monkeypatch, capsys):
  class Killed(BaseException):
    pass

  add = StepLog.add

  def kill(self, step, metrics, ids):
    if step == 7:
      raise Killed
    add(self, step, metrics, ids)

  config = tiny_config(dataset)
  workdir = tmp_path / "w"
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(StepLog, "add", kill)
    train(config, RunDirectory(str(workdir)))
  killed = json.loads((workdir / "goodput.json").read_text())
  assert killed["lost"] == 0 and killed["step"] > 0
  assert train(config, RunDirectory(str(workdir))) == 0
  total = json.loads((workdir / "goodput.json").read_text())
  assert 0 < total["lost"] < killed["step"] + killed["data"]
  assert total["startup"] > killed["startup"] and total["evaluation"] > 0
  for line in read_lines(workdir):
    if "train/loss" in line:
      shares = [line[f"goodput/{kind}"] for kind in KINDS]
      assert sum(shares) == pytest.approx(1)
  assert "wall time" in capsys.readouterr().out
