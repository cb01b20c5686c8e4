"""What a step needs: against the compiler's own account, and refused in time.

Who vouches: `memory_analysis` of the program that would train, compiled by a
process of its own: the suite's flags have XLA keep other things at once (of
MobileFaceNet 274 MB, where users hold 137).
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.run import step_memory
from jamsface_jax.run.components import make_components
from jamsface_jax.run.state import state_shapes
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.training import setup
from jamsface_jax.training.step import make_train_step, seed_key

SMALL = {
  "data.image_size": 56,
  "data.batch_size": 32,
  "model.name": "iresnet",
  "model.stages": (1, 1),
  "model.width": 0.5,
  "model.embedding_size": 128,
}
CLASSES, IMAGES = 1000, 10_000
CASES = {
  "iresnet": {},
  "batch": {"data.batch_size": 128},
  "remat": {"model.remat": True},
  "bfloat16": {"model.dtype": "bfloat16"},
  "micro": {"optimizer.accumulation": 2},
  "mobilefacenet": {
    "model.name": "mobilefacenet",
    "model.stages": (1, 1, 1, 1),
  },
  "vit": {"model.name": "vit", "model.stages": (2,), "model.width": 0.25},
  "edgenext": {
    "model.name": "edgenext",
    "model.stages": (1, 1, 1, 1),
    "model.width": 1.0,
  },
}


@pytest.fixture(scope="module")
def one():
  """A mesh of one device."""
  return mesh_of_one()


def settings_of(case):
  return replaced(Settings(), {**SMALL, **CASES[case]})


def mesh_of_one():
  return jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )


def estimate(settings, mesh):
  return setup._estimate_step(settings, CLASSES, IMAGES, mesh)


def held(settings, mesh):
  """Bytes that the compiled step holds at once on a device."""
  components = make_components(settings, CLASSES, IMAGES)
  size, batch = settings.data.image_size, settings.data.batch_size
  inputs = {
    "images": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
    "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
  }
  step = make_train_step(settings, components, mesh)
  lowered = step.lower(
    state_shapes(components, size, mesh), inputs, seed_key(0)
  )
  memory = lowered.compile().memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


@pytest.fixture(scope="module")
def held_by_users():
  """Bytes of each of `CASES`, by its name."""
  flags = "--xla_backend_optimization_level=0"  # Costs time, no memory.
  done = subprocess.run(
    [sys.executable, __file__],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_estimate_agrees_with_the_compiler(case, one, held_by_users):
  cost = estimate(settings_of(case), one)
  assert cost.total == pytest.approx(held_by_users[case], rel=0.25), str(cost)


def test_activations_by_hand(one):
  """They grow with the batch; all else stays."""
  first = estimate(replaced(Settings(), SMALL), one)
  double = estimate(replaced(Settings(), {**SMALL, "data.batch_size": 64}), one)
  assert double.activations == 2 * first.activations
  assert double.images == 2 * first.images == 64 * 56 * 56 * 3 * 5
  assert double.backbone == first.backbone
  # The stem alone gives out 32 channels at full size, of which two gradients.
  assert first.activations > 3 * 32 * 56 * 56 * 32 * 4


def test_what_does_not_fit_is_refused_with_what_does(one):
  settings = replaced(Settings(), {**SMALL, "data.batch_size": 1024})
  cost = estimate(settings, one)
  memory = cost.total // 3
  with pytest.raises(InputError) as error:
    step_memory.check_fits(
      cost, settings, memory, lambda other: estimate(other, one)
    )
  text = str(error.value)
  for part in (
    "data.batch_size=1024: a step of iresnet needs about",
    "activations",
    "data.batch_size=256",
    "optimizer.accumulation=8",
  ):
    assert part in text, text
  for batch in (256, 1024):
    smaller = {**SMALL, "data.batch_size": batch}
    if batch == 1024:
      smaller |= {"optimizer.accumulation": 8}
    assert estimate(replaced(Settings(), smaller), one).total <= memory


def test_nothing_fits_a_device_that_holds_no_network(one):
  settings = replaced(Settings(), SMALL)
  cost = estimate(settings, one)
  with pytest.raises(InputError, match="a smaller network"):
    step_memory.check_fits(
      cost, settings, 2**20, lambda other: estimate(other, one)
    )


def test_devices_share_activations_and_keep_the_backbone(one):
  """The mesh of all devices, each with its part of the batch."""
  mesh = sharding.make_mesh(-1)
  settings = replaced(Settings(), SMALL)
  alone, shared = estimate(settings, one), estimate(settings, mesh)
  assert shared.activations == alone.activations // mesh.size
  assert shared.backbone == alone.backbone


def test_a_run_is_refused_before_its_directory_is_touched(tmp_path, run):
  """The recipe of a cluster on a machine of some GiB."""
  done = run(
    "jamsface_jax.main",
    "--config=configs/ms1m_r100.py:tiny",
    "--config.data.batch_size=1048576",
    f"--workdir={tmp_path / 'w'}",
  )
  assert done.returncode == 2
  assert "a step of iresnet needs about" in done.stderr
  assert "Traceback" not in done.stderr and not (tmp_path / "w").exists()


if __name__ == "__main__":
  mesh = mesh_of_one()
  print(json.dumps({case: held(settings_of(case), mesh) for case in CASES}))
