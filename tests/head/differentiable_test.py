"""The head in a loop of one's own: derivatives, steps, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads import SIZE, dense, make_head, put, random_inputs

from jamsface_jax import head as head_lib
from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.head import ANGULAR, COSINE, WEIGHTS, class_sampling, losses
from jamsface_jax.head.update import weight_gradient

AUTO = (jax.sharding.AxisType.Auto,) * 2
MESHES = {
  "none": lambda: None,
  # As JAX makes them today, layouts part of the types; and as it did.
  "1x8": lambda: jax.make_mesh((1, 8), ("data", "model")),
  "2x4": lambda: jax.make_mesh((2, 4), ("data", "model")),
  "2x4 auto": lambda: jax.make_mesh((2, 4), ("data", "model"), AUTO),
}


@pytest.fixture(
  params=[
    "none",
    pytest.param("1x8", marks=pytest.mark.slow),
    "2x4",
    pytest.param("2x4 auto", marks=pytest.mark.slow),
  ]
)
def own_mesh(request):
  return MESHES[request.param]()


def inputs_of(head, batch=24, seed=0):
  """Parameters whose margins are as they should be, embeddings, labels."""
  params, embeddings, labels = random_inputs(head, batch, seed)
  one = sharding.make_mesh(1, jax.devices()[:1])
  params, embeddings, labels = put(one, params, embeddings, labels)
  params = head_lib.constrain(params, head)
  # From wherever they were, so that any mesh may take them.
  params = {name: jnp.asarray(np.asarray(x)) for name, x in params.items()}
  return params, np.asarray(embeddings), np.asarray(labels)


def value_and_gradients(head, mesh, **given):
  def mean(params, embeddings, labels):
    return head_lib.mean_loss(
      params, embeddings, labels, head=head, mesh=mesh, **given
    )

  return jax.jit(jax.value_and_grad(mean, argnums=(0, 1), has_aux=True))


def assert_close(got, want, rtol=2e-5, atol=1e-6):
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, want
  )


@pytest.mark.parametrize("changes", [{}, {"sub_centers": 2}], ids=str)
def test_gradients_are_those_of_a_dense_head_and_of_the_trainer(
  own_mesh, changes
):
  head = make_head(**changes)
  params, embeddings, labels = inputs_of(head)
  (loss, measured), gradients = value_and_gradients(head, own_mesh)(
    params, embeddings, labels
  )
  with jax.enable_x64(True):
    exact = jax.tree.map(lambda x: jnp.asarray(x, "f8"), (params, embeddings))
    want_loss, want = jax.value_and_grad(
      lambda p, x: dense(p, x, labels, head).mean(), argnums=(0, 1)
    )(*exact)
  assert_close(loss, want_loss)
  assert_close(gradients, jax.device_get(want))
  # What the trainer's step has.
  mesh = sharding.make_mesh(4)
  put_there = put(mesh, *on_host(params, embeddings, labels))
  result = jax.jit(partial(head_lib.loss, head=head, mesh=mesh))(*put_there)
  of_weights = weight_gradient(
    put(mesh, *on_host(params, embeddings, labels))[0],
    result.residuals,
    head=head,
    mesh=mesh,
  )
  assert_close(measured.cross_entropy, result.cross_entropy, rtol=1e-6)
  assert_close(gradients[1], result.embedding_gradient, rtol=1e-6, atol=1e-7)
  assert_close(gradients[0][WEIGHTS], of_weights, rtol=1e-6, atol=1e-6)


def on_host(params, embeddings, labels):
  params = {name: np.asarray(value) for name, value in params.items()}
  return params, np.asarray(embeddings), np.asarray(labels)


def test_a_factor_on_the_loss_is_one_on_the_gradients():
  head = make_head()
  params, embeddings, labels = inputs_of(head)

  def scaled(params, embeddings):
    loss, _ = head_lib.mean_loss(params, embeddings, labels, head=head)
    return 3.0 * loss

  got = jax.grad(scaled, argnums=(0, 1))(params, embeddings)
  _, want = value_and_gradients(head, None)(params, embeddings, labels)
  assert_close(got, jax.tree.map(lambda x: 3.0 * x, want))


def test_embeddings_of_half_the_bits_have_such_gradients(own_mesh):
  head = make_head(product_dtype="bfloat16")
  params, embeddings, labels = inputs_of(head)
  half = jnp.asarray(embeddings, jnp.bfloat16)
  (loss, _), gradients = value_and_gradients(head, own_mesh)(
    params, half, labels
  )
  (want, _), exact = value_and_gradients(make_head(), None)(
    params, embeddings, labels
  )
  assert gradients[1].dtype == jnp.bfloat16
  assert gradients[0][WEIGHTS].dtype == jnp.float32
  np.testing.assert_allclose(loss, want, rtol=0.02)
  a, b = (np.asarray(x, "f4").ravel() for x in (gradients[1], exact[1]))
  assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


def test_sampled_classes_alone_have_gradients(own_mesh):
  head = make_head(sample_rate=0.3)
  params, embeddings, labels = inputs_of(head)
  key = jax.random.key(3)
  _, (gradients, _) = value_and_gradients(head, own_mesh, key=key)(
    params, embeddings, labels
  )
  one = sharding.make_mesh(1, jax.devices()[:1])
  drawn = class_sampling.draw(
    jax.random.fold_in(key, 1), jnp.asarray(labels), head, one
  )
  classes = np.unique(np.asarray(drawn.classes))
  classes = classes[classes >= 0]
  assert 11 < len(classes) < 37
  moved = np.flatnonzero(np.any(np.asarray(gradients[WEIGHTS]) != 0, axis=1))
  np.testing.assert_array_equal(moved, classes)
  with jax.enable_x64(True):
    exact = jax.tree.map(lambda x: jnp.asarray(x, "f8"), (params, embeddings))
    want = jax.grad(
      lambda p, x: dense(p, x, labels, head, classes=classes).mean()
    )(*exact)
  assert_close(gradients, jax.device_get(want))


class Loop:
  """Steps of a linear network below a head, as one would write them."""

  def __init__(self, head, mesh, optimizer):
    self.head, self.mesh, self.optimizer = head, mesh, optimizer
    rng = np.random.default_rng(1)
    self.images = rng.normal(size=(48, SIZE)).astype("f4")
    self.labels = rng.integers(0, head.num_classes, 48).astype("i4")

  def start(self):
    params = {
      "network": {"w": jnp.eye(SIZE)},
      "head": head_lib.init(jax.random.key(0), self.head, self.mesh),
    }
    return params, self.optimizer.init(params)

  def run(self, steps):
    @jax.jit
    def step(params, state):
      def loss(params):
        return head_lib.mean_loss(
          params["head"],
          self.images @ params["network"]["w"],
          self.labels,
          head=self.head,
          mesh=self.mesh,
        )

      (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params)
      updates, state = self.optimizer.update(gradients, state, params)
      return optax.apply_updates(params, updates), state, value

    params, state = self.start()
    values = []
    for _ in range(steps):
      params, state, value = step(params, state)
      values.append(float(value))
    return jax.device_get(params), values


SGD = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.5, momentum=0.9))


def margins_of(params, head):
  real = slice(0, head.num_classes)
  return params["head"][ANGULAR][real], params["head"][COSINE][real]


@pytest.mark.parametrize("bounds", ["box", "sigmoid"])
def test_margins_stay_where_they_belong(own_mesh, bounds):
  margin = partial(head_lib.learned, bounds=bounds)
  head = head_lib.make(
    37,
    SIZE,
    angular=margin(0.3, upper=0.8),
    cosine=margin(0.2, upper=0.6),
    scale=8.0,
  )
  optimizer = head_lib.optimizer(SGD, head, margin_rate=2.0)
  params, losses_of_steps = Loop(head, own_mesh, optimizer).run(12)
  assert losses_of_steps[-1] < losses_of_steps[0] / 2
  angular, cosine = margins_of(params, head)
  assert np.ptp(angular) > 0.05 < np.ptp(cosine)
  assert angular.min() >= 0 and angular.max() <= 0.8 + 1e-6
  assert cosine.min() >= 0 and cosine.max() <= 0.6 + 1e-6
  np.testing.assert_allclose(angular.mean(), 0.3, rtol=1e-5)
  np.testing.assert_allclose(cosine.mean(), 0.2, rtol=1e-5)
  assert np.all(params["head"][ANGULAR][37:] == 0)


def test_the_fused_form_makes_the_same_steps(own_mesh):
  head = head_lib.make(37, SIZE, scale=8.0)
  optimizer = head_lib.optimizer(SGD, head, margin_rate=0.5)
  loop = Loop(head, own_mesh, optimizer)
  want, values = loop.run(5)
  fused = head_lib.fused_optimizer(SGD, head, margin_rate=0.5, mesh=own_mesh)

  @jax.jit
  def step(params, states):
    embeddings, pull_back = jax.vjp(
      lambda network: loop.images @ network["w"], params["network"]
    )
    result = head_lib.loss(
      params["head"], embeddings, loop.labels, head=head, mesh=own_mesh
    )
    (gradients,) = pull_back(result.embedding_gradient)
    updates, network_state = SGD.update(
      gradients, states["network"], params["network"]
    )
    head_params, head_state = fused.update(
      result, states["head"], params["head"], loop.labels
    )
    params = {
      "network": optax.apply_updates(params["network"], updates),
      "head": head_params,
    }
    states = {"network": network_state, "head": head_state}
    return params, states, result.cross_entropy.mean()

  params, _ = loop.start()
  states = {
    "network": SGD.init(params["network"]),
    "head": fused.init(params["head"]),
  }
  for value in values:
    params, states, got = step(params, states)
    np.testing.assert_allclose(got, value, rtol=1e-5)
  assert_close(params, want, rtol=1e-4, atol=1e-5)


def test_a_loop_that_forgets_the_margins_cannot_let_them_sink():
  """Plain SGD on all: the loss is that of margins with their mean."""
  head = head_lib.make(37, SIZE, scale=8.0)
  params, labels = head_lib.init(jax.random.key(0), head), jnp.arange(24)
  embeddings = np.random.default_rng(0).normal(size=(24, SIZE)).astype("f4")
  loss = partial(head_lib.mean_loss, head=head)
  first, _ = loss(params, embeddings, labels)
  sunk = params | {ANGULAR: params[ANGULAR] - 0.25}
  again, _ = loss(sunk, embeddings, labels)
  np.testing.assert_allclose(again, first, rtol=1e-5)
  held = params | {ANGULAR: params[ANGULAR].at[3].add(0.1)}
  other, _ = loss(held, embeddings, labels)
  assert abs(float(other) - float(first)) > 1e-4


def test_what_a_loss_remembers_moves_on(own_mesh):
  head = make_head(
    loss=losses.CurricularFace(
      smooth=False, straight_through=False, momentum=0.5
    )
  )
  params, embeddings, labels = inputs_of(head)
  state = head_lib.first_state(head)
  assert state["t"] == 0
  _, measured = head_lib.mean_loss(
    params, embeddings, labels, head=head, mesh=own_mesh, loss_state=state
  )
  np.testing.assert_allclose(
    measured.loss_state["t"], 0.5 * measured.true_cosine.mean(), rtol=1e-5
  )


def test_rewards_are_in_the_loss_and_its_gradient():
  margin = partial(head_lib.learned, rule="lambda", strength=2.0)
  head = head_lib.make(
    37,
    SIZE,
    angular=margin(0.3, upper=0.8),
    cosine=head_lib.fixed(0.1),
    scale=8.0,
  )
  params = head_lib.init(jax.random.key(0), head)
  labels, embeddings = jnp.arange(8), jnp.ones((8, SIZE))
  loss, gradient = jax.value_and_grad(
    lambda p, reward: head_lib.mean_loss(
      p, embeddings, labels, head=head, reward=reward
    )[0]
  )(params, 1.0)
  plain, without = jax.value_and_grad(
    lambda p: head_lib.mean_loss(p, embeddings, labels, head=head, reward=0.0)[
      0
    ]
  )(params)
  np.testing.assert_allclose(plain - loss, 2.0 * 0.3, rtol=1e-5)
  np.testing.assert_allclose(
    np.asarray(without[ANGULAR] - gradient[ANGULAR])[:37], 2.0 / 37, rtol=1e-4
  )


def test_labels_that_are_no_class_are_seen(own_mesh):
  head = make_head()
  params, embeddings, labels = inputs_of(head)
  compiled = value_and_gradients(head, own_mesh)
  for wrong in (37, 38, 250, -1):  # 38 is a padded class.
    labels = np.where(np.arange(24) == 5, wrong, labels).astype("i4")
    with pytest.raises(InputError, match="37 classes"):
      head_lib.mean_loss(params, embeddings, labels, head=head, mesh=own_mesh)
    (loss, measured), _ = compiled(params, embeddings, labels)
    assert np.isnan(loss)
    np.testing.assert_array_equal(
      np.flatnonzero(np.isnan(measured.cross_entropy)), [5]
    )


def call(head=None, mesh=None, **changes):
  head = head or make_head()
  params, embeddings, labels = inputs_of(make_head())
  given = {"params": params, "embeddings": embeddings, "labels": labels}
  head_lib.mean_loss(**given | changes, head=head, mesh=mesh)


DRAWS = losses.ElasticFace(
  smooth=False, straight_through=False, deviation=0.1, space="angular"
)
REMEMBERS = losses.AdaFace(h=0.333, momentum=0.01)
REFUSED = {
  "16 numbers": lambda: call(embeddings=np.ones((24, 8), "f4")),
  "one label each": lambda: call(labels=np.zeros(23, "i4")),
  "whole numbers": lambda: call(labels=np.zeros(24, "f4")),
  "rows of 16": lambda: call(head=make_head(classes=53)),
  "multiple of 8": lambda: call(
    mesh=MESHES["2x4"](),
    embeddings=np.ones((12, SIZE), "f4"),
    labels=np.zeros(12, "i4"),
  ),
  "axes": lambda: call(mesh=jax.make_mesh((8,), ("batch",))),
  "give key": lambda: call(head=make_head(loss=DRAWS)),
  "give loss_state": lambda: call(head=make_head(loss=REMEMBERS)),
  "finds no head": lambda: head_lib.optimizer(
    SGD, make_head(), margin_rate=0.1
  ).init({"w": np.ones(3)}),
  "update\\(gradients": lambda: head_lib.optimizer(
    SGD, make_head(), margin_rate=0.1
  ).update({}, ()),
  "outside of its bounds": lambda: head_lib.learned(0.9, upper=0.8),
  "at least 2 classes": lambda: head_lib.make(1, 16),
}


@pytest.mark.parametrize("said", REFUSED)
def test_mistakes_are_one_sentence(said):
  with pytest.raises(InputError, match=said) as error:
    REFUSED[said]()
  assert "\n" not in str(error.value)
