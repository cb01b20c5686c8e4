"""Two processes of four devices each: killed, refused, preempted."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import convert
from tiny_runs import (
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
  return start([command(one, workdir, *flags) for one in data])


def start(commands):
  """Starts these commands as the processes of one run."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [
    subprocess.Popen(
      [
        *one,
        f"--process_timeout={TIMEOUT}",
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={len(commands)}",
        f"--process_id={k}",
      ],
      env=environment(4),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for k, one in enumerate(commands)
  ]


def collect(processes, limit):
  """Exit codes and what was said on stderr, within so many seconds."""
  begin = time.monotonic()
  errors = []
  for process in processes:
    left = limit - (time.monotonic() - begin)
    errors.append(process.communicate(timeout=max(left, 0.1))[1])
  return [process.returncode for process in processes], errors


def kill_one_and_see_the_other_end(processes, victim):
  """Within the bound, with a sentence that says who died."""
  processes[victim].kill()
  codes, errors = collect(processes, BOUND)
  assert codes[victim] == -signal.SIGKILL
  if victim == 1:
    assert codes[0] == 1, errors[0]
    last = errors[0].strip().splitlines()[-1]
    assert last.startswith("error: process 1 of 2 (pid")
    assert f"pid {processes[1].pid} on {socket.gethostname()}" in last
  else:  # JAX aborts those that lose process 0.
    assert codes[1] in (-signal.SIGABRT, 1), errors[1]
    assert f"error: process 0 of 2 (pid {processes[0].pid} on" in errors[1]


@pytest.mark.parametrize("victim", [1, 0])
def test_death_of_one_ends_the_other_and_one_process_goes_on(
  dataset, tmp_path, victim
):
  workdir = tmp_path / "w"
  flags = ("--config.checkpoint.every=5", "--config.schedule.length=80")
  processes = start_two(workdir, *flags, data=[dataset, dataset])
  wait_for_step(workdir, 12, processes[0])
  kill_one_and_see_the_other_end(processes, victim)
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
  assert f"{newest} done of 80" in done.stdout
  steps = [x["step"] for x in read_lines(workdir) if "train/loss" in x]
  assert steps == list(range(1, 81))


def test_bad_input_of_one_process_ends_all(dataset, tmp_path):
  """Process 1 does not find its data; process 0 would wait for it."""
  processes = start_two(
    tmp_path / "w", data=[dataset, str(tmp_path / "nowhere")]
  )
  codes, errors = collect(processes, 60 + BOUND)
  assert codes == [2, 2], errors
  assert "error: process 1 of 2 (pid" in errors[0] and "nowhere" in errors[0]
  assert errors[1].startswith("error: data set") or "nowhere" in errors[1]


def evaluation_of(workdir, data, output):
  return [
    sys.executable,
    "-m",
    "jamsface_jax.evaluate",
    "--flip=both",
    f"--workdir={workdir}",
    f"--data={data}",
    f"--output={output}",
  ]


def test_evaluation_by_two_processes_is_that_of_one(
  untrained, dataset, tmp_path, run
):
  two = evaluation_of(untrained, dataset, tmp_path / "two")
  processes = start([two, two])
  said = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  assert "tiny/accuracy" in said[0][0]
  # Said once; JAX says who is connected.
  assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())
  _, _, *flags = evaluation_of(untrained, dataset, tmp_path / "one")
  done = run(*flags, devices=8)
  assert done.returncode == 0, done.stderr
  results = [
    json.loads((tmp_path / name / "results.json").read_text())
    for name in ("one", "two")
  ]
  assert len(results[0]["sets"]) == 2  # With and without the flip sum.
  for a, b in zip(results[0]["sets"], results[1]["sets"], strict=True):
    assert (a["name"], a["facts"]) == (b["name"], b["facts"])
    assert b["metrics"] == pytest.approx(a["metrics"], rel=1e-5)
    assert b["threshold"] == pytest.approx(a["threshold"], rel=1e-5)
  files = [sorted(os.listdir(tmp_path / name)) for name in ("one", "two")]
  assert files[0] == files[1]


def test_evaluation_of_other_images_by_each_process_is_refused(
  untrained, dataset, image_folder, tmp_path
):
  convert(image_folder, tmp_path / "other", name="other")
  processes = start(
    [
      evaluation_of(untrained, data, tmp_path / "e")
      for data in (dataset, tmp_path / "other")
    ]
  )
  codes, errors = collect(processes, 60 + BOUND)
  assert codes == [2, 2], errors
  for error in errors:
    assert "not the same for all processes" in error
  assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("victim", [1, 0])
def test_death_in_the_middle_of_an_evaluation_ends_the_other(
  untrained, image_folder, tmp_path, victim
):
  """Of more images than are read in the time that it takes to kill."""
  folder = tmp_path / "faces"
  for path in sorted((image_folder / "images").glob("*/*.jpg")):
    (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
    for copy in range(400):
      os.link(path, folder / path.parent.name / f"{copy}_{path.name}")
  command = evaluation_of(untrained, folder, tmp_path / "e")
  processes = start([[*command, "--protocol=all_pairs"]] * 2)
  wait_until_it_reads(processes[1], folder)
  kill_one_and_see_the_other_end(processes, victim)
  # Whoever is ended at once leaves what is empty.
  assert set(os.listdir(tmp_path / "e")) <= {"lock"}


def wait_until_it_reads(process, folder):
  """Waits until a process has a file of a folder open."""
  deadline = time.monotonic() + 120
  while True:
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    for descriptor in pathlib.Path(f"/proc/{process.pid}/fd").iterdir():
      # It may be closed by now.
      with contextlib.suppress(FileNotFoundError):
        if descriptor.readlink().is_relative_to(folder):
          return


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


@pytest.mark.slow
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_coordinator_at_home_listens_there_alone(host):
  """Linux says who listens where, proc_pid_net(5)."""
  with socket.socket() as free:
    free.bind((host, 0))
    port = free.getsockname()[1]
  code = (
    "import pathlib\n"
    "from jamsface_jax.devices.processes import initialize\n"
    f"initialize('on', coordinator='{host}:{port}', num_processes=1,"
    " process_id=0)\n"
    "for file in ('tcp', 'tcp6'):\n"
    "  for line in pathlib.Path(f'/proc/net/{file}').open():\n"
    f"    if ':{port:04X} ' in line and ' 0A ' in line:\n"
    "      print(line.split()[1])\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=environment(),
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  listening = set(done.stdout.split())
  at_home = {
    f"0100007F:{port:04X}",
    f"00000000000000000000000001000000:{port:04X}",
    f"0000000000000000FFFF00000100007F:{port:04X}",
  }
  assert listening and listening <= at_home, listening
