"""The parameters of the head and the rules of its margins."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads import SIZE, make_head, make_margin, put, random_inputs
from jax.sharding import NamedSharding

from jamsface_jax import head as head_lib
from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.head import parameters
from jamsface_jax.head.optimizer import of_margins_and_scalars


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_first_values_are_the_same_on_every_mesh(
  mesh, monkeypatch, rows_at_once
):
  monkeypatch.setattr(parameters, "_ROWS_AT_ONCE", rows_at_once)
  head = make_head(sub_centers=2, learn_scale=True)
  key = jax.random.key(3)
  got = jax.jit(partial(head_lib.init, head=head, mesh=mesh))(key)
  by_class = NamedSharding(mesh, sharding.CLASSES)
  assert got[head_lib.WEIGHTS].sharding.is_equivalent_to(by_class, 2)
  rows = [
    jax.random.normal(jax.random.fold_in(key, row), (SIZE,))
    for row in range(2 * 37)
  ]
  want = np.zeros((80, SIZE), np.float32)
  want[:74] = 0.01 * np.stack(rows)
  np.testing.assert_allclose(got[head_lib.WEIGHTS], want, rtol=1e-6, atol=0)
  real = np.arange(40) < 37
  np.testing.assert_allclose(got[head_lib.ANGULAR], 0.3 * real)
  np.testing.assert_allclose(got[head_lib.COSINE], 0.2 * real)
  np.testing.assert_allclose(got[head_lib.LOG_SCALE], np.log(8.0))


@pytest.mark.parametrize("learned", [False, True])
def test_first_margins_fall_with_the_class_as_ldam_s(mesh, learned):
  sizes = np.random.default_rng(0).integers(3, 500, 37)
  sizes[5] = 2
  head = make_head(
    angular=make_margin(0.0, learned=False),
    cosine=make_margin(0.5, 0.6, power=0.25, learned=learned),
  )
  got = jax.jit(
    lambda key: head_lib.init(key, head, mesh, sizes)[head_lib.COSINE]
  )(jax.random.key(0))
  want = np.zeros(40)
  want[:37] = 1 / sizes**0.25
  np.testing.assert_allclose(got, want * 0.5 / want.max(), rtol=1e-6)


def test_first_values_need_little_more_memory_than_they_take():
  mesh = sharding.make_mesh(-1)
  head = make_head(classes=1_000_000, multiple=8)
  init = jax.jit(partial(head_lib.init, head=head, mesh=mesh))
  memory = init.lower(jax.random.key(0)).compile().memory_analysis()
  shard = 4 * SIZE * 1_000_000 // 8
  assert memory.output_size_in_bytes >= shard
  assert memory.temp_size_in_bytes < 0.5 * shard


def test_frozen_margins_do_not_move():
  head = make_head(
    angular=make_margin(0.3, learned=False),
    cosine=make_margin(0.2, learned=False),
  )
  params = head_lib.init(jax.random.key(0), head, sharding.make_mesh(1))
  got = head_lib.constrain(params, head)
  assert all(got[k] is params[k] for k in params)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_hold_mean_is_the_projection(mesh, seed, power):
  rng = np.random.default_rng(seed)
  head = make_head(classes=101, multiple=64)
  lower = 0.1 * (seed == 2)
  margin = make_margin([0.3, 0.02, 0.75, 0.0, 0.8][seed], 0.8, lower=lower)
  m_c = np.zeros(head.padded_classes)
  m_c[:101] = rng.normal(0.3, 0.5, 101)
  w_c = np.zeros(head.padded_classes)
  w_c[:101] = rng.integers(2, 300, 101) ** power
  w_c /= w_c[:101].mean()
  by_class = NamedSharding(mesh, sharding.CLASSES)
  weights = jax.device_put(w_c.astype(np.float32), by_class)
  got = jax.jit(partial(head_lib.hold_mean, head=head, margin=margin))(
    jax.device_put(m_c.astype(np.float32), by_class),
    weights if power else jnp.float32(1.0),
  )
  got = np.asarray(got, np.float64)
  m_c, w_c = m_c[:101], w_c[:101]
  assert np.all(got[101:] == 0)
  assert abs((w_c * got[:101]).mean() - margin.initial) < 2e-6

  # Oracle: a multiplier found by 100 bisections in float64.
  def shifted(t):
    return np.clip(m_c + t * w_c, lower, 0.8)

  low, high = -10 / w_c.min(), 10 / w_c.min()
  for _ in range(100):
    t = (low + high) / 2
    below = (w_c * shifted(t)).mean() < margin.initial
    low, high = (t, high) if below else (low, t)
  np.testing.assert_allclose(w_c * got[:101], w_c * shifted(high), atol=1e-4)


def test_learned_margins_stay_in_their_box_under_rough_steps():
  for rule in ("mean", "lambda"):
    margin = make_margin(0.3, 0.8, rule=rule, strength=1.0, lower=0.05)
    head = make_head(angular=margin)
    params = head_lib.init(jax.random.key(0), head, sharding.make_mesh(1))
    constrain = jax.jit(partial(head_lib.constrain, head=head))
    rng = np.random.default_rng(0)
    for _ in range(50):
      step = jnp.asarray(rng.normal(0.1, 3.0, head.padded_classes), jnp.float32)
      params = constrain(
        params | {head_lib.ANGULAR: params[head_lib.ANGULAR] + step}
      )
      values = np.asarray(params[head_lib.ANGULAR])
      real = values[:37]
      assert np.all(values[37:] == 0)
      assert real.min() >= np.float32(0.05) and real.max() <= 0.8
      if rule == "mean":
        assert abs(real.mean() - 0.3) < 1e-5


def test_reward_is_lambda_times_the_mean_of_real_classes(mesh):
  head = make_head(
    angular=make_margin(0.3, 0.8, rule="lambda", strength=5.0),
    cosine=make_margin(0.2, 0.6, rule="lambda", strength=2.0),
  )
  params, embeddings, labels = random_inputs(head, 8)
  sharded, _, _ = put(mesh, params, embeddings, labels)
  value, grads = jax.jit(
    jax.value_and_grad(partial(head_lib.margin_reward, head=head))
  )(sharded, labels)
  a, c = params[head_lib.ANGULAR][:37], params[head_lib.COSINE][:37]
  np.testing.assert_allclose(value, 5 * a.mean() + 2 * c.mean(), rtol=1e-6)
  want = np.where(np.arange(40) < 37, 5 / 37, 0)
  np.testing.assert_allclose(grads[head_lib.ANGULAR], want, rtol=1e-6)
  held = make_head()
  assert head_lib.margin_reward(sharded, jnp.asarray(labels), held) == 0


def test_classes_count_in_both_means_by_a_power_of_their_images(mesh):
  sizes = np.random.default_rng(0).integers(2, 500, 37)
  head = make_head(
    angular=make_margin(0.3, 0.8, rule="lambda", strength=5.0),
    cosine=make_margin(0.2, 0.6),
    count_power=0.75,
  )
  init = partial(head_lib.init, head=head, mesh=mesh, class_sizes=sizes)
  params = jax.jit(init)(jax.random.key(0))
  want = sizes**0.75 / np.mean(sizes**0.75)
  np.testing.assert_array_equal(
    params[head_lib.CLASS_SIZES], np.pad(sizes, (0, 3))
  )
  rng = np.random.default_rng(1)
  for name in (head_lib.ANGULAR, head_lib.COSINE):
    step = jnp.asarray(rng.normal(0.0, 0.05, 40), jnp.float32)
    params[name] = params[name] + step
  a = np.asarray(params[head_lib.ANGULAR], np.float64)[:37]
  reward = jax.jit(
    jax.value_and_grad(
      lambda p: head_lib.margin_reward(p, jnp.zeros(8, int), head)
    )
  )
  value, gradients = reward(params)
  np.testing.assert_allclose(value, 5 * np.mean(want * a), rtol=1e-6)
  np.testing.assert_allclose(
    gradients[head_lib.ANGULAR], np.pad(5 / 37 * want, (0, 3)), rtol=1e-6
  )
  assert not np.any(gradients[head_lib.CLASS_SIZES])
  kept = jax.jit(partial(head_lib.constrain, head=head))(params)
  c = np.asarray(kept[head_lib.COSINE], np.float64)[:37]
  assert np.mean(want * c) == pytest.approx(0.2, abs=1e-6)
  assert abs(np.mean(c) - 0.2) > 1e-4  # Another mean than the plain one.


def test_reward_over_the_batch_counts_images(mesh):
  margin = make_margin(0.3, rule="lambda", strength=5.0, rewarded="batch")
  head = make_head(angular=margin)
  params, embeddings, _ = random_inputs(head, 8)
  labels = np.array([3, 3, 3, 0, 36, 36, 7, 3])
  sharded, _, labels_b = put(mesh, params, embeddings, labels)
  value, grads = jax.jit(
    jax.value_and_grad(partial(head_lib.margin_reward, head=head))
  )(sharded, labels_b)
  want = 5 * params[head_lib.ANGULAR][labels].mean()
  np.testing.assert_allclose(value, want, rtol=1e-6)
  images = np.bincount(labels, minlength=head.padded_classes)
  np.testing.assert_allclose(grads[head_lib.ANGULAR], 5 / 8 * images, rtol=1e-6)


def test_statistics_count_classes_at_their_bounds():
  head = make_head(
    angular=make_margin(0.3, 0.8, lower=0.1),
    cosine=make_margin(0.2, learned=False),
  )
  a = np.zeros(head.padded_classes, np.float32)
  a[:37] = np.linspace(0.15, 0.7, 37)
  a[4:9], a[20:22] = 0.1, 0.8
  params = {
    head_lib.ANGULAR: jnp.asarray(a),
    head_lib.COSINE: jnp.full_like(a, 0.2),
  }
  found = head_lib.margin_statistics(params, head)
  assert found["margin_angular_at_lower"] == pytest.approx(5 / 37)
  assert found["margin_angular_at_upper"] == pytest.approx(2 / 37)
  assert found["margin_angular_mean"] == pytest.approx(a.sum() / 37)
  assert "margin_cosine_at_lower" not in found


def test_state_is_split_by_class_and_the_rest_replicated(mesh):
  head = make_head()
  shapes = jax.eval_shape(
    lambda key: {"head": head_lib.init(key, head, mesh), "other": jnp.zeros(3)},
    jax.random.key(0),
  )
  specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(shapes, mesh))
  assert set(specs["head"].values()) == {sharding.CLASSES}
  assert specs["other"] == sharding.REPLICATED


def test_mesh_that_does_not_divide_is_refused():
  with pytest.raises(InputError, match="mesh.model=3 does not divide the 8"):
    sharding.make_mesh(3)
  with pytest.raises(InputError, match="head.class_multiple"):
    head_lib.check_mesh(make_head(multiple=3), sharding.make_mesh(8))


def sizes_with_ties(rng):
  return np.concatenate([rng.integers(1, 40, 90), [500] * 3, [501, 77, 530]])


def learned_margins(head, mesh, sizes, moved):
  """Parameters of 96 classes whose angular margins have moved, constrained."""
  init = partial(head_lib.init, head=head, mesh=mesh, class_sizes=sizes)
  params = jax.jit(init)(jax.random.key(0))
  a_c = np.pad(moved, (0, 32)).astype(np.float32)
  by_class = NamedSharding(mesh, sharding.CLASSES)
  params[head_lib.ANGULAR] = jax.device_put(a_c, by_class)
  kept = jax.jit(partial(head_lib.constrain, head=head))(params)
  got = np.asarray(kept[head_lib.ANGULAR], np.float64)
  assert np.all(got[96:] == 0)
  return got[:96]


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_mean_of_images_is_held_by_the_same_gifts(mesh, power):
  """Held is a mean that counts images; what a class gives for it is not."""
  rng = np.random.default_rng(3)
  sizes, moved = sizes_with_ties(rng), rng.normal(0.3, 0.2, 96)
  head = make_head(
    classes=96,
    multiple=64,
    angular=make_margin(0.15, 0.8, lower=0.05),
    cosine=make_margin(0.2, learned=False),
    held="images",
    count_power=power,
  )
  got = learned_margins(head, mesh, sizes, moved)
  assert np.average(got, weights=sizes) == pytest.approx(0.15, abs=1e-6)
  # One number, times what a class gives, was added to all that are free.
  free = (got > 0.0501) & (got < 0.7999)
  assert 10 < free.sum() < 96
  added = (got - moved)[free] / sizes[free] ** power
  np.testing.assert_allclose(added, added[0], atol=1e-5)


def test_the_mean_of_each_size_is_held(mesh):
  rng = np.random.default_rng(4)
  sizes, moved = sizes_with_ties(rng), rng.normal(0.4, 0.2, 96)
  head = make_head(
    classes=96,
    multiple=64,
    angular=make_margin(0.3, 0.8, lower=0.05),
    cosine=make_margin(0.2, learned=False),
    held="sizes",
  )
  got = learned_margins(head, mesh, sizes, moved)
  # One by one up to 16 images; then eight groups to a doubling.
  group = np.where(
    sizes <= 16, sizes, 16 + np.floor(8 * np.log2(sizes / 16) + 1e-4)
  )
  alone = 0
  for number in np.unique(group):
    mine = group == number
    assert got[mine].mean() == pytest.approx(0.3, abs=1e-5)
    alone += mine.sum() == 1
    free = mine & (got > 0.0501) & (got < 0.7999)
    added = (got - moved)[free]
    np.testing.assert_allclose(added, added[:1].repeat(free.sum()), atol=1e-5)
  assert alone > 3 and got.std() > 0.05
  assert got[sizes == 500].mean() != pytest.approx(0.3, abs=1e-3)  # With 501.


def test_gradients_that_count_images_less(mesh):
  """Divided by images over their mean, to a power; other leaves stay."""
  sizes = np.random.default_rng(0).integers(1, 500, 37)
  head = make_head(
    angular=make_margin(0.3, 0.8, rule="lambda"),
    cosine=make_margin(0.2, learned=False),
    gradient_power=0.5,
  )
  init = partial(head_lib.init, head=head, mesh=mesh, class_sizes=sizes)
  params = head_lib.margins_and_scalars(jax.jit(init)(jax.random.key(0)))
  rng = np.random.default_rng(1)
  gradients = {
    name: jnp.asarray(rng.normal(size=40) * (np.arange(40) < 37), jnp.float32)
    for name in params
  }
  mover = of_margins_and_scalars(head, 0.1, bias=optax.sgd(1.0))
  steps, _ = jax.jit(mover.update)(gradients, mover.init(params), params)
  share = sizes / sizes.mean()
  want = -0.1 * np.asarray(gradients[head_lib.ANGULAR])[:37] / share**0.5
  got = np.asarray(steps[head_lib.ANGULAR])
  np.testing.assert_allclose(got[:37], want, rtol=1e-5)
  assert np.all(got[37:] == 0)
  assert not np.any(steps[head_lib.COSINE])
  assert not np.any(steps[head_lib.CLASS_SIZES])


@pytest.mark.parametrize("held", ["classes", "images"])
def test_first_margins_by_size_have_the_mean_that_is_held(held):
  sizes = np.array([1, 2, 4, 8, 16, 300])
  counts = sizes if held == "images" else np.ones(6)
  rising = make_margin(0.2, 0.8, learned=False, slope=0.1, lower=0.01)
  got = rising.first(sizes, held).astype(np.float64)
  assert np.average(got, weights=counts) == pytest.approx(0.2, abs=1e-6)
  np.testing.assert_allclose(np.diff(got[:5]), 0.02, rtol=1e-5)
  steep = make_margin(0.2, 0.25, learned=False, slope=-2.0, lower=0.15)
  got = steep.first(sizes, held).astype(np.float64)
  assert np.average(got, weights=counts) == pytest.approx(0.2, abs=1e-6)
  assert got.min() >= np.float32(0.15) and got.max() <= 0.25
  assert np.all(np.diff(got) <= 0)
  # Between 2 and 8 images a line in log n, level beyond.
  curve = make_margin(
    0.2, 0.8, learned=False, curve=((2.0, 0.5), (8.0, 0.1)), lower=-1.0
  )
  got = curve.first(sizes, held).astype(np.float64)
  assert np.average(got, weights=counts) == pytest.approx(0.2, abs=1e-6)
  np.testing.assert_allclose(
    got - got[0], [0, 0, -0.2, -0.4, -0.4, -0.4], atol=1e-6
  )


def test_shapes_of_margins_by_size_need_no_sizes():
  head = make_head(angular=make_margin(0.3, 0.8, slope=0.1), held="images")
  shapes = jax.eval_shape(
    lambda key: head_lib.init(key, head, sharding.make_mesh(8)),
    jax.random.key(0),
  )
  assert shapes[head_lib.ANGULAR].shape == (40,)
  assert shapes[head_lib.CLASS_SIZES].shape == (40,)
