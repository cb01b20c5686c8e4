"""The head against a dense float64 oracle on several meshes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from jamsface_jax import head as head_lib
from jamsface_jax import sharding
from jamsface_jax.errors import InputError

FROZEN = {"learned": False, "rule": "mean", "upper": 1.0, "strength": 0.0}


def make_head(classes=37, multiple=8, chunk=3, smooth=True, scale=8.0, **kw):
  settings = {
    "angular": head_lib.Margin(0.3, True, "mean", 0.8, 0.0),
    "cosine": head_lib.Margin(0.2, True, "mean", 0.6, 0.0),
    "product_dtype": "float32",
  } | kw
  return head_lib.Head(
    num_classes=classes,
    padded_classes=head_lib.pad_classes(classes, multiple),
    embedding_size=16,
    scale=scale,
    smooth=smooth,
    chunk_classes=chunk,
    **settings,
  )


def random_inputs(head, batch, seed=0):
  rng = np.random.default_rng(seed)
  params = {
    "weights": rng.normal(size=(head.padded_classes, head.embedding_size)),
    head_lib.ANGULAR: rng.uniform(0.0, 0.8, head.padded_classes),
    head_lib.COSINE: rng.uniform(0.0, 0.6, head.padded_classes),
  }
  labels = rng.integers(0, head.num_classes, batch)
  embeddings = rng.normal(size=(batch, head.embedding_size))
  # Some examples near their class, some opposite: both sides of the seam.
  sign = np.where(np.arange(batch) % 3 == 2, -6.0, 1.0)
  embeddings += sign[:, None] * params["weights"][labels]
  return params, embeddings, labels


def dense(params, embeddings, labels, head):
  """The definition with arccos and a full [B, N] softmax, in float64."""
  n = head.num_classes
  w = params["weights"][:n]
  x = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
  w = w / jnp.linalg.norm(w, axis=1, keepdims=True)
  cosine = x @ w.T
  hot = jax.nn.one_hot(labels, n, dtype=cosine.dtype)
  target = jnp.sum(cosine * hot, axis=1)
  a, c = params[head_lib.ANGULAR][labels], params[head_lib.COSINE][labels]
  theta = jnp.arccos(target)
  if head.smooth:
    beyond = -2 - jnp.cos(theta + a)
  else:
    beyond = jnp.cos(theta) - a * jnp.sin(a)
  phi = jnp.where(theta + a < jnp.pi, jnp.cos(theta + a), beyond) - c
  logits = head.scale * (cosine + hot * (phi - target)[:, None])
  return -jnp.sum(hot * jax.nn.log_softmax(logits), axis=1)


def put(mesh, params, embeddings, labels):
  classes = NamedSharding(mesh, sharding.CLASSES)
  batch = NamedSharding(mesh, sharding.BATCH)
  return (
    {
      k: jax.device_put(v.astype(np.float32), classes)
      for k, v in params.items()
    },
    jax.device_put(embeddings.astype(np.float32), batch),
    jax.device_put(labels.astype(np.int32), batch),
  )


def check(mesh, head, batch, rtol=2e-4, atol=2e-5, inputs=None):
  params, embeddings, labels = inputs or random_inputs(head, batch)
  weight_b = np.linspace(0.5, 1.5, batch)

  def sharded(params, embeddings, labels):
    loss_b, _ = head_lib.cross_entropy(
      params, embeddings, labels, head=head, mesh=mesh
    )
    return jnp.sum(loss_b * weight_b.astype(np.float32))

  def oracle(params, embeddings, labels):
    return jnp.sum(dense(params, embeddings, labels, head) * weight_b)

  got = jax.jit(jax.value_and_grad(sharded, argnums=(0, 1)))(
    *put(mesh, params, embeddings, labels)
  )
  with jax.enable_x64(True):
    want = jax.value_and_grad(oracle, argnums=(0, 1))(
      *jax.tree.map(jnp.asarray, (params, embeddings)), labels
    )
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, want
  )
  return got


@pytest.mark.parametrize("smooth", [True, False])
def test_loss_and_gradients_match_dense(mesh, smooth):
  (_, (param_grads, _)) = check(mesh, make_head(smooth=smooth), 24)
  for leaf in param_grads.values():  # Padding gets no gradient at all.
    assert np.all(np.asarray(leaf)[37:] == 0)
  assert np.count_nonzero(param_grads[head_lib.ANGULAR]) > 10


@pytest.mark.parametrize(
  ("classes", "multiple", "chunk", "batch"),
  [(37, 8, 100, 8), (101, 64, 5, 16), (8, 8, 1, 48), (9, 32, 2, 8)],
)
def test_any_class_count_chunk_and_batch(mesh, classes, multiple, chunk, batch):
  check(mesh, make_head(classes, multiple, chunk), batch)


@pytest.mark.parametrize("labels", ["equal", "distinct", "one shard"])
def test_any_labels(mesh, labels):
  head = make_head()
  params, embeddings, _ = random_inputs(head, 24)
  label_b = {
    "equal": np.full(24, 36),
    "distinct": np.arange(24),
    "one shard": np.arange(24) % 5,
  }[labels]
  check(mesh, head, 24, inputs=(params, embeddings, label_b))


def test_scale_64_stays_exact(mesh):
  check(mesh, make_head(scale=64.0), 24, rtol=2e-3, atol=2e-4)


def test_one_class_costs_nothing():
  mesh = sharding.make_mesh(8)
  head = make_head(classes=1)
  params, embeddings, labels = put(mesh, *random_inputs(head, 8))
  loss_b, _ = head_lib.cross_entropy(
    params, embeddings, labels, head=head, mesh=mesh
  )
  np.testing.assert_array_equal(loss_b, 0)


def test_bfloat16_product_is_close_and_margins_stay_float32(mesh):
  head = make_head(product_dtype="bfloat16")
  inputs = random_inputs(head, 24)
  exact = check(mesh, make_head(), 24, inputs=inputs)
  rough = check(mesh, head, 24, rtol=0.2, atol=0.03, inputs=inputs)
  assert exact[0] != rough[0]
  # The true class is computed apart, in float32: CE's slope in the margins
  # sees bfloat16 through the probabilities alone.
  np.testing.assert_allclose(
    rough[1][0][head_lib.ANGULAR],
    exact[1][0][head_lib.ANGULAR],
    rtol=0.05,
    atol=1e-3,
  )


@pytest.mark.parametrize(
  ("angular", "cosine", "published"),
  [
    (0.5, 0.0, lambda t: np.cos(t + 0.5)),  # ArcFace.
    (0.0, 0.35, lambda t: np.cos(t) - 0.35),  # CosFace.
    (0.3, 0.2, lambda t: np.cos(t + 0.3) - 0.2),  # Fixed joint margin.
    (0.0, 0.0, np.cos),  # Normalised softmax.
  ],
)
def test_frozen_margins_are_the_published_losses(
  mesh, angular, cosine, published
):
  head = make_head(
    angular=head_lib.Margin(initial=angular, **FROZEN),
    cosine=head_lib.Margin(initial=cosine, **FROZEN),
  )
  params = jax.tree.map(np.asarray, head_lib.init(jax.random.key(0), head))
  rng = np.random.default_rng(1)
  embeddings, labels = rng.normal(size=(16, 16)), rng.integers(0, 37, 16)
  embeddings[::2] += 200 * params["weights"][labels[::2]]  # Half are right.
  loss_b, right_b = head_lib.cross_entropy(
    *put(mesh, params, embeddings, labels), head=head, mesh=mesh
  )
  x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  w = params["weights"][:37].astype(np.float64)
  logits = x @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
  np.testing.assert_array_equal(right_b, logits.argmax(1) == labels)
  assert 4 < right_b.sum() < 12
  rows = np.arange(16)
  logits[rows, labels] = published(np.arccos(logits[rows, labels]))
  logits *= head.scale
  want = np.log(np.exp(logits).sum(1)) - logits[rows, labels]
  np.testing.assert_allclose(loss_b, want, rtol=2e-5)


def test_frozen_margins_do_not_move():
  head = make_head(
    angular=head_lib.Margin(initial=0.3, **FROZEN),
    cosine=head_lib.Margin(initial=0.2, **FROZEN),
  )
  params = head_lib.init(jax.random.key(0), head)
  got = head_lib.constrain(params, head)
  assert all(got[k] is params[k] for k in params)


@pytest.mark.parametrize("seed", range(5))
def test_hold_mean_is_the_projection(mesh, seed):
  rng = np.random.default_rng(seed)
  head = make_head(classes=101, multiple=64)
  margin = head_lib.Margin(
    [0.3, 0.02, 0.75, 0.0, 0.8][seed], True, "mean", 0.8, 0
  )
  m_c = np.zeros(head.padded_classes)
  m_c[:101] = rng.normal(0.3, 0.5, 101)
  got = jax.jit(partial(head_lib.hold_mean, head=head, margin=margin))(
    jax.device_put(
      m_c.astype(np.float32), NamedSharding(mesh, sharding.CLASSES)
    )
  )
  got = np.asarray(got, np.float64)
  assert np.all(got[101:] == 0)
  assert abs(got[:101].mean() - margin.initial) < 2e-6
  # Oracle: a shift found by 100 bisections in float64.
  low, high = -2.0 - m_c.max(), 2.0 - m_c.min()
  for _ in range(100):
    t = (low + high) / 2
    below = np.clip(m_c[:101] + t, 0, 0.8).mean() < margin.initial
    low, high = (t, high) if below else (low, t)
  np.testing.assert_allclose(
    got[:101], np.clip(m_c[:101] + high, 0, 0.8), atol=1e-4
  )


def test_learned_margins_stay_in_their_box_under_rough_steps():
  for rule in ("mean", "lambda"):
    head = make_head(angular=head_lib.Margin(0.3, True, rule, 0.8, 1.0))
    params = head_lib.init(jax.random.key(0), head)
    constrain = jax.jit(partial(head_lib.constrain, head=head))
    rng = np.random.default_rng(0)
    for _ in range(50):
      step = jnp.asarray(rng.normal(0.1, 3.0, head.padded_classes), jnp.float32)
      params = constrain(
        params | {head_lib.ANGULAR: params[head_lib.ANGULAR] + step}
      )
      real = np.asarray(params[head_lib.ANGULAR])[:37]
      assert real.min() >= 0 and real.max() <= 0.8
      if rule == "mean":
        assert abs(real.mean() - 0.3) < 1e-5


def test_reward_is_lambda_times_the_mean_of_real_classes(mesh):
  head = make_head(
    angular=head_lib.Margin(0.3, True, "lambda", 0.8, 5.0),
    cosine=head_lib.Margin(0.2, True, "lambda", 0.6, 2.0),
  )
  params, embeddings, labels = random_inputs(head, 8)
  sharded, _, _ = put(mesh, params, embeddings, labels)
  value, grads = jax.jit(
    jax.value_and_grad(partial(head_lib.margin_reward, head=head))
  )(sharded)
  a, c = params[head_lib.ANGULAR][:37], params[head_lib.COSINE][:37]
  np.testing.assert_allclose(value, 5 * a.mean() + 2 * c.mean(), rtol=1e-6)
  want = np.where(np.arange(40) < 37, 5 / 37, 0)
  np.testing.assert_allclose(grads[head_lib.ANGULAR], want, rtol=1e-6)
  held = make_head()
  assert head_lib.margin_reward(sharded, held) == 0


def test_fixed_point_gives_poor_classes_the_larger_margins():
  """At rest 1 - p_j = lambda N / (C n_j s): the margin falls with size."""
  mesh = jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  head = make_head(
    classes=8,
    scale=16.0,
    angular=head_lib.Margin(0.3, True, "mean", 1.0, 0.0),
    cosine=head_lib.Margin(initial=0.0, **FROZEN),
  )
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(8), [22, 14, 10, 7, 5, 3, 2, 1])
  params, _, _ = random_inputs(head, 8)
  params[head_lib.ANGULAR][:] = 0.3
  params[head_lib.COSINE][:] = 0.0
  embeddings = params["weights"][labels] + 0.4 * rng.normal(size=(64, 16))
  params, embeddings, labels = put(mesh, params, embeddings, labels)

  @jax.jit
  def step(params):
    def loss(params):
      return head_lib.cross_entropy(
        params, embeddings, labels, head=head, mesh=mesh
      )[0].mean()

    slope = jax.grad(loss)(params)[head_lib.ANGULAR]
    moved = params[head_lib.ANGULAR] - 0.05 * slope
    return head_lib.constrain(params | {head_lib.ANGULAR: moved}, head)

  for _ in range(400):
    params = step(params)
  margins = np.asarray(params[head_lib.ANGULAR])
  assert margins[0] < margins[3] < margins[7]


def test_compiled_step_holds_no_logits_and_only_the_listed_collectives(mesh):
  batch, classes, size = 48, 1000, 16
  head = make_head(classes, 512, chunk=32)
  inputs = put(mesh, *random_inputs(head, batch))

  def loss(params, embeddings, labels):
    return head_lib.cross_entropy(
      params, embeddings, labels, head=head, mesh=mesh
    )[0].sum()

  text = (
    jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    .lower(*inputs)
    .compile()
    .as_text()
  )
  data, model = mesh.shape["data"], mesh.shape["model"]
  local_batch, local_classes = batch // data, head.padded_classes // model
  shapes = {
    tuple(map(int, dims.split(",")))
    for dims in re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)
  }
  # No logits of all classes, nor of all classes of a shard.
  for rows in {batch, local_batch}:
    assert not shapes & {
      (rows, head.padded_classes),
      (head.padded_classes, rows),
      (rows, local_classes),
      (local_classes, rows),
    }
  if model > 1:  # Nobody holds the whole weight matrix.
    assert (head.padded_classes, size) not in shapes
  collectives = re.findall(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast)(?:-start)?\(",
    text,
  )
  moved = {
    (kind, tuple(map(int, filter(None, dims.split(",")))))
    for result, kind in collectives
    for dims in re.findall(r"[a-z]+\d+\[([\d,]*)\]", result)
  }
  expected = {
    ("all-gather", (local_batch, size)),  # Embeddings, along `model`.
    ("all-gather", (local_batch,)),  # Labels.
    ("all-reduce", (local_batch,)),  # Max.
    ("all-reduce", (3, local_batch)),  # Sum, margin logit, cosine.
    ("reduce-scatter", (batch // mesh.size, size)),  # Embedding gradients.
    ("all-reduce", (local_batch, size)),  # The same where XLA prefers it.
    ("all-reduce", (local_classes, size)),  # Weight gradients, over `data`.
    ("all-reduce", (local_classes,)),  # Margin gradients, over `data`.
    ("all-reduce", ()),  # The loss itself.
  }
  assert moved <= expected, moved - expected
  assert moved


def test_state_is_split_by_class_and_the_rest_replicated(mesh):
  head = make_head()
  shapes = jax.eval_shape(
    lambda key: {"head": head_lib.init(key, head), "other": jnp.zeros(3)},
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
