import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jamsface_jax.head import parameters as head_lib
from jamsface_jax.head.update import clip_factor
from jamsface_jax.run.components import make_head
from jamsface_jax.run.optimizer import (
  make_optimizers,
)
from jamsface_jax.run.schedule import ends_pass, make_schedule, steps_of
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.variants import PUBLISHED, tiny


def settings(**changes):
  config = tiny(base_config())
  config.data.batch_size = 32
  config.optimizer.reference_batch = 16
  config.schedule.length = 100.0
  config.schedule.warmup = 10.0
  config.update_from_flattened_dict(changes)
  return make_settings(config)


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


@pytest.mark.parametrize(
  ("milestones", "expected"),
  [  # The warm-up lasts 10 steps, to 0.2.
    ((70.0, 40.0), {39: 0.2, 41: 0.02, 71: 0.002}),
    ((4.0, 8.0, 40.0), {3: 0.06, 5: 0.01, 9: 1.8e-3, 10: 2e-3, 41: 2e-4}),
    ((40.0, 40.0), {10: 0.2, 39: 0.2, 41: 0.002}),
    ((10.0, 40.0), {9: 0.18, 11: 0.02, 41: 0.002}),
    ((), {10: 0.2, 99: 0.2}),
  ],
)
@pytest.mark.parametrize("warmup", [10.0, 0.0])
def test_every_milestone_counts(milestones, expected, warmup):
  config = settings(
    **{"schedule.decay": "step", "schedule.milestones": milestones},
    **{"schedule.warmup": warmup},
  )
  schedule = make_schedule(config, num_images=1000)
  for step, rate in expected.items():
    if not warmup:
      rate *= 10 / min(step, 10)
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)


def test_epochs_become_steps():
  config = settings(
    **{"schedule.unit": "epochs", "schedule.length": 3.0},
    **{"schedule.warmup": 1.0},
  )
  assert steps_of(3.0, config, 1000) == 94  # ceil(3000 / 32)
  config = replaced(config, {"schedule.unit": "steps"})
  assert steps_of(3.0, config, 1000) == 3


def test_a_pass_ends_where_an_epoch_does():
  config = settings(**{"schedule.unit": "epochs", "schedule.warmup": 1.0})
  ends = [step for step in range(1, 95) if ends_pass(step, config, 1000)]
  assert ends == [32, 63, 94] == [steps_of(k, config, 1000) for k in (1, 2, 3)]
  assert [step for step in range(1, 7) if ends_pass(step, config, 64)] == [
    *(2, 4, 6)
  ]
  assert ends_pass(1, config, 10)  # More than one of them.


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
      head_lib.LOG_SCALE: jnp.float32(2.0),
    },
  }


def optimizers_of(config):
  head = make_head(config, 4, 40)
  return make_optimizers(config, optax.constant_schedule(0.1), head)


def moved(config, slopes, factors=(1.0, 1.0)):
  """Parameters after a step of all three optimizers with each factor."""
  optimizers, p = optimizers_of(config), params()
  opt_state = optimizers.init(p)
  states = {**opt_state["head"], "backbone": opt_state["backbone"]}
  groups = {
    "backbone": (p["backbone"], slopes["backbone"]),
    "weights": (p["head"]["weights"], slopes["head"]["weights"]),
    "small": (
      head_lib.margins_and_scalars(p["head"]),
      head_lib.margins_and_scalars(slopes["head"]),
    ),
  }
  by_key = {
    "backbone": optimizers.backbone,
    "weights": optimizers.weights,
    "small": optimizers.margins_and_scalars,
  }
  after = {}
  for name, (value, slope) in groups.items():
    for factor in factors:
      updates, states[name] = by_key[name].update(
        jax.tree.map(lambda s, f=factor: f * s, slope), states[name], value
      )
      value = optax.apply_updates(value, updates)
    after[name] = value
  return after


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_two_steps_by_hand(decay_vectors):
  """Momentum and decay on backbone and weights; neither on margins."""
  config = settings(
    **{
      "optimizer.decay_vectors": decay_vectors,
      "optimizer.clip_norm": 0.0,
      "optimizer.weight_decay": 0.01,
      "head.learn_cosine": False,
      "head.learn_scale": True,
    }
  )
  after = moved(config, jax.tree.map(jnp.ones_like, params()))

  def by_hand(value, decay):
    velocity = 0.0
    for _ in range(2):
      velocity = 0.9 * velocity + 1 + decay * value
      value -= 0.1 * velocity
    return value

  vector = by_hand(2.0, 0.01 if decay_vectors else 0.0)
  kernel = by_hand(2.0, 0.01)
  backbone, small = after["backbone"], after["small"]
  np.testing.assert_allclose(backbone["conv"]["kernel"], kernel, rtol=1e-6)
  np.testing.assert_allclose(after["weights"], kernel, rtol=1e-6)
  np.testing.assert_allclose(backbone["bn"]["scale"], vector, rtol=1e-6)
  np.testing.assert_allclose(
    backbone["embedding_bn"]["bias"], vector, rtol=1e-6
  )
  np.testing.assert_array_equal(backbone["embedding_bn"]["scale"], 1.0)
  moves = 2 * config.head.margin_rate * 0.1
  np.testing.assert_allclose(small[head_lib.ANGULAR], 0.3 - moves, rtol=1e-6)
  np.testing.assert_allclose(small[head_lib.LOG_SCALE], 2 - moves, rtol=1e-6)
  np.testing.assert_array_equal(small[head_lib.COSINE], np.float32(0.2))


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_three_steps_of_adamw_by_hand(decay_vectors):
  """Against the formula in float64; margins and scale have plain SGD."""
  config = settings(
    **{
      "optimizer.name": "adamw",
      "optimizer.betas": (0.8, 0.95),
      "optimizer.eps": 0.3,
      "optimizer.decay_vectors": decay_vectors,
      "optimizer.clip_norm": 0.0,
      "optimizer.weight_decay": 0.5,
      "head.learn_cosine": False,
    }
  )
  slopes = jax.tree.map(lambda p: jnp.full_like(p, 0.7), params())
  factors = (1.0, -2.0, 0.5)  # Of equal gradients every mean is the same.
  after = moved(config, slopes, factors)

  def by_hand(value, decay):
    m = v = 0.0
    for t, factor in enumerate(factors, start=1):
      slope = 0.7 * factor
      m, v = 0.8 * m + 0.2 * slope, 0.95 * v + 0.05 * slope**2
      move = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 0.3)
      value -= 0.1 * (move + decay * value)
    return value

  kernel, vector = by_hand(2.0, 0.5), by_hand(2.0, 0.5 * decay_vectors)
  backbone, small = after["backbone"], after["small"]
  np.testing.assert_allclose(backbone["conv"]["kernel"], kernel, rtol=1e-6)
  np.testing.assert_allclose(after["weights"], kernel, rtol=1e-6)
  np.testing.assert_allclose(backbone["bn"]["scale"], vector, rtol=1e-6)
  np.testing.assert_array_equal(backbone["embedding_bn"]["scale"], 1.0)
  moves = sum(factors) * config.head.margin_rate * 0.1 * 0.7
  np.testing.assert_allclose(small[head_lib.ANGULAR], 0.3 - moves, rtol=1e-6)
  np.testing.assert_array_equal(small[head_lib.COSINE], np.float32(0.2))


def test_clipping_is_of_the_learned_backbone():
  config = settings(
    **{"optimizer.clip_norm": 1.0, "optimizer.weight_decay": 0.0}
  )
  slopes = jax.tree.map(lambda p: jnp.full_like(p, 2.0), params())
  after = moved(config, slopes, factors=(1.0,))
  # 6 + 3 + 3 slopes of 2 are learned: their norm is sqrt(48).
  np.testing.assert_allclose(
    after["backbone"]["conv"]["kernel"], 2 - 0.1 * 2 / 48**0.5, rtol=1e-6
  )
  np.testing.assert_allclose(after["weights"], 2 - 0.1 * 2, rtol=1e-6)


def test_clip_factor():
  assert clip_factor(jnp.float32(8.0), 2.0) == 0.25
  assert clip_factor(jnp.float32(1.0), 2.0) == 1
  assert clip_factor(jnp.float32(8.0), 0.0) == 1


def test_margins_rest_until_they_start():
  config = settings(**{"head.margin_start": 2.0, "schedule.unit": "steps"})
  slopes = jax.tree.map(jnp.ones_like, params())
  rate = config.head.margin_rate * 0.1
  for steps, moving in ((2, 0), (3, 1), (5, 3)):
    small = moved(config, slopes, (1.0,) * steps)["small"]
    for name, first in ((head_lib.ANGULAR, 0.3), (head_lib.COSINE, 0.2)):
      np.testing.assert_allclose(small[name], first - moving * rate, rtol=1e-6)


def test_sigmoid_bounds_are_sgd_on_the_number_behind():
  config = settings(
    **{
      "head.margin_bounds": "sigmoid",
      "head.angular_min": 0.1,
      "head.angular_max": 0.9,
      "head.margin_rate": 5.0,
    }
  )
  slopes = jax.tree.map(jnp.ones_like, params())
  slope = np.array([1.0, -2.0, 30.0, -80.0])
  slopes["head"][head_lib.ANGULAR] = jnp.asarray(slope, jnp.float32)
  got = moved(config, slopes, (1.0, 0.5, 1.0))["small"][head_lib.ANGULAR]

  # By hand in float64: r moves, the margin is 0.1 + 0.8 sigmoid(r).
  r = np.full(4, np.log(0.25 / 0.75))
  for factor in (1.0, 0.5, 1.0):
    share = 1 / (1 + np.exp(-r))
    r -= 0.5 * factor * slope * 0.8 * share * (1 - share)
  np.testing.assert_allclose(got, 0.1 + 0.8 / (1 + np.exp(-r)), rtol=1e-5)
  assert 0.1 < got.min() < 0.2 and 0.8 < got.max() < 0.9


def test_sigmoid_bounds_let_a_margin_leave_them():
  config = settings(
    **{"head.margin_bounds": "sigmoid", "head.margin_rate": 1e4}
  )
  optimizers, p = optimizers_of(config), params()["head"]
  small = head_lib.margins_and_scalars(p) | {head_lib.ANGULAR: jnp.zeros(4)}
  slopes = jax.tree.map(lambda x: jnp.full_like(x, -1.0), small)
  state_of = optimizers.margins_and_scalars.init(small)
  moves, _ = optimizers.margins_and_scalars.update(slopes, state_of, small)
  assert np.all(np.asarray(moves[head_lib.ANGULAR]) > 1e-6)


def test_momentum_of_margins_is_their_own():
  """Three steps by hand; the scale of the head keeps plain SGD."""
  config = settings(
    **{"head.margin_momentum": 0.8, "optimizer.momentum": 0.5},
    **{"head.learn_scale": True},
  )
  slopes = jax.tree.map(jnp.ones_like, params())
  factors = (1.0, -2.0, 0.5)
  small = moved(config, slopes, factors)["small"]
  rate = config.head.margin_rate * 0.1
  move = velocity = 0.0
  for factor in factors:
    velocity = 0.8 * velocity + factor
    move += rate * velocity
  np.testing.assert_allclose(small[head_lib.ANGULAR], 0.3 - move, rtol=1e-6)
  np.testing.assert_allclose(small[head_lib.COSINE], 0.2 - move, rtol=1e-6)
  np.testing.assert_allclose(
    small[head_lib.LOG_SCALE], 2 - rate * sum(factors), rtol=1e-6
  )


def test_adaptiveface_has_the_momentum_of_its_public_code():
  words = {w: p.get("margin_momentum") for w, p in PUBLISHED.items()}
  assert words["adaptiveface"] == 0.9
  assert words["jamsface"] == base_config().head.margin_momentum == 0.0


@pytest.mark.parametrize(
  ("word", "chosen", "learned"),
  [
    ("magface", "by_loss", True),
    ("sphereface", "by_loss", True),
    ("softmax", "by_loss", True),
    ("adaface", "by_loss", False),
    ("arcface", "by_loss", False),
    ("arcface", "learned", True),
    ("magface", "fixed", False),
  ],
)
def test_the_last_scale_is_learned_where_lengths_are(word, chosen, learned):
  published = {f"head.{k}": v for k, v in PUBLISHED[word].items()}
  config = settings(**published | {"optimizer.last_scale": chosen})
  slopes = jax.tree.map(jnp.ones_like, params())
  after = moved(config, slopes, factors=(1.0,))["backbone"]["embedding_bn"]
  assert np.all(np.asarray(after["scale"]) < 1) == learned
  assert np.all(np.asarray(after["bias"]) < 2)


def test_three_steps_of_lars_by_hand():
  """In float64: arrays of one axis have plain SGD, others a ratio of norms."""
  config = settings(
    **{
      "optimizer.name": "lars",
      "optimizer.momentum": 0.7,
      "optimizer.trust_coefficient": 0.05,
      "optimizer.clip_norm": 0.0,
      "optimizer.weight_decay": 0.3,
      "head.fused_update": False,
    }
  )
  rng = np.random.default_rng(0)
  slopes = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params()
  )
  factors = (1.0, -2.0, 0.5)
  after = moved(config, slopes, factors)

  def by_hand(value, slope):
    value = np.asarray(value, np.float64)
    velocity = 0.0
    for factor in factors:
      step = factor * np.asarray(slope, np.float64) + 0.3 * value
      if value.ndim > 1:
        step *= 0.05 * np.linalg.norm(value) / np.linalg.norm(step)
      velocity = 0.7 * velocity + 0.1 * step
      value = value - velocity
    return value

  for got, path in (
    (after["backbone"]["conv"]["kernel"], ("backbone", "conv", "kernel")),
    (after["backbone"]["bn"]["scale"], ("backbone", "bn", "scale")),
    (after["weights"], ("head", "weights")),
  ):
    value, slope = params(), slopes
    for key in path:
      value, slope = value[key], slope[key]
    np.testing.assert_allclose(got, by_hand(value, slope), rtol=1e-5)
