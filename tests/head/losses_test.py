"""Every loss under the sharded head, against its paper's formula in float64.

The oracles are written with arccos, a full softmax and Python loops over
nothing but the batch, from the formulas, not from `losses`.
"""

import dataclasses
import math
import pathlib
import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads import SIZE, make_head, put, random_inputs
from ml_collections import ConfigDict

from jamsface_jax import head as head_lib
from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.head import (
  ANGULAR,
  BIAS,
  COSINE,
  LOG_SCALE,
  WEIGHTS,
  class_sampling,
  losses,
  margins,
)

JOINT = {"smooth": False, "straight_through": False}
CLASSES, BATCH = 37, 24
ROWS = jnp.arange(BATCH)


def cosines(params, x):
  w = params[WEIGHTS][:CLASSES]
  w = w / jnp.linalg.norm(w, axis=1, keepdims=True)
  return (x / jnp.linalg.norm(x, axis=1, keepdims=True)) @ w.T


def cross_entropy(logits, target, labels):
  return jax.nn.logsumexp(logits.at[ROWS, labels].set(target), axis=1) - target


def arc(cosine, a):
  theta = jnp.arccos(cosine)
  return jnp.where(
    theta + a < jnp.pi, jnp.cos(theta + a), cosine - a * jnp.sin(a)
  )


def normface(params, x, y, scale, **_):
  cosine = cosines(params, x)
  return cross_entropy(scale * cosine, scale * cosine[ROWS, y], y), {}


def plain_softmax(params, x, y, **_):
  logits = x @ params[WEIGHTS][:CLASSES].T
  return cross_entropy(logits, logits[ROWS, y], y), {}


def combined(params, x, y, scale, m=1.35, **_):
  cosine = cosines(params, x)
  inside = m * jnp.arccos(cosine[ROWS, y]) + params[ANGULAR][y]
  phi = jnp.where(inside < jnp.pi, jnp.cos(inside), -jnp.cos(inside) - 2)
  return cross_entropy(scale * cosine, scale * (phi - params[COSINE][y]), y), {}


def sphereface(params, x, y, state, **_):
  cosine, length = cosines(params, x), jnp.linalg.norm(x, axis=1)
  theta = jnp.arccos(cosine[ROWS, y])
  psi = 0.0
  for k in range(4):  # eq. 7, piece by piece.
    here = (theta >= k * jnp.pi / 4) & (theta <= (k + 1) * jnp.pi / 4)
    psi = jnp.where(here, (-1) ** k * jnp.cos(4 * theta) - 2 * k, psi)
  steps = state["steps"] + 1
  weight = max(5.0, 1000 / (1 + 0.12 * steps))
  f = length * (weight * cosine[ROWS, y] + psi) / (1 + weight)
  return cross_entropy(length[:, None] * cosine, f, y), {"steps": steps}


def adacos(params, x, y, state, **_):
  cosine, s = cosines(params, x), state["scale"]
  loss = cross_entropy(s * cosine, s * cosine[ROWS, y], y)
  others = jnp.exp(s * cosine).at[ROWS, y].set(0).sum(axis=1).mean()
  median = jnp.median(jnp.arccos(cosine[ROWS, y]))
  new = jnp.log(others) / jnp.cos(jnp.minimum(jnp.pi / 4, median))
  return loss, {"scale": new}


def mv_softmax_published(params, x, y, scale, **_):
  """FaceX-Zoo: no margin where the true cosine is not above 0, or above c."""
  cosine = cosines(params, x)
  true, a, c = cosine[ROWS, y], params[ANGULAR][y], params[COSINE][y]
  with_margin = jnp.cos(jnp.arccos(true) + a) - c
  hard = cosine > jax.lax.stop_gradient(with_margin)[:, None]
  changed = jnp.where(hard, 1.2 * cosine + 0.2, cosine)
  phi = jnp.where(true > c, with_margin, true)
  return cross_entropy(scale * changed, scale * phi, y), {}


def mv_softmax(params, x, y, scale, t=1.2, **_):
  cosine = cosines(params, x)
  phi = arc(cosine[ROWS, y], params[ANGULAR][y]) - params[COSINE][y]
  hard = cosine > jax.lax.stop_gradient(phi)[:, None]
  changed = jnp.where(hard, t * cosine + t - 1, cosine)
  return cross_entropy(scale * changed, scale * phi, y), {}


def curricularface(params, x, y, scale, state, **_):
  cosine = cosines(params, x)
  true, a = cosine[ROWS, y], params[ANGULAR][y]
  t = 0.01 * true.mean() + 0.99 * state["t"]
  t = jax.lax.stop_gradient(t)
  hard = cosine > jnp.cos(jnp.arccos(true) + a)[:, None]
  changed = jnp.where(hard, cosine * (t + cosine), cosine)
  phi = arc(true, a) - params[COSINE][y]
  return cross_entropy(scale * changed, scale * phi, y), {"t": t}


def magface(params, x, y, scale, easy_margin, **_):
  cosine = cosines(params, x)
  length = jnp.clip(jnp.linalg.norm(x, axis=1), 2, 9)
  m = 0.45 + (0.8 - 0.45) / (9 - 2) * (length - 2)
  true = cosine[ROWS, y]
  phi = arc(true, m)
  if easy_margin:
    phi = jnp.where(true > 0, jnp.cos(jnp.arccos(true) + m), true)
  loss = cross_entropy(scale * cosine, scale * phi, y)
  return loss + 3.5 * (length / 9**2 + 1 / length), {}


def adaface(params, x, y, scale, state, **_):
  cosine = cosines(params, x)
  length = jax.lax.stop_gradient(jnp.linalg.norm(x, axis=1))
  mean = 0.3 * length.mean() + 0.7 * state["mean"]
  variance = jnp.sum((length - length.mean()) ** 2) / (BATCH - 1)
  deviation = 0.3 * jnp.sqrt(variance) + 0.7 * state["deviation"]
  z = jnp.clip(0.333 * (length - mean) / (deviation + 1e-3), -1, 1)
  m = params[COSINE][y]
  theta = jnp.arccos(cosine[ROWS, y])
  phi = jnp.cos(jnp.clip(theta - m * z, 1e-3, jnp.pi - 1e-3)) - m * (1 + z)
  loss = cross_entropy(scale * cosine, scale * phi, y)
  return loss, {"mean": mean, "deviation": deviation}


def elasticface(params, x, y, scale, noise, space, **_):
  cosine = cosines(params, x)
  a, c = params[ANGULAR][y], params[COSINE][y]
  if space == "angular":
    a = a + 0.05 * noise
  else:
    c = c + 0.05 * noise
  phi = arc(cosine[ROWS, y], a) - c
  return cross_entropy(scale * cosine, scale * phi, y), {}


def uniface(params, x, y, scale, **_):
  cosine, b = cosines(params, x), params[BIAS]
  phi = arc(cosine[ROWS, y], params[ANGULAR][y]) - params[COSINE][y]
  others = jnp.log(1 + jnp.exp(scale * cosine - b)).at[ROWS, y].set(0)
  return jnp.log(1 + jnp.exp(b - scale * phi)) + 0.7 * others.sum(axis=1), {}


def li_arcface():
  """The class that CONTRIBUTING.md shows."""
  text = (pathlib.Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
  names = dict(vars(losses))
  exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
  return names["LiArcFace"]()


def linear(params, x, y, scale, **_):
  theta = jnp.arccos(cosines(params, x))
  logits = scale * (1 - 2 * theta / jnp.pi)
  target = 1 - 2 * (theta[ROWS, y] + params[ANGULAR][y]) / jnp.pi
  return cross_entropy(logits, scale * target, y), {}


CASES = {
  "normface": (losses.Loss(), normface, {}),
  "softmax": (losses.Softmax(), plain_softmax, {}),
  "combined": (losses.Combined(1.35, False), combined, {}),
  "sphereface": (
    losses.SphereFace(4.0, 5.0, 1000.0),
    sphereface,
    {"steps": 700.0},
  ),
  "adacos": (losses.AdaCos(), adacos, {"scale": 6.5}),
  "mv_softmax": (
    losses.MVSoftmax(**JOINT, t=1.2, easy_margin=False),
    mv_softmax,
    {},
  ),
  "mv_softmax as published": (
    losses.MVSoftmax(**JOINT, t=1.2, easy_margin=True),
    mv_softmax_published,
    {},
  ),
  "curricularface": (
    losses.CurricularFace(**JOINT, momentum=0.01),
    curricularface,
    {"t": 0.3},
  ),
  "magface": (
    losses.MagFace(2.0, 9.0, 0.45, 0.8, 3.5, easy_margin=False),
    partial(magface, easy_margin=False),
    {},
  ),
  "magface as published": (
    losses.MagFace(2.0, 9.0, 0.45, 0.8, 3.5, easy_margin=True),
    partial(magface, easy_margin=True),
    {},
  ),
  "adaface": (
    losses.AdaFace(0.333, 0.3),
    adaface,
    {"mean": 5.0, "deviation": 2.0},
  ),
  "elasticface angular": (
    losses.ElasticFace(**JOINT, deviation=0.05, space="angular"),
    partial(elasticface, space="angular"),
    {},
  ),
  "elasticface cosine": (
    losses.ElasticFace(**JOINT, deviation=0.05, space="cosine"),
    partial(elasticface, space="cosine"),
    {},
  ),
  "shown in CONTRIBUTING": (li_arcface(), linear, {}),
  "uniface": (losses.UniFace(**JOINT, weight=0.7, rate=1.0), uniface, {}),
}
KEY = jax.random.key(3)


def inputs_of(head):
  """Random inputs of any length, weights not of length 1, hard classes."""
  params, embeddings, labels = random_inputs(head, BATCH)
  # A third near no class: what losses do differently there shows, too.
  near_none = slice(1, None, 3)
  first = labels[near_none] * head.sub_centers
  embeddings[near_none] -= params[WEIGHTS][first]
  params[WEIGHTS] *= np.random.default_rng(1).uniform(
    0.2, 0.5, (len(params[WEIGHTS]), 1)
  )
  if head.loss.one_by_one:
    params[BIAS] = np.float64(2.5)
  return params, 0.7 * embeddings, labels


def one_step(mesh, head, inputs, state):
  """Loss and gradients under the sharded head; weights' by a fused step."""
  sgd = optax.sgd(1.0)  # The weights' gradient is what they lose.

  @jax.jit
  def run(params, embeddings, labels, loss_state):
    result = head_lib.loss(
      params,
      embeddings,
      labels,
      loss_state=loss_state,
      key=KEY,
      head=head,
      mesh=mesh,
    )
    new = head_lib.update_weights(
      params,
      sgd.init(params[WEIGHTS]),
      result.residuals,
      jnp.array(True),
      optimizer=sgd,
      clip_norm=0.0,
      head=head,
      mesh=mesh,
    )
    gradients = {
      WEIGHTS: params[WEIGHTS] - new.weights,
      **result.margins_and_scalars_gradient,
    }
    return result, gradients

  start = {k: jnp.float32(v) for k, v in state.items()}
  return run(*put(mesh, *inputs), start)


def check(mesh, loss, oracle, state):
  """Value, all gradients, memory and what is said of cosines, in float64."""
  keep_bytes = 1500 * (mesh.shape["data"] == 2)
  head = make_head(loss=loss, keep_bytes=keep_bytes)
  inputs = inputs_of(head)
  got, gradients = one_step(mesh, head, inputs, state)
  noise = np.asarray(jax.random.normal(KEY, (BATCH,)), np.float64)

  def mean(params, x):
    loss_b, new = oracle(
      params, x, inputs[2], scale=head.scale, state=state, noise=noise
    )
    return loss_b.mean(), (loss_b, new)

  with jax.enable_x64(True):
    (_, (want_b, want_state)), (want, want_x) = jax.value_and_grad(
      mean, argnums=(0, 1), has_aux=True
    )(jax.tree.map(jnp.asarray, inputs[0]), jnp.asarray(inputs[1]))
  close = partial(np.testing.assert_allclose, rtol=3e-4, atol=3e-6)
  close(got.cross_entropy, want_b)
  close(got.embedding_gradient, want_x)
  assert set(gradients) == set(want)
  for parameter, gradient in gradients.items():
    close(gradient, want[parameter], err_msg=parameter)
  assert set(got.loss_state) == set(state)
  for statistic, value in got.loss_state.items():
    close(value, want_state[statistic])
  similarity = np.array(cosines(*inputs[:2]))
  if not loss.unit_weights:  # It knows lengths of weights, not of embeddings.
    similarity = inputs[1] @ inputs[0][WEIGHTS][:CLASSES].T
    similarity /= np.linalg.norm(inputs[1], axis=1, keepdims=True)
  np.testing.assert_array_equal(
    got.correct, similarity.argmax(axis=1) == inputs[2]
  )
  rows = np.arange(BATCH)
  close(got.true_cosine, similarity[rows, inputs[2]])
  similarity[rows, inputs[2]] = -np.inf
  close(got.hardest_cosine, similarity.max(axis=1))


@pytest.mark.parametrize("name", CASES)
def test_value_gradients_and_memory_are_the_paper_s(mesh, name):
  check(mesh, *CASES[name])


# What the recipe of CONTRIBUTING.md makes of each flag of `Loss` alone: a class
# that overrides what it answers otherwise, and leaves the rest as it is.


@dataclasses.dataclass(frozen=True)
class Reweighting(losses.Loss):
  reweights_others = True

  def reweight_others(self, cosine_nb, threshold_b, state):
    hard_nb = cosine_nb > threshold_b[None]
    return (
      jnp.where(hard_nb, 1.5 * cosine_nb, cosine_nb),
      jnp.where(hard_nb, 1.5, 1.0),
    )


@dataclasses.dataclass(frozen=True)
class ScaledByLength(losses.Loss):
  scale_has_gradient = True

  def scale(self, x, s):
    return s + 0.5 * x.length


@dataclasses.dataclass(frozen=True)
class Drawing(losses.Loss):
  draws = True

  def similarity(self, x):
    return x.cosine - 0.2 * x.noise


@dataclasses.dataclass(frozen=True)
class Remembering(losses.Loss):
  remembers = True

  def start(self, num_classes):
    return {"margin": 0.3}

  def update_before(self, batch):
    return {"margin": batch.state["margin"] + 0.5 * batch.cosine.mean()}

  def similarity(self, x):
    return x.cosine - x.state["margin"]

  def update_after(self, batch, rest):
    return {"margin": batch.state["margin"] + 0.1 * rest.mean()}


@dataclasses.dataclass(frozen=True)
class WeightsAsTheyAre(losses.Loss):
  unit_weights = False


@dataclasses.dataclass(frozen=True)
class OneByOne(losses.Loss):
  one_by_one = True


def reweighting(params, x, y, scale, **_):
  cosine = cosines(params, x)
  hard = cosine > jax.lax.stop_gradient(cosine[ROWS, y])[:, None]
  changed = jnp.where(hard, 1.5 * cosine, cosine)
  return cross_entropy(scale * changed, scale * cosine[ROWS, y], y), {}


def scaled_by_length(params, x, y, scale, **_):
  scale = scale + 0.5 * jnp.linalg.norm(x, axis=1)
  logits = scale[:, None] * cosines(params, x)
  return cross_entropy(logits, logits[ROWS, y], y), {}


def drawing(params, x, y, scale, noise, **_):
  cosine = cosines(params, x)
  phi = cosine[ROWS, y] - 0.2 * noise
  return cross_entropy(scale * cosine, scale * phi, y), {}


def remembering(params, x, y, scale, state, **_):
  cosine = cosines(params, x)
  true = cosine[ROWS, y]
  margin = state["margin"] + 0.5 * jax.lax.stop_gradient(true).mean()
  others = (scale * cosine).at[ROWS, y].set(-jnp.inf)
  rest = jax.nn.logsumexp(others, axis=1)
  loss = cross_entropy(scale * cosine, scale * (true - margin), y)
  return loss, {"margin": margin + 0.1 * rest.mean()}


def weights_as_they_are(params, x, y, scale, **_):
  unit_x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
  logits = scale * unit_x @ params[WEIGHTS][:CLASSES].T
  return cross_entropy(logits, logits[ROWS, y], y), {}


def one_by_one(params, x, y, scale, **_):
  logits, b = scale * cosines(params, x), params[BIAS]
  others = jnp.log(1 + jnp.exp(logits - b)).at[ROWS, y].set(0)
  true = jnp.log(1 + jnp.exp(b - logits[ROWS, y]))
  return true + others.sum(axis=1), {}


FLAGS = {
  "reweights_others": (Reweighting(), reweighting, {}),
  "scale_has_gradient": (ScaledByLength(), scaled_by_length, {}),
  "draws": (Drawing(), drawing, {}),
  "remembers": (Remembering(), remembering, {"margin": 0.3}),
  "unit_weights": (WeightsAsTheyAre(), weights_as_they_are, {}),
  "one_by_one": (OneByOne(), one_by_one, {}),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_loss_with_one_flag_alone(flag):
  check(sharding.make_mesh(4), *FLAGS[flag])


def test_each_flag_has_its_case():
  plain = losses.Loss()
  flags = [k for k, v in vars(losses.Loss).items() if isinstance(v, bool)]
  assert set(FLAGS) == set(flags)
  for flag, (loss, _, _) in FLAGS.items():
    assert [k for k in flags if getattr(loss, k) != getattr(plain, k)] == [flag]


def test_the_head_asks_nothing_that_loss_does_not_declare():
  folder = pathlib.Path(head_lib.__file__).parent
  text = "".join(path.read_text() for path in folder.glob("*.py"))
  asked = set(re.findall(r"\bhead\.loss\.(\w+)", text))
  assert len(asked) > 10
  assert asked <= set(vars(losses.Loss))


@pytest.mark.parametrize("flag", FLAGS)
def test_a_loss_with_one_flag_alone_trains(flag):
  """From first values that `init` and `start` give, in samples of classes."""
  loss = FLAGS[flag][0]
  mesh = sharding.make_mesh(4)
  head = make_head(loss=loss, sample_rate=0.9, learn_scale=True)
  params = head_lib.init(jax.random.key(0), head, mesh)
  assert (BIAS in params) == loss.one_by_one
  state = {k: jnp.float32(v) for k, v in loss.start(CLASSES).items()}
  rng = np.random.default_rng(0)
  labels = np.arange(BATCH) % CLASSES
  centres = rng.normal(size=(CLASSES, SIZE))
  _, *batch = put(mesh, {}, centres[labels], labels)
  sgd = optax.sgd(2.0)

  @jax.jit
  def step(params, state, key):
    sample = class_sampling.draw(key, batch[1], head, mesh)
    on_head = {"head": head, "mesh": mesh, "sample": sample}
    result = head_lib.loss(params, *batch, loss_state=state, key=key, **on_head)
    new = head_lib.update_weights(
      params,
      sgd.init(params[WEIGHTS]),
      result.residuals,
      jnp.array(True),
      optimizer=sgd,
      clip_norm=1.0,
      **on_head,
    )
    moved = {
      name: params[name] - 0.1 * gradient
      for name, gradient in result.margins_and_scalars_gradient.items()
    }
    moved = head_lib.constrain(moved, head)
    values = result.cross_entropy.mean(), result.correct.mean()
    return moved | {WEIGHTS: new.weights}, result.loss_state, values

  said = []
  for k in range(30):
    params, state, values = step(params, state, jax.random.key(k))
    said.append(values)
  (first, _), (last, correct) = said[0], said[-1]
  assert last < first and correct > 0.9


@pytest.mark.parametrize("name", CASES)
def test_a_loss_says_whether_it_moves_lengths(name):
  """Where it does not, the scale of the last normalisation may rest."""
  loss, _, state = CASES[name]
  rng = np.random.default_rng(0)
  cosine, noise = rng.uniform(-0.9, 0.9, (2, 8))
  x = losses.LossInputs(
    *map(jnp.float32, (cosine, 0 * noise + 0.3, 0 * noise + 0.2)),
    length=jnp.linspace(1.0, 10.0, 8),
    noise=jnp.float32(noise),
    state=state,
  )

  def total(length):
    seen = x._replace(length=length)
    scale = loss.scale(seen, jnp.float32(16.0))
    return jnp.sum(scale * loss.similarity(seen) + loss.penalty(seen))

  moves = np.any(np.asarray(jax.grad(total)(x.length)) != 0)
  assert loss.length_has_gradient == moves


def test_one_class_has_no_hardest_other(mesh):
  """No other class counts: the cosine to the hardest is the least there is."""
  head = make_head(classes=1, loss=losses.Loss())
  params, x, _ = random_inputs(head, BATCH)
  got = jax.jit(
    partial(head_lib.loss, loss_state={}, key=KEY, head=head, mesh=mesh)
  )(*put(mesh, params, x, np.zeros(BATCH, np.int32)))
  np.testing.assert_array_equal(got.hardest_cosine, -1.0)
  np.testing.assert_array_equal(got.cross_entropy, 0.0)


def test_cases_differ_and_none_is_without_effect():
  """Inputs are such that every loss does what is its own."""
  values = {}
  for name, (loss, oracle, state) in CASES.items():
    head = make_head(loss=loss)
    inputs = inputs_of(head)
    values[name] = oracle(
      jax.tree.map(jnp.asarray, inputs[0]),
      jnp.asarray(inputs[1]),
      *inputs[2:],
      scale=head.scale,
      state=state,
      noise=np.linspace(-1, 1, BATCH),
    )[0]
  names = list(values)
  for i, one in enumerate(names):
    for other in names[:i]:
      assert np.abs(values[one] - values[other]).max() > 1e-3, (one, other)


draw = jax.jit(class_sampling.draw, static_argnames=("head", "mesh"))


@pytest.mark.parametrize("name", [n for n in CASES if n != "uniface"])
def test_a_sample_of_all_is_all(name):
  """A stratum of one class each: the sampled head sees what the exact does."""
  mesh = sharding.make_mesh(4)
  loss, _, state = CASES[name]
  inputs = inputs_of(make_head(loss=loss))
  start = {k: jnp.float32(v) for k, v in state.items()}

  def run(rate):
    head = make_head(loss=loss, sample_rate=rate)
    placed = put(mesh, *inputs)
    sample = None
    if rate < 1:
      sample = draw(KEY, placed[2], head=head, mesh=mesh)
    result = jax.jit(
      partial(head_lib.loss, loss_state=start, key=KEY, head=head, mesh=mesh)
    )(*placed, sample=sample)
    return result.cross_entropy, result.embedding_gradient, result.loss_state

  # 0.99 of 37 classes, rounded up.
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6),
    run(1.0),
    run(0.99),
  )


@pytest.mark.parametrize(
  "loss",
  [
    losses.Joint(smooth=True, straight_through=False),
    losses.Joint(smooth=True, straight_through=True),
    losses.Combined(1.0, False),
    losses.MVSoftmax(**JOINT, t=1.0, easy_margin=False),
    losses.MVSoftmax(**JOINT, t=1.0, easy_margin=True),
    losses.ElasticFace(**JOINT, deviation=0.0, space="cosine"),
    losses.MagFace(2.0, 9.0, 0.0, 0.0, 0.0, easy_margin=False),
    losses.AdaFace(0.333, 0.01),
  ],
  ids=lambda loss: f"{type(loss).__name__} {vars(loss).get('easy_margin', '')}",
)
def test_without_margins_all_are_normface(loss):
  mesh = sharding.make_mesh(4)

  def run(loss, inputs):
    head = make_head(loss=loss)
    start = {k: jnp.float32(v) for k, v in loss.start(CLASSES).items()}
    result = jax.jit(
      partial(head_lib.loss, loss_state=start, key=KEY, head=head, mesh=mesh)
    )(*put(mesh, *inputs))
    return result.cross_entropy, result.embedding_gradient

  params, *batch = random_inputs(make_head(), BATCH)
  params[ANGULAR][:] = params[COSINE][:] = 0.0
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    run(loss, (params, *batch)),
    run(losses.Loss(), (params, *batch)),
  )


@pytest.mark.parametrize("kind", ["joint", "combined"])
def test_straight_through_has_derivative_1_in_the_cosine_alone(kind):
  make = {
    "joint": lambda through: losses.Joint(True, through),
    "combined": lambda through: losses.Combined(1.35, through),
  }[kind]
  cosine = jnp.array([0.9, 0.3, -0.4])
  a, c = jnp.full(3, 0.3), jnp.full(3, 0.2)

  def total(loss, cosine, a, c):
    x = losses.LossInputs(cosine, a, c, jnp.ones(3), jnp.zeros(3), {})
    return loss.similarity(x).sum()

  true = jax.value_and_grad(total, (1, 2, 3))(make(False), cosine, a, c)
  through = jax.value_and_grad(total, (1, 2, 3))(make(True), cosine, a, c)
  np.testing.assert_allclose(true[0], through[0], rtol=1e-6)
  np.testing.assert_allclose(through[1][0], 1.0)
  assert np.all(np.abs(true[1][0] - 1) > 0.01)
  for k in (1, 2):  # Margins keep their true gradient.
    np.testing.assert_allclose(through[1][k], true[1][k], rtol=1e-6)


def test_combined_margin_falls_with_the_angle_and_is_sphereface_s():
  theta = np.linspace(1e-2, np.pi - 1e-2, 3000)
  zero = jnp.zeros(3000)
  psi = margins.combined(jnp.cos(theta), 4.0, zero, zero)
  assert np.all(np.diff(psi) < 1e-4)
  assert psi[-1] < -6.9  # Three pieces further down.
  for m, a, c in [(1.0, 0.5, 0.0), (0.9, 0.4, 0.15)]:
    got = margins.combined(jnp.cos(theta), m, zero + a, zero + c)
    inside = m * theta + a < np.pi
    want = np.cos(m * theta + a) - c
    np.testing.assert_allclose(got[inside], want[inside], atol=2e-5)


def test_first_values():
  assert losses.AdaCos().start(1001)["scale"] == pytest.approx(
    math.sqrt(2) * math.log(1000)
  )
  assert losses.UniFace(**JOINT, weight=1.0, rate=0.1).first_bias(
    1000
  ) == pytest.approx(math.log(1000))


def test_a_loss_that_does_not_exist_is_refused_with_the_ones_that_do():
  settings = types.SimpleNamespace(
    loss="arcfac", continuation="smooth", straight_through=False
  )
  with pytest.raises(InputError) as error:
    losses.make_loss(settings)
  assert str(error.value) == (
    "head.loss='arcfac' is unknown: use one of joint, softmax, combined,"
    " sphereface, adacos, mv_softmax, curricularface, magface, adaface,"
    " elasticface, uniface."
  )


@pytest.mark.parametrize(
  "section",
  [lambda fields: types.SimpleNamespace(**fields), ConfigDict],
  ids=["attributes", "ConfigDict"],
)
def test_losses_are_made_of_any_settings_with_their_fields(section):
  """Each value of each loss, from objects and from a ConfigDict alike."""
  rng = np.random.default_rng(0)
  for loss in [
    losses.Joint(smooth=True, straight_through=True),
    losses.Softmax(),
    losses.Combined(1.35, straight_through=True),
    losses.SphereFace(4.0, 5.0, 1000.0),
    losses.AdaCos(),
    losses.MVSoftmax(
      smooth=True, straight_through=True, t=1.2, easy_margin=False
    ),
    losses.CurricularFace(smooth=True, straight_through=True, momentum=0.01),
    losses.MagFace(2.0, 9.0, 0.45, 0.8, 3.5, easy_margin=False),
    losses.AdaFace(0.333, 0.3),
    losses.ElasticFace(True, True, deviation=0.05, space="cosine"),
    losses.UniFace(True, True, weight=0.7, rate=0.25),
  ]:
    fields = {f.name: getattr(loss, f.name) for f in dataclasses.fields(loss)}
    fields |= {
      name: float(rng.uniform(0.1, 0.9))
      for name, value in fields.items()
      if isinstance(value, float) and name != "rate"
    }
    words = {name.replace("_", ""): name for name in losses.NAMES}
    word = words[type(loss).__name__.lower()]
    own = set(fields) - {"smooth", "straight_through", "rate"}
    settings = section(
      {
        "loss": word,
        "continuation": "smooth",
        "straight_through": True,
        "sample_rate": 0.25,
        word: section({name: fields[name] for name in own}),
      }
    )
    assert losses.make_loss(settings) == dataclasses.replace(loss, **fields)


def test_learned_scale_of_a_loss_that_reweights_others(mesh):
  loss = losses.MVSoftmax(**JOINT, t=1.2, easy_margin=False)
  head = make_head(loss=loss, learn_scale=True)
  inputs = inputs_of(head)
  result = jax.jit(
    partial(head_lib.loss, loss_state={}, key=KEY, head=head, mesh=mesh)
  )(*put(mesh, *inputs))

  def mean(log_scale):
    return mv_softmax(
      jax.tree.map(jnp.asarray, inputs[0]),
      jnp.asarray(inputs[1]),
      inputs[2],
      scale=jnp.exp(log_scale),
    )[0].mean()

  with jax.enable_x64(True):
    want = jax.grad(mean)(inputs[0][LOG_SCALE])
  np.testing.assert_allclose(
    result.margins_and_scalars_gradient[LOG_SCALE], want, rtol=1e-4
  )
