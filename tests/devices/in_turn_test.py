"""Devices of one CPU that meet in every run of a program: XLA's own runtime.

The program has collectives that need not wait for each other, as a training
step has. Without `in_turn` XLA ends its process after 40 s (jaxlib 0.10.2, on
two cores: `Termination timeout ... Expected 8 threads to join`).
"""

import os
import subprocess
import sys

import jax

from jamsface_jax.devices import sharding

PROGRAM = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from jamsface_jax.devices import sharding

mesh = sharding.make_mesh(4)

def meet(xs):
  sums = []
  for number, x in enumerate(xs):
    y = jax.numpy.sin(x @ x.T)
    if number % 3 == 0:
      y = jax.lax.psum(y, ("data", "model"))
    elif number % 3 == 1:
      y = jax.lax.all_gather(y, ("data", "model"))
    else:
      y = jax.lax.psum(y, "model")
    sums.append(y.sum())
  return sum(sums)[None]

meet = jax.jit(jax.shard_map(
  meet, mesh=mesh, in_specs=sharding.BATCH, out_specs=P(), check_vma=False
))
rng = np.random.default_rng(0)
xs = [
  jax.device_put(
    rng.random((8 * (20 + k), 30), np.float32),
    jax.NamedSharding(mesh, sharding.BATCH),
  )
  for k in range(24)
]
meet = sharding.in_turn(meet, mesh)
print(len({float(x[0]) for x in [meet(xs) for _ in range(200)]}))
"""


def test_runs_do_not_wait_for_each_other_for_ever():
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert int(done.stdout) >= 1


def test_one_device_does_not_wait():
  def program():
    raise AssertionError

  one = sharding.make_mesh(1, jax.devices()[:1])
  assert sharding.in_turn(program, one) is program
  assert sharding.in_turn(program, sharding.make_mesh(1)) is not program
