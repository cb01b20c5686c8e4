"""Runs that are asked to stop: SIGTERM, Ctrl-C once and twice."""

import os
import signal
import subprocess
import time

import pytest
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

from jamsface_jax.devices import notices
from jamsface_jax.errors import EXIT_PREEMPTED
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.preemption import Preemption
from jamsface_jax.training.train import train


def start(dataset, workdir, *flags):
  return subprocess.Popen(
    command(dataset, workdir, *flags),
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture
def not_under_nohup():
  """As a terminal starts a command, whatever started the tests."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
  ("number", "code"),
  [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
)
def test_signals_are_noted_and_given_back(number, code, not_under_nohup):
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
  with notices.listening() as heard:
    preemption = Preemption(heard)
    preemption.begin()
    assert not preemption.requested(1)
    signal.raise_signal(number)
    deadline = time.monotonic() + 5
    while not preemption.requested(2) and time.monotonic() < deadline:
      time.sleep(0.001)
    assert preemption.requested(2) and preemption.exit_code == code
    # A second Ctrl-C is the system's, which ends the process.
    if number == signal.SIGINT:
      assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    preemption.close()
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
  assert after == before
  # Whatever it was: tests that run in the background begin by ignoring it.
  assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.slow
def test_ctrl_c_saves_and_ctrl_c_twice_stops_at_once(dataset, tmp_path):
  workdir = tmp_path / "w"
  flags = ("--config.checkpoint.every=1000", "--config.schedule.length=3000")
  process = start(dataset, workdir, *flags)
  wait_for_step(workdir, 7, process)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130, err
  assert "run the same command again" in out and "Ctrl-C again" in err
  assert "Traceback" not in err
  (saved,) = os.listdir(workdir / "checkpoints")
  assert int(saved) >= 7

  process = start(dataset, workdir, *flags)
  wait_for_step(workdir, int(saved) + 3, process)
  process.send_signal(signal.SIGSTOP)  # So that both come in one step.
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGCONT)
  while b"Ctrl-C again" not in os.read(process.stderr.fileno(), 1000):
    pass
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=60)
  # At once, or the step and its checkpoint were already over.
  assert process.returncode in (-signal.SIGINT, 130)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
  """A run that evaluates every 2 steps, writes lines every 5: its settings too.

  Nothing has stopped it.
  """
  changes = {
    "evaluation.every": 2,
    "log_every": 5,
    "schedule.length": 8.0,
    "checkpoint.every": 1000,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": "tiny/auc",
  }
  config = tiny_config(dataset, **changes)
  workdir = tmp_path_factory.mktemp("preemption") / "whole"
  assert train(config, RunDirectory(str(workdir))) == 0
  return config, workdir


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 6, 7, 8])
def test_evaluation_at_the_step_of_a_preemption_is_done_later(
  whole, tmp_path, monkeypatch, stop
):
  """Metrics are equal too."""
  config, undisturbed = whole
  run = RunDirectory(str(tmp_path / "stopped"))
  with monkeypatch.context() as patch:
    patch.setattr(Preemption, "requested", lambda self, step: step == stop)
    assert train(config, run) == EXIT_PREEMPTED
  stopped = tmp_path / "stopped"
  evaluated = [x["step"] for x in read_lines(stopped) if "tiny/auc" in x]
  assert stop not in evaluated
  assert train(config, run) == 0
  want = without_speed(read_lines(undisturbed))
  assert [x["step"] for x in want if "tiny/auc" in x] == [2, 4, 6, 8]
  assert without_speed(read_lines(stopped)) == want
  assert_equal(
    read_state(config, stopped, 8), read_state(config, undisturbed, 8)
  )
  if stop == 8:  # Nothing more is measured of a finished run.
    assert train(config, run) == 0
    assert without_speed(read_lines(stopped)) == want
