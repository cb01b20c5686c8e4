"""Two processes of four devices each: killed, refused, preempted."""

import os
import signal
import socket
import subprocess
import time

import pytest
from train_test import (
  command,
  environment,
  read_lines,
  wait_for_step,
  without_speed,
)

from jamsface_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

pytestmark = pytest.mark.slow

TIMEOUT = 5  # Of --process_timeout.
BOUND = 2 * TIMEOUT + 5  # The last five are for a busy machine.


def start_two(workdir, *flags, data):
  """Starts process 0 and 1; `data` has a data set for each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [
    subprocess.Popen(
      command(
        data[k],
        workdir,
        *flags,
        f"--process_timeout={TIMEOUT}",
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        f"--process_id={k}",
      ),
      env=environment(4),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for k in range(2)
  ]


def collect(processes, limit):
  """Exit codes and what was said on stderr, within so many seconds."""
  begin = time.monotonic()
  errors = []
  for process in processes:
    left = limit - (time.monotonic() - begin)
    errors.append(process.communicate(timeout=max(left, 0.1))[1])
  return [process.returncode for process in processes], errors


@pytest.mark.parametrize("victim", [1, 0])
def test_death_of_one_ends_the_other_and_one_process_goes_on(
  dataset, tmp_path, victim
):
  workdir = tmp_path / "w"
  flags = ("--config.checkpoint.every=5", "--config.schedule.length=400")
  processes = start_two(workdir, *flags, data=[dataset, dataset])
  wait_for_step(workdir, 12, processes[0])
  processes[victim].kill()
  codes, errors = collect(processes, BOUND)
  assert codes[victim] == -signal.SIGKILL
  if victim == 1:
    assert codes[0] == 1, errors[0]
    last = errors[0].strip().splitlines()[-1]
    assert last.startswith("error: process 1 of 2 (pid")
    assert f"pid {processes[1].pid} on {socket.gethostname()}" in last
  else:  # JAX itself aborts those that lose process 0.
    assert codes[1] in (-signal.SIGABRT, 1), errors[1]
    assert "leader" in errors[1] or "process 0" in errors[1]
  # One process of two devices goes on from there.
  newest = max(
    int(n) for n in os.listdir(workdir / "checkpoints") if n.isdigit()
  )
  done = subprocess.run(
    command(dataset, workdir, *flags),
    env=environment(2),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert f"{newest} done of 400" in done.stdout
  steps = [x["step"] for x in read_lines(workdir) if "train/loss" in x]
  assert steps == list(range(1, 401))


def test_bad_input_of_one_process_ends_all(dataset, tmp_path):
  """Process 1 does not find its data; process 0 would wait for it."""
  processes = start_two(
    tmp_path / "w", data=[dataset, str(tmp_path / "nowhere")]
  )
  codes, errors = collect(processes, 60 + BOUND)
  assert codes == [2, 2], errors
  assert "error: process 1 of 2 (pid" in errors[0] and "nowhere" in errors[0]
  assert errors[1].startswith("error: data set") or "nowhere" in errors[1]


@pytest.mark.parametrize(
  ("notice", "expected"),
  [
    (signal.SIGTERM, [EXIT_PREEMPTED, EXIT_PREEMPTED]),
    (signal.SIGINT, [EXIT_PREEMPTED, EXIT_INTERRUPTED]),
  ],
)
def test_notice_to_one_process_stops_both(dataset, tmp_path, notice, expected):
  workdir = tmp_path / "w"
  processes = start_two(
    workdir,
    "--config.schedule.length=4000",
    "--config.checkpoint.every=100000",
    data=[dataset, dataset],
  )
  wait_for_step(workdir, 5, processes[0])
  processes[1].send_signal(notice)
  codes, errors = collect(processes, 60)
  assert codes == expected, errors
  (saved,) = os.listdir(workdir / "checkpoints")
  assert int(saved) == without_speed(read_lines(workdir))[-1]["step"]
