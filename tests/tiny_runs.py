"""Small whole runs, for tests: settings, commands, what they leave."""

import json
import os
import sys
import time

import jax
import numpy as np

from jamsface_jax.devices import sharding
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny
from jamsface_jax.storage.run_directory import RunDirectory


def tiny_config(dataset, **changes):
  config = tiny(base_config())
  config.model.stages = (1,)
  config.data.directory = dataset
  config.head.scale = 16.0
  config.schedule.length = 12.0
  config.checkpoint.every = 4
  config.checkpoint.keep_last = 3
  config.evaluation.data = dataset
  config.update_from_flattened_dict(changes)
  return make_settings(config)


def read_state(config, workdir, step=12):
  """The state of a finished run, on the host."""
  mesh = sharding.make_mesh(-1)
  components = make_components(config, 12, 37)
  shapes = state.state_shapes(components, config.data.image_size, mesh)
  checkpoints = Checkpoints(
    RunDirectory(str(workdir)), keep_last=3, keep_best=""
  )
  got = checkpoints.restore(step, shapes)
  checkpoints.close()
  return jax.device_get(got)


def read_lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def without_speed(lines):
  timed = ("train/images_per_second", "train/data_wait_fraction")
  return [
    {
      k: v
      for k, v in x.items()
      if k not in timed and not k.startswith("goodput/")
    }
    for x in lines
  ]


def assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def command(dataset, workdir, *flags):
  return [
    sys.executable,
    "-m",
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    f"--workdir={workdir}",
    f"--config.data.directory={dataset}",
    "--config.schedule.length=60",
    "--config.checkpoint.every=5",
    "--config.log_every=1",
    *flags,
  ]


def environment(devices=2):
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
  }


def wait_for_step(workdir, step, process):
  begin = time.monotonic()
  while time.monotonic() - begin < 120:
    assert process.poll() is None, process.communicate()
    path = workdir / "metrics.jsonl"
    if path.exists() and path.read_text().count("\n") > step:
      return
    time.sleep(0.01)
  raise TimeoutError
