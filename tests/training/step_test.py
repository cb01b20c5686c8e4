"""One training step: the same on every mesh, accumulated or not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.data.sources import NoiseSource
from jamsface_jax.devices import sharding
from jamsface_jax.head import concentration
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.head.losses import make_loss
from jamsface_jax.run import state
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import PUBLISHED, tiny
from jamsface_jax.training import step as step_lib
from jamsface_jax.training.step import (
  make_end_pass,
  make_train_step,
  misses_by_size,
  seed_key,
)

SIZE = 32


def tiny_config(**changes):
  config = tiny(base_config())
  # Of the network a step knows that it has batch statistics.
  config.model.stages = (1,)
  config.data.batch_size = 32
  config.schedule.warmup = 0.0
  config.head.scale = 16.0
  # Large steps turn differences of rounding into flips of activations.
  config.optimizer.learning_rate = 0.02
  config.augment.shift = 1
  config.update_from_flattened_dict(changes)
  return make_settings(config)


def create_state(config, mesh, classes=10):
  source = NoiseSource(classes, 64, SIZE)
  components = make_components(config, classes, len(source))
  return state.create_state(0, components, SIZE, mesh, source.class_sizes)


@functools.cache
def first_values(config, classes=10):
  """What `create_state` makes, on the host."""
  return jax.device_get(create_state(config, sharding.make_mesh(1), classes))


def first_state(config, mesh, classes=10):
  """What `create_state` makes on any mesh, compiled for one alone."""
  components = make_components(config, classes, 64)
  return jax.tree.map(
    lambda value, shape: jax.device_put(value, shape.sharding),
    first_values(config, classes),
    state.state_shapes(components, SIZE, mesh),
  )


def run_steps(config, mesh, steps=2, classes=10):
  source = NoiseSource(classes, 64, SIZE)
  components = make_components(config, source.num_classes, len(source))
  current = first_state(config, mesh, classes)
  step_fn = sharding.in_turn(make_train_step(config, components, mesh), mesh)
  rows = sharding.local_rows(32, mesh)
  metrics = None
  for k in range(steps):
    images, labels = source.read((rows + 32 * k) % 64)
    batch = sharding.put_batch(
      {"images": images, "labels": labels}, rows, 32, mesh
    )
    current, metrics = step_fn(current, batch, seed_key(0))
  return jax.device_get(current), {k: float(v) for k, v in metrics.items()}


@pytest.fixture(scope="module")
def one_device():
  from jax.sharding import AxisType

  mesh = jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  return mesh, run_steps(tiny_config(), mesh)


CONCENTRATION = {
  "head.learn_angular": False,
  "head.learn_cosine": False,
  "head.margin_rule": "concentration",
}


def assert_close(got, want, rtol=2e-3, atol=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    got,
    want,
  )


def test_first_state_does_not_depend_on_the_mesh(mesh):
  created, want = (
    make(tiny_config(), mesh) for make in (create_state, first_state)
  )
  for got, array in zip(*map(jax.tree.leaves, (created, want)), strict=True):
    np.testing.assert_array_equal(got, array)
    assert got.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_does_not_depend_on_the_mesh(mesh, one_device):
  got, metrics = run_steps(tiny_config(), mesh)
  want, want_metrics = one_device[1]
  assert_close(got, want)
  assert_close(metrics, want_metrics)
  assert got.step == 2


def test_folded_maps_train_as_plain_ones(mesh):
  # The stem has 8 channels; rounding grows with the steps.
  changes = {"optimizer.learning_rate": 0.005, "model.stages": (1, 1)}
  folded = tiny_config(**changes | {"model.lanes": 16})
  plain = tiny_config(**changes | {"model.lanes": 1})
  assert folded.model.lanes == 16
  got, metrics = run_steps(folded, mesh, steps=20)
  want, want_metrics = run_steps(plain, sharding.make_mesh(1), steps=20)
  assert_close(metrics, want_metrics, rtol=1e-3, atol=1e-3)
  assert_close(got, want, rtol=2e-2, atol=2e-3)


def test_everything_moves_but_what_is_frozen(one_device):
  _, (got, _) = one_device
  first = first_values(tiny_config())
  flat, _ = jax.tree_util.tree_flatten_with_path(
    (first.params, first.batch_stats)
  )
  after = jax.tree.leaves((got.params, got.batch_stats))
  for (path, before), now in zip(flat, after, strict=True):
    name = jax.tree_util.keystr(path)
    frozen = "embedding_bn']['scale" in name
    assert np.array_equal(before, now) == frozen, name
  for name, mean in ((head_lib.ANGULAR, 0.3), (head_lib.COSINE, 0.2)):
    np.testing.assert_allclose(
      got.params["head"][name][:10].mean(), mean, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
  "word",
  ["softmax", "sphereface", "adacos", "curricularface", "adaface"]
  + ["elasticface", "uniface"],
)
def test_losses_train_and_remember_the_same_on_every_mesh(word):
  changes = {f"head.{k}": v for k, v in PUBLISHED[word].items()}
  config = tiny_config(**changes | {"head.scale": 16.0})
  got, metrics = run_steps(config, sharding.make_mesh(4))
  want, want_metrics = run_steps(config, sharding.make_mesh(1))
  assert_close(got, want)
  assert_close(metrics, want_metrics)
  start = make_loss(config.head).start(10)
  assert set(got.running) == set(start)
  for name, first in start.items():
    assert got.running[name] != first
    assert f"train/loss_{name}" in metrics
  assert np.isfinite(metrics["train/loss"])


# Losses that remember or draw, and one that does neither.
ACCUMULATED = {
  "curricularface": {},
  "adaface": {},
  "adacos": {},
  "sphereface": {},
  "elasticface": {},
  "arcface": {"head.fused_update": False},
  "jamsface": {"head.sample_rate": 0.5},
}
# Meshes and micro-batches: one of all losses, on both axes, and others of those
# that draw: by classes, and by examples.
LAYOUT = (4, 2)
MORE_LAYOUTS = {
  "jamsface": ((1, 2), (1, 4), (4, 4), (8, 2), (8, 4)),
  "elasticface": ((8, 4),),
}
FAST = (("curricularface", 4, 2), ("elasticface", 8, 4))


@pytest.fixture(scope="module")
def large_batches(one_device):
  """Two steps of the whole batch on one device, by loss, run once."""
  return functools.cache(lambda word: run_steps(of_loss(word), one_device[0]))


def of_loss(word, **changes):
  """Batches are normalised in groups, which accumulation leaves whole."""
  published = {f"head.{k}": v for k, v in PUBLISHED[word].items()}
  changes = published | ACCUMULATED[word] | changes
  # In AdaFace's second step even 0.02 turns rounding into a flip.
  changes |= {"optimizer.learning_rate": 0.005, "head.scale": 16.0}
  return tiny_config(**changes | {"model.batch_norm_group": 8})


@pytest.mark.parametrize(
  ("word", "model", "parts"),
  [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in [
      (word, *layout)
      for word in ACCUMULATED
      for layout in (LAYOUT, *MORE_LAYOUTS.get(word, ()))
    ]
  ],
)
def test_accumulation_is_the_large_batch(word, model, parts, large_batches):
  """All state after two steps, on 8x1, 2x4 and 1x8 against one device."""
  config = of_loss(word, **{"optimizer.accumulation": parts})
  got, metrics = run_steps(config, sharding.make_mesh(model))
  want, want_metrics = large_batches(word)
  assert_close(got, want)
  assert_close(metrics, want_metrics)
  for name, first in make_loss(config.head).start(10).items():
    assert abs(float(got.running[name]) - first) > 1e-4


def test_micro_batches_do_not_depend_on_the_mesh():
  """Without groups too, where the statistics are each micro-batch's own."""
  changes = {"optimizer.accumulation": 2}
  one, two = (
    run_steps(tiny_config(**changes), sharding.make_mesh(model, devices))
    for model, devices in ((1, jax.devices()[:1]), (8, None))
  )
  assert_close(two, one)


@pytest.mark.parametrize(
  "model", [4, pytest.param(8, marks=pytest.mark.slow)], ids=["2x4", "1x8"]
)
def test_lars_knows_the_norm_of_all_shards(model, one_device):
  """By hand, of all class weights in float64; and the same on one device."""
  mesh = sharding.make_mesh(model)  # On 8x1 there is one shard.
  config = tiny_config(
    **{"optimizer.name": "lars", "optimizer.learning_rate": 20.0},
    **{"head.fused_update": False, "model.batch_norm_group": 8},
  )
  want, _ = run_steps(config, one_device[0])
  got, _ = run_steps(config, mesh)
  assert_close(got, want)
  weights = np.asarray(first_values(config).params["head"]["weights"], float)
  once, _ = run_steps(config, mesh, steps=1)
  moved = np.linalg.norm(once.params["head"]["weights"] - weights)
  rate = 20 * 32 / config.optimizer.reference_batch
  np.testing.assert_allclose(
    moved, rate * 0.001 * np.linalg.norm(weights), rtol=1e-4
  )


@pytest.mark.parametrize("block", [1, 2])
def test_micro_batches_share_every_device(mesh, block):
  """The same on every mesh, from neighbours that no device parts with."""
  array = jax.device_put(
    np.arange(64).reshape(32, 2),
    jax.sharding.NamedSharding(mesh, sharding.BATCH),
  )
  parts = jax.jit(lambda a: sharding.split_batch(a, 2, block, mesh))(array)
  assert parts.shape == (2, 16, 2)
  rows = np.asarray(parts)[..., 0] // 2
  assert list(rows[0]) == [k for k in range(32) if k // block % 2 == 0]
  assert list(rows[1]) == [k for k in range(32) if k // block % 2 == 1]
  for shard in parts.addressable_shards:
    held = {int(r) // 2 for r in np.ravel(np.asarray(shard.data)[..., 0])}
    original = next(
      s for s in array.addressable_shards if s.device == shard.device
    )
    assert held == {int(r) // 2 for r in np.asarray(original.data)[:, 0]}
  again = jax.jit(lambda a: sharding.join_batch(a, block, mesh))(parts)
  np.testing.assert_array_equal(again, array)
  assert again.sharding.is_equivalent_to(array.sharding, 2)


def test_frozen_margins_leave_the_margins_alone(one_device):
  mesh, _ = one_device
  config = tiny_config(
    **{"head.learn_angular": False, "head.learn_cosine": False}
  )
  got, _ = run_steps(config, mesh)
  np.testing.assert_array_equal(
    got.params["head"][head_lib.ANGULAR][:10], np.float32(0.3)
  )


def test_lambda_pushes_margins_up(one_device):
  mesh, _ = one_device
  config = tiny_config(
    **{
      "head.margin_rule": "lambda",
      "head.angular_lambda": 1e6,
      "head.cosine_lambda": 0.0,
    }
  )
  got, metrics = run_steps(config, mesh)
  np.testing.assert_allclose(got.params["head"][head_lib.ANGULAR][:10], 0.8)
  assert metrics["train/loss"] < metrics["train/cross_entropy"] - 1000


def test_optimizer_state_is_sharded_as_its_parameter(mesh):
  components = make_components(tiny_config(), 10, 64)
  created = state.create_state(0, components, SIZE, mesh)
  model = mesh.shape["model"]
  momenta = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(created.opt_state)
    if "weights" in jax.tree_util.keystr(path) and leaf.ndim
  ]
  assert len(momenta) == 1
  for array in (created.params["head"]["weights"], *momenta):
    assert array.shape == (64, 32)
    shapes = {s.data.shape for s in array.addressable_shards}
    assert shapes == {(64 // model, 32)}
  for leaf in jax.tree.leaves(created.params["backbone"]):
    assert leaf.sharding.is_fully_replicated


def test_dropout_is_keyed_by_step(one_device):
  mesh, _ = one_device
  config = tiny_config(**{"model.dropout": 0.5})
  first, _ = run_steps(config, mesh)
  second, _ = run_steps(config, mesh)
  assert_close(first, second, rtol=0, atol=0)
  assert jnp.isfinite(first.params["head"]["weights"]).all()


@pytest.mark.parametrize("augments", [True, False])
def test_augmentation_is_keyed_by_step(one_device, augments):
  """Two steps on one batch that change nothing: only the flips differ."""
  mesh, _ = one_device
  config = tiny_config(
    **{
      "optimizer.learning_rate": 1e-30,
      "augment.flip": augments,
      "augment.shift": 0,
    }
  )
  components = make_components(config, 10, 64)
  current = first_state(config, mesh)
  step_fn = sharding.in_turn(make_train_step(config, components, mesh), mesh)
  images, labels = NoiseSource(10, 64, SIZE).read(np.arange(32))
  batch = {"images": images, "labels": labels}
  losses = []
  for _ in range(2):
    placed = sharding.put_batch(batch, np.arange(32), 32, mesh)
    current, metrics = step_fn(current, placed, seed_key(0))
    losses.append(float(metrics["train/loss"]))
  assert (losses[0] != losses[1]) == augments


@pytest.mark.parametrize("word", ["jamsface", "kappaface"])
def test_is_compiled_once(one_device, word):
  """The first state and those that steps return are of one type."""
  mesh, _ = one_device
  config = tiny_config(**{f"head.{k}": v for k, v in PUBLISHED[word].items()})
  components = make_components(config, 10, 64)
  created = state.create_state(0, components, SIZE, mesh)
  step_fn = make_train_step(config, components, mesh)
  images, labels = NoiseSource(10, 64, SIZE).read(np.arange(32))
  batch = sharding.put_batch(
    {"images": images, "labels": labels}, np.arange(32), 32, mesh
  )
  after = jax.eval_shape(step_fn, created, batch, seed_key(0))[0]
  types = jax.tree.map(jax.typeof, created)
  assert jax.tree.map(jax.typeof, after) == types
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(created))
  ended = make_end_pass(config, components, mesh)(created)
  assert jax.tree.map(jax.typeof, ended) == types


@pytest.mark.parametrize(
  ("model", "clip_norm"),
  [
    (4, 0.5),
    pytest.param(4, 0.0, marks=pytest.mark.slow),
    pytest.param(8, 0.5, marks=pytest.mark.slow),
    pytest.param(1, 0.5, marks=pytest.mark.slow),
  ],
)
def test_fused_update_is_the_plain_one(model, clip_norm):
  mesh = sharding.make_mesh(model)
  changes = {"head.clip_norm": clip_norm, "head.chunk_classes": 3}
  fused, fused_metrics = run_steps(tiny_config(**changes), mesh)
  changes["head.fused_update"] = False
  plain, plain_metrics = run_steps(tiny_config(**changes), mesh)
  assert_close(fused, plain, rtol=1e-4, atol=1e-5)
  assert_close(fused_metrics, plain_metrics, rtol=1e-4)


@pytest.mark.slow
def test_sample_rate_1_is_the_exact_head_and_less_is_not(one_device):
  mesh, _ = one_device
  exact, whole, some = (
    run_steps(tiny_config(**changes), mesh, classes=60)[0]
    for changes in (
      {},
      {"head.sample_rate": 1.0, "head.weigh_sample": True},
      {"head.sample_rate": 0.2},
    )
  )
  assert_close(whole, exact, rtol=0, atol=0)
  difference = some.params["head"]["weights"] - exact.params["head"]["weights"]
  assert np.abs(difference).max() > 1e-6


def test_a_sampled_step_does_not_depend_on_the_mesh(mesh, one_device):
  config = tiny_config(**{"head.sample_rate": 0.3, "head.sub_centers": 2})
  want, want_metrics = run_steps(config, one_device[0], classes=60)
  got, metrics = run_steps(config, mesh, classes=60)
  assert_close(got, want)
  assert_close(metrics, want_metrics)


@pytest.mark.parametrize(
  "changes",
  [{}, {"head.fused_update": False}, CONCENTRATION],
  ids=["fused", "plain", "concentration"],
)
def test_a_step_that_is_not_finite_is_counted_and_changes_nothing(changes):
  mesh = sharding.make_mesh(4)
  config = tiny_config(**changes)
  components = make_components(config, 10, 64)
  first = state.create_state(0, components, SIZE, mesh)
  bias = first.params["backbone"]["embedding_bn"]["bias"]
  first.params["backbone"]["embedding_bn"]["bias"] = bias * jnp.nan
  before = jax.device_get(first)
  step_fn = sharding.in_turn(make_train_step(config, components, mesh), mesh)
  images, labels = NoiseSource(10, 64, SIZE).read(np.arange(32))
  batch = {"images": images, "labels": labels}
  current = first
  for _ in range(2):
    placed = sharding.put_batch(batch, sharding.local_rows(32, mesh), 32, mesh)
    current, metrics = step_fn(current, placed, seed_key(0))
  after = jax.device_get(current)
  assert after.step == 2
  assert list(after.rejected) == [2, 2]
  assert metrics["train/rejected_steps"] == 2
  assert not np.isfinite(metrics["train/loss"])
  for part in ("params", "batch_stats", "opt_state", "seen"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, part), getattr(before, part)
    )
  # A step that is accepted ends the row, but not the count.
  current.params["backbone"]["embedding_bn"]["bias"] = jnp.zeros_like(bias)
  placed = sharding.put_batch(batch, sharding.local_rows(32, mesh), 32, mesh)
  current, metrics = step_fn(current, placed, seed_key(0))
  assert list(jax.device_get(current.rejected)) == [2, 0]
  assert metrics["train/rejected_in_a_row"] == 0


def test_a_gradient_that_is_not_finite_rejects_the_step_too(monkeypatch):
  """Loss and class weights are finite; the backbone's gradient is not."""
  mesh = sharding.make_mesh(4)
  config = tiny_config()
  components = make_components(config, 10, 64)
  first = state.create_state(0, components, SIZE, mesh)
  before = jax.device_get(first)
  loss = step_lib.head_lib.loss

  def overflowing(*args, **settings):
    result = loss(*args, **settings)
    return result._replace(
      embedding_gradient=result.embedding_gradient * jnp.inf
    )

  monkeypatch.setattr(step_lib.head_lib, "loss", overflowing)
  images, labels = NoiseSource(10, 64, SIZE).read(np.arange(32))
  batch = {"images": images, "labels": labels}
  placed = sharding.put_batch(batch, sharding.local_rows(32, mesh), 32, mesh)
  step_fn = sharding.in_turn(make_train_step(config, components, mesh), mesh)
  after, metrics = jax.device_get(step_fn(first, placed, seed_key(0)))
  assert np.isfinite(metrics["train/loss"])
  assert list(after.rejected) == [1, 1]
  for part in ("params", "batch_stats", "opt_state"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, part), getattr(before, part)
    )


def test_a_step_that_counts_images_does_not_depend_on_the_mesh(
  mesh, one_device
):
  config = tiny_config(
    **{"head.count_power": 3.0, "head.margin_rate": 5.0},
    **{"head.logit_adjustment": 1.0, "head.sample_rate": 0.5},
  )
  want, want_metrics = run_steps(config, one_device[0])
  got, metrics = run_steps(config, mesh)
  assert_close(got, want)
  assert_close(metrics, want_metrics)
  sizes = np.bincount(NoiseSource(10, 64, SIZE).labels(), minlength=10)
  kept = np.asarray(got.params["head"][head_lib.CLASS_SIZES])
  np.testing.assert_array_equal(kept[:10], sizes)
  weights = sizes**3 / np.mean(sizes**3)
  for name, mean in ((head_lib.ANGULAR, 0.3), (head_lib.COSINE, 0.2)):
    margins = np.asarray(got.params["head"][name])[:10]
    assert np.ptp(margins) > 1e-3
    assert np.mean(weights * margins) == pytest.approx(mean, abs=1e-5)


def test_the_strength_of_the_reward_follows_its_schedule():
  """Of classes that no batch has, the margins are moved by it alone."""
  config = tiny_config(
    **{
      "head.margin_rule": "lambda",
      "head.angular_lambda": 5.0,
      "head.cosine_lambda": 2.0,
      "head.lambda_end": 3.0,
      "schedule.decay": "constant",
    }
  )
  rate = config.head.margin_rate * 0.02 * 32 / config.optimizer.reference_batch
  now, metrics = run_steps(config, sharding.make_mesh(4), steps=3, classes=200)
  factors = np.array([1.0, 1.4, 1.8])  # Of 5 steps, to 3.
  absent = np.setdiff1d(np.arange(200), NoiseSource(200, 64, SIZE).labels())
  assert len(absent) > 100
  for name, first, strength in (
    (head_lib.ANGULAR, 0.3, 5.0),
    (head_lib.COSINE, 0.2, 2.0),
  ):
    moved = np.asarray(now.params["head"][name], np.float64)[absent] - first
    np.testing.assert_allclose(
      moved, rate * factors.sum() * strength / 200, rtol=2e-2
    )
  reward = metrics["train/cross_entropy"] - metrics["train/loss"]
  assert reward == pytest.approx(1.8 * (5 * 0.3 + 2 * 0.2), rel=1e-3)


def test_misses_by_class_size():
  """Sums over powers of two, against one after the other in float64."""
  rng = np.random.default_rng(0)
  sizes = np.array([1, 2, 3, 4, 7, 8, 1023, 1024, 2**24, 2**25 + 9, 2**30])
  sizes = np.concatenate([sizes, rng.integers(1, 300, 50)]).astype(np.int32)
  losses = rng.exponential(0.5, len(sizes)).astype(np.float32)
  losses[0] = 1e-6  # 1 - exp would round to nothing.
  found = np.asarray(jax.jit(misses_by_size)(losses, sizes))
  want = np.zeros((25, 2))
  for loss, size in zip(losses.astype(float), sizes.tolist(), strict=True):
    want[min(size.bit_length() - 1, 24)] += -np.expm1(-loss), 1
  np.testing.assert_allclose(found, want, rtol=1e-6)


def test_seeds_are_one_program():
  mesh = sharding.make_mesh(1)
  texts = []
  for seed in (0, 7):
    config = tiny_config(seed=seed)
    components = make_components(config, 10, 64)
    shapes = state.state_shapes(components, SIZE, mesh)
    batch = {
      "images": jax.ShapeDtypeStruct((32, SIZE, SIZE, 3), jnp.uint8),
      "labels": jax.ShapeDtypeStruct((32,), jnp.int32),
      "sizes": jax.ShapeDtypeStruct((32,), jnp.int32),
    }
    step = make_train_step(config, components, mesh)
    texts.append(step.lower(shapes, batch, seed_key(seed)).as_text())
  assert texts[0] == texts[1]


def test_seeds_and_steps_draw_otherwise():
  config = tiny_config(**{"augment.flip": True, "augment.shift": 2})
  mesh = sharding.make_mesh(1)
  components = make_components(config, 10, 64)
  source = NoiseSource(10, 64, SIZE)
  images, labels = source.read(np.arange(32))
  batch = {"images": images, "labels": labels}
  step_fn = sharding.in_turn(make_train_step(config, components, mesh), mesh)
  losses = []
  for seed, taken in ((0, 0), (0, 0), (7, 0), (0, 1)):
    first = first_state(config, mesh)
    first = dataclasses.replace(first, step=first.step + taken)
    placed = sharding.put_batch(batch, np.arange(32), 32, mesh)
    _, metrics = step_fn(first, placed, seed_key(seed))
    losses.append(float(metrics["train/loss"]))
  assert losses[0] == losses[1]
  assert len({*losses}) == 3  # Another seed, another step: other draws.


def embeddings_by_hand(config, images):
  """Those of a first step that augments nothing, of all images at once."""
  components = make_components(config, 10, 64)
  first = state.create_state(
    0,
    components,
    SIZE,
    sharding.make_mesh(1, jax.devices()[:1]),
    np.ones(10, int),
  )
  embeddings, _ = components.model.apply(
    {"params": first.params["backbone"], "batch_stats": first.batch_stats},
    normalize(images),
    train=True,
    mutable=["batch_stats"],
  )
  x = np.asarray(embeddings, np.float64)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"optimizer.accumulation": 2},
    {"head.sample_rate": 0.5, "head.sub_centers": 2},
    pytest.param({"head.fused_update": False}, marks=pytest.mark.slow),
  ],
  ids=["whole", "micro", "sampled", "plain"],
)
def test_what_a_pass_has_seen(mesh, changes):
  """Of all micro-batches and all classes, sampled or not; then forgotten."""
  still = {"augment.flip": False, "augment.shift": 0}
  config = tiny_config(
    **CONCENTRATION | still | changes, **{"model.batch_norm_group": 8}
  )
  images, labels = NoiseSource(10, 64, SIZE).read(np.arange(32))
  got, _ = run_steps(config, mesh, steps=1)
  sums = np.zeros((64, 32))
  np.add.at(sums, labels, embeddings_by_hand(config, images))
  seen = got.seen["head"]
  np.testing.assert_allclose(seen[concentration.SUMS], sums, atol=2e-4)
  counts = np.bincount(labels, minlength=64)
  np.testing.assert_array_equal(seen[concentration.COUNTS], counts)
  for name, mean in ((head_lib.ANGULAR, 0.3), (head_lib.COSINE, 0.2)):
    before = got.params["head"][name][:10]
    np.testing.assert_array_equal(before, np.float32(mean))
  components = make_components(config, 10, 64)
  shapes = state.state_shapes(components, SIZE, mesh)
  placed = jax.tree.map(
    lambda value, shape: jax.device_put(value, shape.sharding), got, shapes
  )
  after = make_end_pass(config, components, mesh)(placed)
  for leaf, shape in zip(
    jax.tree.leaves(after), jax.tree.leaves(shapes), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
  assert not np.any(after.seen["head"][concentration.SUMS])
  for name, mean in ((head_lib.ANGULAR, 0.3), (head_lib.COSINE, 0.2)):
    margins = np.asarray(after.params["head"][name])
    assert np.mean(margins[:10]) == pytest.approx(mean, abs=1e-6)
    assert np.ptp(margins[:10]) > 1e-3 and not np.any(margins[10:])
  for part in ("backbone", "weights"):
    before = got.params.get(part, got.params["head"].get(part))
    now = after.params.get(part, after.params["head"].get(part))
    assert_close(now, before, rtol=0, atol=0)
