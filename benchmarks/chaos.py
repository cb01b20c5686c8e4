"""Kills a run again and again, and compares what comes out, bit for bit.

  python benchmarks/chaos.py --kills=30 --seed=0 [--signal=TERM]

Two runs with the same settings on drawn faces, with checkpoints and evaluations
every few steps. One is left alone. The other is killed at random instants:
while it starts, between steps, in evaluations, and on purpose while a
checkpoint is being written or old ones are removed; then the same command is
given again. In the end parameters, margins, statistics, optimizer state and the
metrics of every step must be equal, `==`. Exit code 1 if they are not.

With --workdir=gs://BUCKET/NAME the killed run lies there, and the other on the
local disk; each start finds an empty one, as on another machine, and some kills
fall between the last array of a checkpoint and its manifest.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from jamsface_jax.data.sources import open_source
from jamsface_jax.devices import sharding
from jamsface_jax.errors import EXIT_PREEMPTED, RunError, run_command
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.run.schedule import steps_of
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

EVALUATE_EVERY = 15
_LIMIT = 300  # Seconds that a start may take to get anywhere.


def main() -> int:
  """Reads the flags, kills, compares."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/chaos.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--kills", type=int, default=30, help="how often")
  add("--seed", type=int, default=0, help="of the instants")
  add("--signal", choices=("KILL", "TERM"), default="KILL", help="how")
  add("--steps", type=int, default=400, help="of the run")
  add("--data", help="directory with train/ and test/; default: drawn now")
  add("--workdir", help="where both runs go; default: a temporary directory")
  add("--processes", type=int, default=1, help="of the run that is killed")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    jax.config.update("jax_platforms", "cpu")
    address = arguments.workdir or temporary
    directory = temporary if address.startswith("gs://") else address
    data = arguments.data or draw_faces(os.path.join(directory, "data"))
    command = command_for(data, arguments.steps)
    whole = RunDirectory(os.path.join(directory, "whole"))
    killed = RunDirectory(os.path.join(address, "killed"))
    launches = Launches(command, directory, arguments.processes)
    launches.finish(whole)
    counts = kill_often(launches, killed, arguments)
    launches.finish(killed)
    compare(whole, killed)
  print(
    f"{counts['kills']} kills by SIG{arguments.signal} in {arguments.steps}"
    f" steps, seed {arguments.seed}: {counts['save']} hit a save,"
    f" {counts['commit']} of them between the last array and the manifest,"
    f" {counts['cleaning']} the removal of an old checkpoint,"
    f" {counts['evaluation']} an evaluation, {counts['start']} a start that had"
    " not finished a step"
  )
  print("parameters, margins, optimizer state and metrics of every step: equal")
  return 0


def draw_faces(directory: str) -> str:
  """Draws a small training set and a test set."""
  subprocess.run(
    [
      sys.executable,
      "-m",
      "data_prep.synthesize",
      f"--output={directory}",
      "--size=32",
      "--identities=40",
      "--images=400",
      "--test_identities=60",
      "--pairs=200",
    ],
    check=True,
    stdout=subprocess.DEVNULL,
  )
  return directory


def command_for(data: str, steps: int) -> list[str]:
  """The command of both runs, but for its work directory."""
  settings = {
    "data.directory": os.path.join(data, "train"),
    "evaluation.data": os.path.join(data, "test"),
    "evaluation.every": EVALUATE_EVERY,
    "checkpoint.every": 10,
    "schedule.length": steps,
    # Lines between which checkpoints fall, and one before each evaluation.
    "log_every": 3,
    "data.threads": 1,
  }
  return [
    sys.executable,
    "-m",
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    *(f"--config.{name}={value}" for name, value in settings.items()),
  ]


@dataclasses.dataclass
class Launches:
  """How both runs are started.

  Attributes:
    command: the command, but for its work directory.
    directory: of compiled programs and of what is local.
    processes: how many the run consists of.
  """

  command: list[str]
  directory: str
  processes: int

  def start(self, run: RunDirectory) -> list[subprocess.Popen]:
    """Starts the processes of a run, with nothing of it on the local disk."""
    local = os.path.join(self.directory, "local")
    shutil.rmtree(local, ignore_errors=True)
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": os.path.join(self.directory, "compiled"),
      "XDG_CACHE_HOME": local,
      "MPLCONFIGDIR": os.path.join(self.directory, "fonts"),
    }
    together = []
    if self.processes > 1:
      together = [
        f"--coordinator=127.0.0.1:{free_port()}",
        f"--num_processes={self.processes}",
      ]
    return [
      subprocess.Popen(
        [
          *self.command,
          f"--workdir={run.path}",
          *together,
          *([f"--process_id={number}"] if together else []),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
      )
      for number in range(self.processes)
    ]

  def finish(self, run: RunDirectory) -> None:
    """Runs to the end."""
    processes = self.start(run)
    ends = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
      if process.returncode:
        raise RunError(f"a run ended with {process.returncode}: {errors}")


def free_port() -> int:
  """A port of this machine that nobody listens at."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def kill_often(
  launches: Launches, run: RunDirectory, arguments: argparse.Namespace
) -> dict[str, int]:
  """Starts and kills; counts what the kills hit."""
  rng = random.Random(arguments.seed)
  counts = collections.Counter(kills=0)
  while counts["kills"] < arguments.kills:
    before = last_step(run)
    processes = launches.start(run)
    process = processes[0]
    aim_and_wait(rng, process, run, arguments)
    for one in processes:
      one.send_signal(getattr(signal, f"SIG{arguments.signal}"))
    errors = [one.communicate(timeout=_LIMIT)[1] for one in processes][0]
    if process.returncode == 0:
      raise RunError(
        f"the run ended after {counts['kills']} kills: give more --steps."
      )
    # A SIGTERM before the run listens ends it as it ends any process.
    expected = (-signal.SIGKILL, -signal.SIGTERM, EXIT_PREEMPTED)
    if process.returncode not in expected:
      raise RunError(f"exit code {process.returncode}: {errors}")
    counts["kills"] += 1
    hit = what_was_hit(run, before, process.returncode)
    counts[hit] += 1
    counts["save"] += hit == "commit"
  return counts


def aim_and_wait(
  rng: random.Random,
  process: subprocess.Popen,
  run: RunDirectory,
  arguments: argparse.Namespace,
) -> None:
  """Waits for the instant of the next kill."""
  aim = rng.choice(("save", "commit", "step", "evaluation", "start"))
  pause = 0.05 if run.mirror else 0.002  # What is asked of a bucket takes long.
  before, begin = last_step(run), time.monotonic()
  if aim == "start":
    patience = rng.uniform(0, 8)
    while time.monotonic() - begin < patience and last_step(run) == before:
      time.sleep(pause)
    return
  progress = arguments.steps / arguments.kills
  target = before + rng.uniform(1, progress)
  while process.poll() is None and time.monotonic() - begin < _LIMIT:
    if aim == "save" and saving(run):
      break
    if aim == "commit" and written(run):
      return
    if aim == "step" and last_step(run) > target:
      break
    if aim == "evaluation" and evaluating(run):
      time.sleep(rng.uniform(0, 0.02))  # Some are over soon.
      return
    time.sleep(pause)
  time.sleep(rng.uniform(0, 0.25))


def saving(run: RunDirectory) -> list[str]:
  """Names of the checkpoints that are being written."""
  if run.mirror:
    objects = run.mirror.place.blobs("checkpoints/")
    steps = {name.split("/")[1] for name in objects}
    return [s for s in steps if f"checkpoints/{s}/manifest.json" not in objects]
  return [name for name in checkpoint_names(run) if ".saving" in name]


def written(run: RunDirectory) -> bool:
  """Whether the arrays of a checkpoint are there whose manifest is not."""
  folder = run.checkpoints
  if run.mirror:
    there = run.mirror.place.below("checkpoints").blobs()
    # Orbax writes it when all else of its own is there.
    return any(f"{step}/commit_success.txt" in there for step in saving(run))
  return any(
    name.endswith(".saving")
    and not os.path.exists(os.path.join(folder.path, name, "manifest.json"))
    for name in checkpoint_names(run)
  )


def checkpoint_names(run: RunDirectory) -> list[str]:
  """What lies among the checkpoints, unfinished ones too."""
  folder = run.checkpoints
  if run.mirror:
    return []
  return os.listdir(folder.path) if folder.exists() else []


def evaluating(run: RunDirectory) -> bool:
  """Whether a step's metrics are there whose evaluation is not."""
  lines = read_lines(run)
  if not lines or lines[-1]["step"] % EVALUATE_EVERY:
    return False
  return "train/loss" in lines[-1]


def what_was_hit(run: RunDirectory, before: int, code: int) -> str:
  """What a process was doing when it was killed, by what it left."""
  if code == EXIT_PREEMPTED:
    return "step"
  names = checkpoint_names(run)
  if saving(run):
    return "commit" if written(run) else "save"
  if any(".deleting" in name for name in names):
    return "cleaning"
  if last_step(run) <= before:
    return "start"
  return "evaluation" if evaluating(run) else "step"


def read_lines(run: RunDirectory) -> list[dict]:
  """The whole lines of the metrics so far."""
  if not run.metrics.exists():
    return []
  lines = run.metrics.read_lines()
  return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(run: RunDirectory) -> int:
  """The step of the last line of metrics, 0 if there is none."""
  lines = read_lines(run)
  return lines[-1]["step"] if lines else 0


def compare(whole: RunDirectory, killed: RunDirectory) -> None:
  """Stops unless both runs have come to the same.

  Raises:
    RunError: names what differs.
  """
  timed = ("train/images_per_second", "train/data_wait_fraction")

  def learned(run: RunDirectory) -> list[dict]:
    return [
      {
        name: value
        for name, value in line.items()
        if name not in timed and not name.startswith("goodput/")
      }
      for line in read_lines(run)
    ]

  for theirs, ours in zip(learned(whole), learned(killed), strict=True):
    if theirs != ours:
      raise RunError(f"metrics differ: {theirs} and {ours}")
  whole_state, killed_state = read_state(whole), read_state(killed)
  jax.tree.map(np.testing.assert_array_equal, whole_state, killed_state)


def read_state(run: RunDirectory) -> state.TrainState:
  """The last state of a run, on the host."""
  config = read_settings(run)
  source = open_source(config.data)
  components = make_components(config, source.num_classes, len(source))
  mesh = sharding.make_mesh(-1)
  checkpoints = Checkpoints(run, keep_last=1, keep_best="")
  step = steps_of(config.schedule.length, config, len(source))
  shapes = state.state_shapes(components, config.data.image_size, mesh)
  restored = checkpoints.restore(step, shapes)
  checkpoints.close()
  return jax.device_get(restored)


if __name__ == "__main__":
  run_command(main)
