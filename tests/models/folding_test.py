"""Maps with pixels folded into channels: the same numbers as plain ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jamsface_jax.models.folding import fold_factor, refold
from jamsface_jax.models.layers import BatchNorm, Conv, PReLU
from tests.models.models_test import make_images, random_variables, tiny

# Pixels folded in the input and in the result, and the stride; those of an
# IResNet's stages, and others that a width or a size of images may make.
FOLDS = [(1, 2, 1), (2, 2, 1), (2, 2, 2), (2, 1, 2), (4, 2, 2), (4, 4, 1)]
MORE_FOLDS = [(1, 4, 2), (4, 1, 2), (2, 4, 1), (2, 4, 2), (4, 4, 2), (2, 1, 1)]


def outputs_and_gradients(layer, variables, x, weight):
  """The result, and the gradients of a weighted sum of it."""

  def loss(params, x):
    y = layer.apply({"params": params}, x)
    return jnp.sum(refold(y, layer.fold_out, 1) * weight), y

  both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  (_, y), gradients = jax.jit(both)(variables["params"], x)
  return refold(y, layer.fold_out, 1), *gradients


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
  "folds",
  FOLDS + [pytest.param(one, marks=pytest.mark.slow) for one in MORE_FOLDS],
)
def test_a_folded_convolution_is_the_plain_one(folds, kernel_size):
  fold, fold_out, stride = folds
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 8, 3)))
    weight = jnp.asarray(rng.normal(size=(2, -(-5 // stride), 8 // stride, 4)))

    def conv(fold, fold_out):
      init = nn.initializers.normal(0.1)
      return Conv(4, kernel_size, stride, "float64", init, fold, fold_out)

    shape = (kernel_size, kernel_size, 3, 4)
    variables = {"params": {"kernel": jnp.asarray(rng.normal(size=shape))}}
    want = outputs_and_gradients(conv(1, 1), variables, x, weight)
    got = outputs_and_gradients(
      conv(fold, fold_out), variables, refold(x, 1, fold), weight
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      assert b.dtype == np.float64
      np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group_size", [0, 2])
def test_folded_normalisation_and_activation(group_size):
  x = make_images(4, size=8)
  for plain, folded in (
    (BatchNorm(group_size, "float32"), BatchNorm(group_size, "float32", 4)),
    (PReLU(), PReLU(4)),
  ):
    train = {"train": True} if isinstance(plain, BatchNorm) else {}
    variables = plain.init(jax.random.key(0), x, **train)
    variables = jax.tree.map(lambda a: a + jnp.arange(3.0), variables)

    def apply(layer, x, variables=variables, train=train):
      return layer.apply(variables, x, **train, mutable=["batch_stats"])

    want, want_stats = apply(plain, x)
    got, stats = apply(folded, refold(x, 1, 4))
    np.testing.assert_allclose(refold(got, 4, 1), want, rtol=1e-5, atol=1e-6)
    for a, b in zip(
      jax.tree.leaves(stats), jax.tree.leaves(want_stats), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def network(lanes, kind, **changes):
  return tiny(lanes=lanes, width=1 / 8, **changes).clone(kind=kind)


@pytest.mark.parametrize(
  ("size", "lanes", "fold", "kind", "changes"),
  [
    (16, 16, 2, "arcface", {"stages": (2, 1)}),
    (16, 32, 4, "arcface", {"batch_norm_group": 2}),
    # Stages of an odd number of columns, where nothing can be folded.
    (14, 64, 2, "ir", {"squeeze_reduction": 4, "stages": (1, 1)}),
    (16, 16, 2, "evolve", {"stem_stride": 2}),
  ],
)
def test_a_folded_network_is_the_plain_one(size, lanes, fold, kind, changes):
  images = make_images(4, size)
  plain = network(1, kind, **changes)
  folded = network(lanes, kind, **changes)
  variables = random_variables(plain, images)
  assert jax.tree.map(jnp.shape, random_variables(folded, images)) == (
    jax.tree.map(jnp.shape, variables)
  )

  def loss(model, params, images):
    y, updated = model.apply(
      {"params": params, "batch_stats": variables["batch_stats"]},
      images,
      train=True,
      mutable=["batch_stats"],
    )
    weight = jnp.arange(1.0, y.size + 1).reshape(y.shape) / y.size
    return jnp.sum(y * weight), (y, updated)

  def run(model):
    return jax.jit(
      jax.value_and_grad(
        lambda params, images: loss(model, params, images),
        argnums=(0, 1),
        has_aux=True,
      )
    )(variables["params"], images)

  for a, b in zip(
    jax.tree.leaves(run(folded)), jax.tree.leaves(run(plain)), strict=True
  ):
    scale = max(float(jnp.abs(b).max()), 1.0)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * scale)
  # It is another program.
  assert stem_channels(folded, variables, images) == 8 * fold
  assert stem_channels(plain, variables, images) == 8


def stem_channels(model, variables, images):
  """Channels of what the first convolution of a network makes."""
  program = jax.make_jaxpr(
    lambda images: model.apply(variables, images, train=False)
  )(images)
  first = next(e for e in program.eqns if e.primitive.name.startswith("conv_"))
  return first.outvars[0].aval.shape[-1]


def test_how_many_pixels_are_folded():
  assert fold_factor(64, 112, 128) == 2
  assert fold_factor(128, 28, 128) == fold_factor(64, 112, 1) == 1
  assert fold_factor(32, 112, 128) == 4
  # 55 columns cannot be halved, 110 once.
  assert fold_factor(16, 55, 128) == 1
  assert fold_factor(16, 110, 128) == 2
  for channels, columns, lanes in itertools.product(
    (3, 16, 48, 64), (7, 12, 56), (1, 48, 128)
  ):
    fold = fold_factor(channels, columns, lanes)
    assert columns % fold == 0
    assert fold == 1 or fold * channels <= lanes
