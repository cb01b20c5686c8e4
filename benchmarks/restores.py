"""Checkpoints of every layout, continued on every layout.

  python benchmarks/restores.py [--smooth]

A run stops after 10 steps on one layout, is continued for 20 on another, and is
compared with the run that stays where it was: the largest difference of any
parameter, margin or momentum, and whether every step saw the same examples in
the same rows. `2 x 4` is a mesh of 2 (data) x 4 (model) fake CPU devices;
the last layout is 2 x 4 over two processes.

Layouts add in another order, so that numbers are rounded otherwise, and every
step of training makes a difference larger. How much larger is measured too: the
1 x 1 run is continued on 1 x 1 with every number of its state moved by one unit
in the last place at random, some times. A restore that differs by more than
that does more than round, or has hit a kink: where an activation is next to 0,
rounding decides which of PReLU's two slopes its gradient has, and a parameter
moves by a whole contribution more or less. `--smooth` puts an activation
without a kink in the place of PReLU, in all runs.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from jamsface_jax.data.sources import NoiseSource
from jamsface_jax.devices import sharding
from jamsface_jax.errors import EXIT_PREEMPTED, RunError, run_command
from jamsface_jax.models import iresnet
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.variants import tiny
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.preemption import Preemption
from jamsface_jax.training.step_log import StepLog
from jamsface_jax.training.train import train

# Name: processes, devices of each, devices on the model axis.
LAYOUTS = {
  "1x1": (1, 1, 1),
  "1x4": (1, 4, 4),
  "2x2": (1, 4, 2),
  "1x8": (1, 8, 8),
  "2x4": (1, 8, 4),
  "8x1": (1, 8, 1),
  "2 processes": (2, 4, 4),
}


def main() -> int:
  """Reads the flags; measures, or does the jobs of one process."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/restores.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--smooth", action="store_true", help="see above")
  add("--layouts", default=",".join(LAYOUTS), help="with 1x1, by commas")
  add("--stop", type=int, default=10, help="the step that a run stops after")
  add("--end", type=int, default=30, help="the last step")
  add("--nudges", type=int, default=5, help="runs from numbers moved a little")
  parser.add_argument("--jobs", help=argparse.SUPPRESS)
  parser.add_argument("--process", type=int, default=0, help=argparse.SUPPRESS)
  parser.add_argument("--port", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  if arguments.jobs:
    do_jobs(arguments)
    return 0
  with tempfile.TemporaryDirectory() as directory:
    measure(directory, arguments)
  return 0


def measure(directory: str, arguments: argparse.Namespace) -> None:
  """Runs all layouts and pairs; prints the table.

  Raises:
    RunError: a step has seen other examples.
  """
  stop, end = arguments.stop, arguments.end
  layouts = {name: LAYOUTS[name] for name in arguments.layouts.split(",")}
  first = {name: os.path.join(directory, name) for name in layouts}
  for name, layout in layouts.items():
    run_jobs(layout, [(first[name], layout[2], stop, 0)], directory, arguments)
  second = {
    pair: os.path.join(directory, "-".join(pair))
    for pair in itertools.product(layouts, layouts)
  }
  for (before, _), workdir in second.items():
    shutil.copytree(first[before], workdir)
  for after, layout in layouts.items():
    jobs = [(second[b, after], layout[2], end, 0) for b in layouts]
    run_jobs(layout, jobs, directory, arguments)
  nudged = [
    os.path.join(directory, f"nudged{k}") for k in range(arguments.nudges)
  ]
  for workdir in nudged:
    shutil.copytree(first["1x1"], workdir)
  jobs = [(workdir, 1, end, k) for k, workdir in enumerate(nudged, start=1)]
  run_jobs(LAYOUTS["1x1"], jobs, directory, arguments)

  states = {pair: read_state(workdir, end) for pair, workdir in second.items()}
  examples = read_examples(first["1x1"]) | read_examples(second["1x1", "1x1"])
  same_examples = {
    pair: read_examples(first[pair[0]]) | read_examples(workdir) == examples
    for pair, workdir in second.items()
  }
  print(f"{'from, to':>12}", *(f"{name:>12}" for name in layouts))
  for before in layouts:
    cells = [
      f"{difference(states[before, a], states[before, before]):.1e}"
      + ("" if same_examples[before, a] else " !")
      for a in layouts
    ]
    print(f"{before:>12}", *(f"{cell:>12}" for cell in cells))
  control = [
    difference(read_state(workdir, end), states["1x1", "1x1"])
    for workdir in nudged
  ]
  print(
    f"1x1, continued on 1x1 from numbers one unit in the last place beside:"
    f" {min(control):.1e} to {max(control):.1e} in {len(control)} runs"
  )
  print(
    f"largest number in any state:"
    f" {max(np.abs(x).max() for x in leaves(states['1x1', '1x1'])):.1f};"
    f" pairs with the same examples in every step:"
    f" {sum(same_examples.values())} of {len(same_examples)}"
  )
  if not all(same_examples.values()) or len(examples) != end * 16:
    raise RunError("steps have seen other examples")


def run_jobs(
  layout: tuple[int, int, int],
  jobs: list[tuple[str, int, int, int]],
  directory: str,
  arguments: argparse.Namespace,
) -> None:
  """Trains (work directory, model devices, last step, nudge) on one layout."""
  processes, devices, _ = layout
  path = os.path.join(directory, "jobs.json")
  with open(path, "w", encoding="utf-8") as file:
    json.dump(jobs, file)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_COMPILATION_CACHE_DIR": os.path.join(directory, "compiled"),
  }
  running = [
    subprocess.Popen(
      [
        sys.executable,
        __file__,
        f"--jobs={path}",
        f"--process={k}",
        *([f"--port={port}"] if processes > 1 else []),
        *(["--smooth"] if arguments.smooth else []),
        f"--end={arguments.end}",
      ],
      env=environment,
      stdout=subprocess.DEVNULL,
    )
    for k in range(processes)
  ]
  if any([process.wait() for process in running]):
    raise RunError(f"a process of layout {layout} failed")


class SmoothPReLU(nn.Module):
  """What PReLU is far from 0, without its kink: x (1 + s e^-x) / (1 + e^-x).

  Attributes:
    fold: pixels that are folded in the input; 1 on CPUs.
  """

  fold: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies it to `x` [..., C]."""
    initial = nn.initializers.constant(0.25)
    slope = self.param("slope", initial, (x.shape[-1],))
    share = nn.sigmoid(x)
    return x * (share + slope * (1 - share))


def do_jobs(arguments: argparse.Namespace) -> None:
  """Trains as told, and writes down the examples of each step."""
  if arguments.port:
    jax.distributed.initialize(
      f"127.0.0.1:{arguments.port}", 2, arguments.process
    )
  with open(arguments.jobs, encoding="utf-8") as file:
    jobs = json.load(file)
  for workdir, model_devices, end, nudge in jobs:
    config = settings(model_devices, arguments.end)
    rows = sharding.local_rows(
      config.data.batch_size, sharding.make_mesh(model_devices)
    )
    examples = []

    def add(
      self, step, metrics, ids, rows=rows, examples=examples, to_log=StepLog.add
    ):
      examples.append(
        {"step": step, "rows": rows.tolist(), "ids": ids.tolist()}
      )
      return to_log(self, step, metrics, ids)

    with contextlib.ExitStack() as patches:
      patches.enter_context(mock.patch.object(StepLog, "add", add))
      patches.enter_context(
        mock.patch.object(
          Preemption,
          "requested",
          lambda self, step, end=end: step == end < arguments.end,
        )
      )
      if arguments.smooth:
        patches.enter_context(mock.patch.object(iresnet, "PReLU", SmoothPReLU))
      if nudge:
        patches.enter_context(
          mock.patch.object(Checkpoints, "restore", nudged_restore(nudge))
        )
      code = train(config, RunDirectory(workdir))
    if code != (0 if end == arguments.end else EXIT_PREEMPTED):
      raise RunError(f"{workdir}: exit code {code}")
    name = f"examples_{end}_{jax.process_index()}.json"
    with open(os.path.join(workdir, name), "w", encoding="utf-8") as file:
      json.dump(examples, file)


def nudged_restore(seed: int) -> Callable[..., state.TrainState]:
  """A `Checkpoints.restore` whose numbers are next to those restored."""
  rng, restore = np.random.default_rng(seed), Checkpoints.restore

  def nudge(x):
    if not np.issubdtype(x.dtype, np.floating):
      return x
    away = rng.choice(np.array([-np.inf, np.inf], x.dtype), x.shape)
    return jax.device_put(np.nextafter(np.asarray(x), away), x.sharding)

  return lambda *arguments: jax.tree.map(nudge, restore(*arguments))


def settings(model_devices: int, length: int) -> Settings:
  """A small network, learned margins, drawn augmentation."""
  config = tiny(base_config())
  config.head.scale = 16.0
  config.augment.shift = 2
  config.augment.contrast = 0.2
  config.optimizer.reference_batch = 128
  config.schedule.length = float(length)
  config.checkpoint.every = 1000
  config.checkpoint.keep_last = 9
  config.mesh.model = model_devices
  return make_settings(config)


def read_examples(workdir: str) -> dict[tuple[int, int], int]:
  """The example of each (step, row), as far as this directory saw it."""
  examples = {}
  for name in os.listdir(workdir):
    if name.startswith("examples_"):
      with open(os.path.join(workdir, name), encoding="utf-8") as file:
        for line in json.load(file):
          for row, example in zip(line["rows"], line["ids"], strict=True):
            examples[line["step"], row] = example
  return examples


def read_state(workdir: str, step: int) -> state.TrainState:
  """The state after a step, on the host."""
  config = settings(1, step)
  source = NoiseSource(config.data.noise_classes, config.data.noise_images, 32)
  components = make_components(config, source.num_classes, len(source))
  checkpoints = Checkpoints(RunDirectory(workdir), keep_last=9, keep_best="")
  shapes = state.state_shapes(components, 32, sharding.make_mesh(1))
  restored = checkpoints.restore(step, shapes)
  checkpoints.close()
  return jax.device_get(restored)


def leaves(tree: state.TrainState) -> list[np.ndarray]:
  """All arrays of floating-point numbers in a state."""
  return [
    x for x in jax.tree.leaves(tree) if np.issubdtype(x.dtype, np.floating)
  ]


def difference(a: state.TrainState, b: state.TrainState) -> float:
  """The largest difference of two numbers."""
  return max(
    np.abs(x - y).max() for x, y in zip(leaves(a), leaves(b), strict=True)
  )


if __name__ == "__main__":
  run_command(main)
