"""A second start on several devices of a CPU, of a step that XLA itself runs.

With the program of the first, out of JAX's cache, it ends after 40 s
(`Termination timeout`; jaxlib 0.10.2 and 0.12.0.1).
"""

import os
import subprocess
import sys

import jax
import numpy as np

from jamsface_jax.data.sources import NoiseSource
from jamsface_jax.devices import sharding
from jamsface_jax.devices.program_cache import keep_programs
from jamsface_jax.run import state
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny
from jamsface_jax.training.step import make_train_step, seed_key

GIVEN = "JAX_COMPILATION_CACHE_DIR"
SIZE = 16
ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def steps():
  """What a process of its own runs: two steps of two micro-batches on 1x8."""
  keep_programs()
  config = tiny(base_config())
  config.data.image_size = SIZE
  config.data.batch_size = 32
  config.model.embedding_size = 16
  config.optimizer.accumulation = 2
  settings, mesh = make_settings(config), sharding.make_mesh(8)
  source = NoiseSource(10, 64, SIZE)
  components = make_components(settings, 10, 64)
  current = state.create_state(0, components, SIZE, mesh, source.class_sizes)
  step = sharding.in_turn(make_train_step(settings, components, mesh), mesh)
  rows = sharding.local_rows(32, mesh)
  images, labels = source.read(rows)
  batch = sharding.put_batch(
    {"images": images, "labels": labels}, rows, 32, mesh
  )
  for _ in range(2):
    current, _ = step(current, batch, seed_key(0))
  print(float(np.sum(jax.device_get(current.params["head"]["weights"]))))


def test_a_second_start_does_not_wait_for_ever(tmp_path):
  sums = []
  for _ in range(2):
    done = subprocess.run(
      [sys.executable, __file__],
      env={k: v for k, v in os.environ.items() if k != GIVEN}
      | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "XDG_CACHE_HOME": str(tmp_path),
        # As the suite has it, but for the order.
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace(ORDER, ""),
      },
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sums.append(float(done.stdout))
  assert sums[0] == sums[1]


if __name__ == "__main__":
  steps()
