import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jamsface_jax import config as config_lib
from jamsface_jax import head as head_lib
from jamsface_jax import state
from jamsface_jax.optimizer import (
  make_optimizer,
  make_schedule,
  parameter_groups,
)


def settings(**changes):
  config = config_lib.tiny(config_lib.base_config())
  config.data.batch_size = 32
  config.optimizer.reference_batch = 16
  config.schedule.length = 100.0
  config.schedule.warmup = 10.0
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize(
  ("decay", "expected"),
  [  # Batch is twice the reference: the peak is 0.2.
    ("polynomial", {0: 0, 5: 0.1, 10: 0.2, 55: 0.05, 100: 0}),
    ("cosine", {0: 0, 10: 0.2, 55: 0.1, 100: 0}),
    ("step", {10: 0.2, 39: 0.2, 41: 0.02, 71: 0.002}),
    ("constant", {10: 0.2, 99: 0.2}),
  ],
)
def test_schedules_hit_hand_numbers(decay, expected):
  config = settings(
    **{
      "schedule.decay": decay,
      "schedule.power": 2.0,
      "schedule.milestones": (40.0, 70.0),
    }
  )
  schedule = make_schedule(config, num_images=1000)
  for step, rate in expected.items():
    np.testing.assert_allclose(schedule(step), rate, atol=1e-7)


def test_epochs_become_steps():
  config = settings(**{"schedule.unit": "epochs", "schedule.length": 3.0})
  assert config_lib.steps_of(3.0, config, 1000) == 94  # ceil(3000 / 32)
  config.schedule.unit = "steps"
  assert config_lib.steps_of(3.0, config, 1000) == 3


def params():
  return {
    "backbone": {
      "conv": {"kernel": jnp.full((2, 3), 2.0)},
      "bn": {"scale": jnp.full((3,), 2.0)},
      "embedding_bn": {"scale": jnp.ones(3), "bias": jnp.full((3,), 2.0)},
    },
    "head": {
      "weights": jnp.full((4, 3), 2.0),
      head_lib.ANGULAR: jnp.full((4,), 0.3),
      head_lib.COSINE: jnp.full((4,), 0.2),
    },
  }


def optimizer_of(config):
  head = state.make_head(config, 4)
  return make_optimizer(config, optax.constant_schedule(0.1), head), head


def test_groups():
  _, head = optimizer_of(settings(**{"head.learn_cosine": False}))
  groups = parameter_groups(params(), head)
  assert groups["head"] == {
    "weights": "main",
    head_lib.ANGULAR: "margin",
    head_lib.COSINE: "frozen",
  }
  assert groups["backbone"]["embedding_bn"] == {
    "scale": "frozen",
    "bias": "main",
  }


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_two_steps_by_hand(decay_vectors):
  """Momentum and decay on the main group; neither on margins."""
  config = settings(
    **{
      "optimizer.decay_vectors": decay_vectors,
      "optimizer.clip_norm": 0.0,
      "optimizer.weight_decay": 0.01,
    }
  )
  optimizer, _ = optimizer_of(config)
  p = params()
  slopes = jax.tree.map(jnp.ones_like, p)
  opt_state = optimizer.init(p)
  for _ in range(2):
    updates, opt_state = optimizer.update(slopes, opt_state, p)
    p = optax.apply_updates(p, updates)

  def by_hand(value, decay):
    velocity = 0.0
    for _ in range(2):
      velocity = 0.9 * velocity + 1 + decay * value
      value -= 0.1 * velocity
    return value

  vector = by_hand(2.0, 0.01 if decay_vectors else 0.0)
  kernel = by_hand(2.0, 0.01)
  np.testing.assert_allclose(p["backbone"]["conv"]["kernel"], kernel, rtol=1e-6)
  np.testing.assert_allclose(p["head"]["weights"], kernel, rtol=1e-6)
  np.testing.assert_allclose(p["backbone"]["bn"]["scale"], vector, rtol=1e-6)
  np.testing.assert_array_equal(p["backbone"]["embedding_bn"]["scale"], 1.0)
  np.testing.assert_allclose(
    p["head"][head_lib.ANGULAR], 0.3 - 2 * 0.02 * 0.1, rtol=1e-6
  )


def test_clipping_is_of_the_main_group():
  config = settings(
    **{"optimizer.clip_norm": 1.0, "optimizer.weight_decay": 0.0}
  )
  optimizer, _ = optimizer_of(config)
  p = params()
  slopes = jax.tree.map(lambda x: 100 * jnp.ones_like(x), p)
  updates, _ = optimizer.update(slopes, optimizer.init(p), p)
  main = [
    updates["backbone"]["conv"]["kernel"],
    updates["backbone"]["bn"]["scale"],
    updates["backbone"]["embedding_bn"]["bias"],
    updates["head"]["weights"],
  ]
  length = np.sqrt(sum(np.sum(np.square(u)) for u in main))
  np.testing.assert_allclose(length, 0.1, rtol=1e-5)
  np.testing.assert_allclose(updates["head"][head_lib.COSINE], -0.2, rtol=1e-5)
