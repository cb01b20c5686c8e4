"""The sharded softmax and its gradients against a dense float64 oracle."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads import SIZE, dense, make_head, make_margin, put, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jamsface_jax import head as head_lib
from jamsface_jax.devices import sharding
from jamsface_jax.head import (
  ANGULAR,
  CLASS_SIZES,
  COSINE,
  LOG_SCALE,
  WEIGHTS,
  class_sampling,
)

START = {"loss_state": {}, "key": jax.random.key(7)}
SGD = optax.chain(
  optax.add_decayed_weights(0.01), optax.sgd(lambda step: 0.5, momentum=0.9)
)
ADAMW = optax.adamw(lambda step: 0.1, 0.8, 0.95, 1e-3, weight_decay=0.01)


def one_device():
  return jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )


def gradients_of(mesh, head, inputs):
  """Loss [B] and the gradients of its mean, as `jax.grad` would give them."""

  @jax.jit
  def run(params, embeddings, labels):
    loss = head_lib.loss(
      params, embeddings, labels, **START, head=head, mesh=mesh
    )
    weights = head_lib.weight_gradient(
      params, loss.residuals, head=head, mesh=mesh
    )
    gradients = {WEIGHTS: weights, **loss.margins_and_scalars_gradient}
    return loss.cross_entropy, (gradients, loss.embedding_gradient)

  return run(*put(mesh, *inputs))


def oracle_of(head, inputs, **options):
  def mean(params, embeddings, labels):
    loss_b = dense(params, embeddings, labels, head, **options)
    return loss_b.mean(), loss_b

  with jax.enable_x64(True):
    (_, loss_b), gradients = jax.value_and_grad(
      mean, argnums=(0, 1), has_aux=True
    )(*jax.tree.map(jnp.asarray, inputs[:2]), inputs[2])
    return jax.device_get((loss_b, gradients))


def assert_close(got, want, rtol=2e-4, atol=2e-6):
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, want
  )


def check(mesh, head, batch, inputs=None, **tolerance):
  inputs = inputs or random_inputs(head, batch)
  got = gradients_of(mesh, head, inputs)
  assert_close(got, oracle_of(head, inputs), **tolerance)
  return got


@pytest.mark.parametrize("smooth", [True, False])
def test_loss_and_gradients_match_dense(mesh, smooth):
  _, (gradients, _) = check(mesh, make_head(smooth=smooth), 24)
  for leaf in gradients.values():  # Padding gets no gradient at all.
    assert np.all(np.asarray(leaf)[37:] == 0)
  assert np.count_nonzero(gradients[ANGULAR]) > 10


@pytest.mark.parametrize(
  ("classes", "multiple", "chunk", "batch"),
  # Shards that no chunk divides, chunks larger than a shard, more examples
  # than classes, shards of padding alone.
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


@pytest.mark.parametrize(
  "changes",
  [
    {"sub_centers": 3},
    {"learn_scale": True},
    {"ignore_above": 0.3},
    {"keep_bytes": 1000},  # A part of them.
    {"keep_bytes": 10**6, "sub_centers": 2},
    {"sub_centers": 2, "learn_scale": True, "ignore_above": 0.4},
    {"logit_adjustment": 0.7},
    {"logit_adjustment": 1.0, "sub_centers": 2, "learn_scale": True},
  ],
  ids=str,
)
def test_variants_match_dense(mesh, changes):
  head = make_head(**changes)
  _, (gradients, _) = check(mesh, head, 24)
  if "learn_scale" in changes:
    assert abs(gradients[LOG_SCALE]) > 1e-3


def test_what_is_said_of_cosines_leaves_the_size_of_classes_out(mesh):
  """Accuracy and hardest cosine are those of the unadjusted head."""
  inputs = random_inputs(make_head(logit_adjustment=3.0), 24)
  plain_inputs = ({**inputs[0]}, *inputs[1:])
  del plain_inputs[0][CLASS_SIZES]

  def said(head, inputs):
    loss = partial(head_lib.loss, **START, head=head, mesh=mesh)
    return jax.jit(loss)(*put(mesh, *inputs))

  got = said(make_head(logit_adjustment=3.0), inputs)
  want = said(make_head(), plain_inputs)
  np.testing.assert_array_equal(got.correct, want.correct)
  assert_close(got.hardest_cosine, want.hardest_cosine)
  assert_close(got.true_cosine, want.true_cosine)
  assert not np.allclose(got.cross_entropy, want.cross_entropy)


def test_variants_are_not_all_the_same():
  def loss(**changes):
    head = make_head(**changes)
    return oracle_of(head, random_inputs(head, 24))[0].mean()

  losses = {
    loss(),
    loss(smooth=False),
    loss(sub_centers=3),
    loss(ignore_above=0.3),
    loss(learn_scale=True),
    loss(logit_adjustment=0.7),
  }
  assert len(losses) == 6


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_combination_matches_dense(data):
  draw = data.draw
  mesh = sharding.make_mesh(draw(st.sampled_from([1, 2, 8])))
  classes = draw(st.integers(1, 70))
  head = make_head(
    classes,
    multiple=draw(st.sampled_from([8, 24, 64])),
    chunk=draw(st.integers(1, 80)),
    smooth=draw(st.booleans()),
    sub_centers=draw(st.integers(1, 3)),
    learn_scale=draw(st.booleans()),
    ignore_above=draw(st.sampled_from([1.0, 0.5])),
    keep_bytes=draw(st.sampled_from([0, 2_000, 1_000_000])),
    scale=draw(st.sampled_from([1.0, 8.0, 30.0])),
    sample_rate=draw(st.sampled_from([1.0, 0.5, 0.1])),
    weigh_sample=draw(st.booleans()),
    logit_adjustment=draw(st.sampled_from([0.0, 0.7])),
  )
  batch = 8 * draw(st.integers(1, 6))
  params, embeddings, _ = random_inputs(head, batch, draw(st.integers(0, 99)))
  labels = np.array(
    draw(st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch))
  )
  one_step = optax.sgd(1.0)  # The weights' gradient is what they lose.

  @jax.jit
  def run(params, *batch):
    sample = None
    if head.sample_rate < 1:
      sample = class_sampling.draw(jax.random.key(0), batch[1], head, mesh)
    on_head = {"head": head, "mesh": mesh, "sample": sample}
    loss = head_lib.loss(params, *batch, **START, **on_head)
    new = head_lib.update_weights(
      params,
      one_step.init(params[WEIGHTS]),
      loss.residuals,
      jnp.array(True),
      optimizer=one_step,
      clip_norm=0.0,
      **on_head,
    )
    gradients = {
      WEIGHTS: params[WEIGHTS] - new.weights,
      **loss.margins_and_scalars_gradient,
    }
    return (loss.cross_entropy, (gradients, loss.embedding_gradient)), sample

  got, sample = run(*put(mesh, params, embeddings, labels))
  options = {}
  if sample is not None:
    used = np.asarray(sample.classes) >= 0
    options["classes"] = np.asarray(sample.classes)[used]
    options["log_weights"] = np.asarray(sample.log_weights)[used]
  want = oracle_of(head, (params, embeddings, labels), **options)
  assert_close(got, want, rtol=2e-3, atol=2e-5)


def test_scale_64_stays_exact(mesh):
  check(mesh, make_head(scale=64.0), 24, rtol=2e-3, atol=2e-5)


def test_one_class_costs_nothing():
  head = make_head(classes=1)
  loss_b, gradients = gradients_of(
    sharding.make_mesh(8), head, random_inputs(head, 8)
  )
  np.testing.assert_array_equal(loss_b, 0)
  for leaf in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(leaf, 0)


def test_bfloat16_product_is_close_and_margins_stay_float32(mesh):
  head = make_head(product_dtype="bfloat16")
  inputs = random_inputs(head, 24)
  exact = check(mesh, make_head(), 24, inputs=inputs)
  rough = check(mesh, head, 24, rtol=0.2, atol=2e-3, inputs=inputs)
  assert np.any(exact[0] != rough[0])
  # The true class is computed apart, in float32: CE's gradient in the margins
  # sees bfloat16 through the probabilities alone.
  np.testing.assert_allclose(
    rough[1][0][ANGULAR], exact[1][0][ANGULAR], rtol=0.05, atol=1e-4
  )


def updated(
  mesh, head, inputs, *, steps=2, clip_norm=0.0, accept=True, optimizer=SGD
):
  """Weights, optimizer state and norms after fused steps on one batch."""

  @jax.jit
  def run(params, opt_state, embeddings, labels, key):
    sample = None
    if head.sample_rate < 1:
      sample = class_sampling.draw(key, labels, head, mesh)
    loss = head_lib.loss(
      params,
      embeddings,
      labels,
      **START,
      head=head,
      mesh=mesh,
      sample=sample,
    )
    return loss, head_lib.update_weights(
      params,
      opt_state,
      loss.residuals,
      jnp.array(accept),
      head=head,
      mesh=mesh,
      optimizer=optimizer,
      clip_norm=clip_norm,
      sample=sample,
    )

  params, *batch = put(mesh, *inputs)
  opt_state, norms = optimizer.init(params[WEIGHTS]), []
  # Of the type that an update gives it: `run` is compiled once.
  everywhere = jax.NamedSharding(mesh, sharding.REPLICATED)
  opt_state = jax.tree.map(
    lambda a: a if a.ndim else jax.device_put(a, everywhere),
    opt_state,
  )
  for step in range(steps):
    loss, new = run(params, opt_state, *batch, jax.random.key(step))
    params[WEIGHTS], opt_state = new.weights, new.opt_state
    norms.append(float(new.gradient_norm))
  return params[WEIGHTS], opt_state, norms, loss


@pytest.mark.parametrize(
  ("sub_centers", "clip_norm", "optimizer"),
  [
    (1, 0.0, SGD),
    (1, 0.05, SGD),
    (2, 0.0, SGD),
    (2, 0.05, SGD),
    (1, 0.0, ADAMW),
    (2, 0.05, ADAMW),
  ],
)
@pytest.mark.parametrize("adjustment", [0.0, 1.0])
def test_fused_update_equals_gradient_then_optax(
  mesh, sub_centers, clip_norm, optimizer, adjustment
):
  """Chunks of 3 do not divide shards of 5: rows that overlap move once."""
  head = make_head(sub_centers=sub_centers, logit_adjustment=adjustment)
  inputs = random_inputs(head, 24)
  got = updated(mesh, head, inputs, clip_norm=clip_norm, optimizer=optimizer)
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  params, embeddings, labels = inputs
  want_norms = []
  with jax.enable_x64(True):
    opt_state = optimizer.init(jnp.asarray(params[WEIGHTS]))
  for _ in range(2):
    _, (gradients, _) = oracle_of(head, (params, embeddings, labels))
    want_norms.append(np.linalg.norm(gradients[WEIGHTS]))
    with jax.enable_x64(True):
      clipped, _ = clip.update(gradients[WEIGHTS], clip.init(0))
      updates, opt_state = optimizer.update(clipped, opt_state, params[WEIGHTS])
    params = params | {WEIGHTS: params[WEIGHTS] + np.asarray(updates)}
  assert min(want_norms) > 0.05  # Or nothing would be clipped.
  assert_close(got[0], params[WEIGHTS], rtol=1e-4, atol=1e-5)
  assert_close(got[1], opt_state, atol=1e-5)
  assert_close(got[2], want_norms)
  counts = [leaf for leaf in jax.tree.leaves(got[1]) if not leaf.ndim]
  assert counts and all(count == 2 for count in counts)


def take_form_of_gpus(monkeypatch):
  """What GPUs get is computed here."""
  monkeypatch.setattr(
    "jamsface_jax.head.update.lax.platform_dependent",
    lambda **forms: forms["cuda"](),
  )


@pytest.fixture(params=["cpu", "cuda"])
def form(request, monkeypatch):
  """The forms that other platforms than this one get, on this one."""
  if request.param == "cuda":
    take_form_of_gpus(monkeypatch)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_the_forms_of_an_update_are_equal(mesh, optimizer, monkeypatch):
  head = make_head(sub_centers=2)
  inputs = random_inputs(head, 24)
  by_branch = updated(mesh, head, inputs, optimizer=optimizer)
  take_form_of_gpus(monkeypatch)
  by_element = updated(mesh, head, inputs, optimizer=optimizer)
  assert_close(by_element[:3], by_branch[:3], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_rejected_step_changes_nothing(mesh, optimizer):
  head = make_head()
  inputs = random_inputs(head, 24)
  weights, opt_state, _, _ = updated(
    mesh, head, inputs, accept=False, optimizer=optimizer
  )
  np.testing.assert_array_equal(weights, inputs[0][WEIGHTS].astype(np.float32))
  assert all(
    np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(opt_state)
  )


def test_no_block_is_skipped_that_counts(mesh):
  """Some blocks are skipped, and the gradients stay the same."""
  inputs = random_inputs(make_head(), 8)
  # All examples near their class.
  inputs = (inputs[0], inputs[0][WEIGHTS][inputs[2]], inputs[2])
  options = {"scale": 64.0, "chunk": 1}
  all_blocks = updated(mesh, make_head(**options), inputs)
  few = updated(mesh, make_head(skip_below=1e-9, **options), inputs)
  assert_close(few[0], all_blocks[0], rtol=1e-5, atol=1e-7)
  assert_close(few[3].embedding_gradient, all_blocks[3].embedding_gradient)
  assert 0.02 < few[3].skipped < 1
  assert all_blocks[3].skipped == 0
  every = updated(mesh, make_head(skip_below=0.9, **options), inputs)
  assert not np.allclose(every[0], all_blocks[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("scale", "below"), [(64.0, 1e-9), (8.0, 0.05)])
def test_the_blocks_that_are_skipped_are_those_of_small_shares(scale, below):
  """Counted block by block, of one class each, in both walks."""
  mesh = sharding.make_mesh(4)
  head = make_head(skip_below=below, scale=scale, chunk=1)
  params, _, labels = random_inputs(head, 8)
  noise = 0.1 * np.random.default_rng(1).normal(size=(8, SIZE))
  inputs = (params, params[WEIGHTS][labels] + noise, labels)
  sgd = optax.sgd(0.1)

  @jax.jit
  def run(params, *batch):
    loss = head_lib.loss(params, *batch, **START, head=head, mesh=mesh)
    new = head_lib.update_weights(
      params,
      sgd.init(params[WEIGHTS]),
      loss.residuals,
      jnp.array(True),
      optimizer=sgd,
      clip_norm=0.0,
      head=head,
      mesh=mesh,
    )
    return loss.skipped, new.skipped

  w = params[WEIGHTS] / np.linalg.norm(params[WEIGHTS], axis=1, keepdims=True)
  x = inputs[1] / np.linalg.norm(inputs[1], axis=1, keepdims=True)
  logits = scale * x @ w.T
  logits[np.arange(8), labels] = logits[:, 37:] = -1e30
  rest = np.log(np.exp(logits).sum(axis=1))
  wrong = 1 - np.exp(-oracle_of(head, inputs)[0])
  skipped = np.zeros(2)
  for rows in (np.arange(4), np.arange(4, 8)):  # Of each `data` row.
    for first in range(0, 40, 10):  # Of each shard.
      so_far = np.full(4, -1e30)
      for c in range(first, first + 10):
        logit = logits[rows, c]
        so_far = np.logaddexp(so_far, logit)
        share = logit - so_far
        skipped[0] += share.max() < np.log(below)
        share = np.exp(logit - rest[rows]) * wrong[rows]
        skipped[1] += share.max() < below and c not in labels[rows]
  got = run(*put(mesh, *inputs))
  np.testing.assert_allclose(got, skipped / 80, rtol=1e-6)
  assert 0.02 < got[0] < 1 and 0.02 < got[1] < 1


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize(("sub_centers", "adjustment"), [(1, 0.0), (2, 1.0)])
def test_sampled_step_is_the_dense_one_on_its_classes(
  mesh, rate, weigh, sub_centers, adjustment
):
  head = make_head(
    101,
    64,
    chunk=7,
    sample_rate=rate,
    weigh_sample=weigh,
    sub_centers=sub_centers,
    logit_adjustment=adjustment,
  )
  inputs = random_inputs(head, 16)
  placed = put(mesh, *inputs)
  sample = jax.jit(partial(class_sampling.draw, head=head, mesh=mesh))(
    jax.random.key(0), placed[2]
  )
  used = np.asarray(sample.classes) >= 0
  order = np.argsort(np.asarray(sample.classes)[used])
  classes = np.asarray(sample.classes)[used][order]
  log_weights = np.asarray(sample.log_weights)[used][order]
  weights, _, (norm,), loss = updated(mesh, head, inputs, steps=1)
  want_loss, (want, want_x) = oracle_of(
    head, inputs, classes=classes, log_weights=log_weights
  )
  assert_close(loss.cross_entropy, want_loss)
  assert_close(loss.embedding_gradient, want_x)
  assert_close(loss.margins_and_scalars_gradient[ANGULAR], want[ANGULAR])
  assert_close(norm, np.linalg.norm(want[WEIGHTS]))
  before = inputs[0][WEIGHTS].astype(np.float32).reshape(128, -1)
  after = np.asarray(weights).reshape(128, -1)
  gradients = want[WEIGHTS].reshape(128, -1)
  moved = before - 0.5 * (gradients + 0.01 * before)
  assert_close(after[classes], moved[classes], atol=1e-5)
  others = np.setdiff1d(np.arange(128), classes)
  assert len(others) > 20
  np.testing.assert_array_equal(after[others], before[others])


def test_sampled_adamw_leaves_the_other_classes_untouched(mesh):
  """Three samples, against AdamW of each in float64; moments stay too."""
  head = make_head(101, 64, chunk=7, sample_rate=0.1, sub_centers=2)
  inputs = random_inputs(head, 16)
  draw = jax.jit(partial(class_sampling.draw, head=head, mesh=mesh))
  label_b = put(mesh, *inputs)[2]
  params, embeddings, labels = inputs
  before = params[WEIGHTS].reshape(128, -1)
  w, m, v, seen = before.copy(), 0 * before, 0 * before, []
  for step in range(1, 4):
    sample = draw(jax.random.key(step - 1), label_b)
    used = np.asarray(sample.classes) >= 0
    classes = np.asarray(sample.classes)[used]
    _, (gradients, _) = oracle_of(
      head,
      (params | {WEIGHTS: w.reshape(-1, SIZE)}, embeddings, labels),
      classes=classes,
      log_weights=np.asarray(sample.log_weights)[used],
    )
    g = gradients[WEIGHTS].reshape(128, -1)[classes]
    m[classes] = 0.8 * m[classes] + 0.2 * g
    v[classes] = 0.95 * v[classes] + 0.05 * g**2
    root = np.sqrt(v[classes] / (1 - 0.95**step)) + 1e-3
    move = m[classes] / (1 - 0.8**step) / root
    w[classes] -= 0.1 * (move + 0.01 * w[classes])
    seen.append(classes)
  options = {"steps": 3, "optimizer": ADAMW}
  weights, opt_state, _, _ = updated(mesh, head, inputs, **options)
  got = np.asarray(weights).reshape(128, -1)
  assert_close(got, w, rtol=1e-4, atol=2e-4)
  moments = opt_state[0]
  assert_close(np.asarray(moments.mu).reshape(128, -1), m, atol=1e-5)
  assert_close(np.asarray(moments.nu).reshape(128, -1), v, atol=1e-6)
  never = np.setdiff1d(np.arange(128), np.concatenate(seen))
  once = np.setxor1d(seen[0], np.union1d(seen[1], seen[2]))
  assert len(never) > 20 and len(once) > 5
  np.testing.assert_array_equal(got[never], before[never].astype(np.float32))
  for moment in (moments.mu, moments.nu):
    assert np.all(np.asarray(moment).reshape(128, -1)[never] == 0)


@pytest.mark.parametrize(
  ("angular", "cosine", "published"),
  [
    (0.5, 0.0, lambda t: np.cos(t + 0.5)),  # ArcFace.
    (0.0, 0.35, lambda t: np.cos(t) - 0.35),  # CosFace.
    (0.3, 0.2, lambda t: np.cos(t + 0.3) - 0.2),  # Fixed joint margin.
    (0.0, 0.0, np.cos),  # Normalised softmax.
  ],
)
def test_frozen_margins_are_the_published_losses(angular, cosine, published):
  mesh = sharding.make_mesh(4)
  head = make_head(
    angular=make_margin(angular, learned=False),
    cosine=make_margin(cosine, learned=False),
  )
  params = jax.tree.map(
    np.asarray, head_lib.init(jax.random.key(0), head, mesh)
  )
  rng = np.random.default_rng(1)
  embeddings, labels = rng.normal(size=(16, 16)), rng.integers(0, 37, 16)
  embeddings[::2] += 200 * params[WEIGHTS][labels[::2]]  # Half are right.
  loss = jax.jit(partial(head_lib.loss, **START, head=head, mesh=mesh))(
    *put(mesh, params, embeddings, labels)
  )
  x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  w = params[WEIGHTS][:37].astype(np.float64)
  logits = x @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
  np.testing.assert_array_equal(loss.correct, logits.argmax(1) == labels)
  assert 4 < loss.correct.sum() < 12
  rows = np.arange(16)
  logits[rows, labels] = published(np.arccos(logits[rows, labels]))
  logits *= head.scale
  want = np.log(np.exp(logits).sum(1)) - logits[rows, labels]
  np.testing.assert_allclose(loss.cross_entropy, want, rtol=2e-5)


def test_fixed_point_gives_poor_classes_the_larger_margins():
  """At rest 1 - p_j = lambda N / (C n_j s): the margin falls with size."""
  mesh = one_device()
  head = make_head(
    classes=8,
    scale=16.0,
    angular=make_margin(0.3),
    cosine=make_margin(0.0, learned=False),
  )
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(8), [22, 14, 10, 7, 5, 3, 2, 1])
  params, _, _ = random_inputs(head, 8)
  params[ANGULAR][:] = 0.3
  params[COSINE][:] = 0.0
  embeddings = params[WEIGHTS][labels] + 0.4 * rng.normal(size=(64, 16))
  params, embeddings, labels = put(mesh, params, embeddings, labels)

  @jax.jit
  def step(params):
    loss = head_lib.loss(
      params, embeddings, labels, **START, head=head, mesh=mesh
    )
    moved = params[ANGULAR] - 0.05 * loss.margins_and_scalars_gradient[ANGULAR]
    return head_lib.constrain(params | {ANGULAR: moved}, head)

  for _ in range(400):
    params = step(params)
  margins = np.asarray(params[ANGULAR])
  assert margins[0] < margins[3] < margins[7]


def compiled(mesh, head, batch, optimizer=SGD):
  """The optimised program of a fused step of the head."""

  def step(params, opt_state, embeddings, labels, accept):
    sample = None
    if head.sample_rate < 1:
      sample = class_sampling.draw(jax.random.key(0), labels, head, mesh)
    options = {"head": head, "mesh": mesh, "sample": sample}
    loss = head_lib.loss(params, embeddings, labels, **START, **options)
    new = head_lib.update_weights(
      params,
      opt_state,
      loss.residuals,
      accept,
      optimizer=optimizer,
      clip_norm=0.0,
      **options,
    )
    return loss.embedding_gradient, loss.margins_and_scalars_gradient, new

  inputs = put(mesh, *random_inputs(head, batch))
  opt_state = optimizer.init(inputs[0][WEIGHTS])
  return (
    jax.jit(step, donate_argnums=(0, 1))
    .lower(inputs[0], opt_state, *inputs[1:], jnp.array(True))
    .compile()
  )


@pytest.mark.parametrize(
  ("rate", "optimizer"), [(1.0, SGD), (0.25, SGD), (0.25, ADAMW)]
)
def test_compiled_step_holds_no_logits_and_only_the_listed_collectives(
  mesh, rate, optimizer
):
  batch, classes = 48, 1000
  head = make_head(classes, 512, chunk=32, sample_rate=rate)
  program = compiled(mesh, head, batch, optimizer)
  text = program.as_text()
  data, model = mesh.shape["data"], mesh.shape["model"]
  local_batch, local_classes = batch // data, head.padded_classes // model
  shapes = {
    tuple(map(int, dims.split(",")))
    for dims in re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)
  }
  # No logits of all classes, nor of all classes of a shard or a sample.
  slots = class_sampling.count_slots(head, batch, model)
  for rows in {batch, local_batch}:
    for columns in {head.padded_classes, local_classes, slots}:
      assert not shapes & {(rows, columns), (columns, rows)}
  # Weights and moments are updated where they are.
  assert f"f32[{local_classes},{SIZE}]{{1,0}} copy(" not in text
  if model > 1:  # Nobody holds the whole weight matrix.
    assert (head.padded_classes, SIZE) not in shapes
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
  chunk = min(slots if rate < 1 else local_classes, 32)
  expected = {
    ("all-gather", (local_batch, SIZE)),  # Embeddings, along `model`.
    ("all-gather", (local_batch,)),  # Labels.
    ("all-reduce", (local_batch,)),  # Max; sum.
    ("all-reduce", (3, local_batch)),  # The true cosines and margins.
    ("reduce-scatter", (batch // mesh.size, SIZE)),  # Embedding gradients.
    ("all-reduce", (local_batch, SIZE)),  # The same where XLA prefers it.
    ("all-reduce", (local_classes, 2)),  # Margin gradients, over `data`.
    ("all-reduce", ()),  # Norm of the weights' gradient.
  }
  expected |= {  # Weight gradients over `data`, chunk by chunk.
    ("all-reduce", (n, SIZE)) for n in range(chunk // 2, chunk + 1)
  }
  if rate < 1:
    expected.add(("all-gather", (batch,)))  # Labels, for the positives.
  assert moved <= expected, moved - expected
  assert moved
