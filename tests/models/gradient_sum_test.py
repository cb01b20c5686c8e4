"""Gradients of parameters, summed over devices: against float64."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jamsface_jax.devices import sharding
from jamsface_jax.models import gradient_sum, init_backbone
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny

# What the names of parameters end in that are used in the network's dtype.
NARROW = ("kernel", "slope", "proj/bias", "fc1/bias", "fc2/bias")


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(4)


def split(array, mesh):
  return jax.device_put(array, jax.NamedSharding(mesh, sharding.BATCH))


def gradient(function, x, parameter, mesh, *, wide):
  """Gradient of the sum over examples in the parameter, float32."""

  def loss(parameter, x):
    if not wide:
      return jnp.sum(gradient_sum.apply(function, x, parameter))
    with gradient_sum.over(mesh):
      return jnp.sum(gradient_sum.apply(function, x, parameter))

  return np.asarray(jax.jit(jax.grad(loss))(parameter, x), np.float64)


def multiply(x, parameter):
  return x * jnp.broadcast_to(parameter, x.shape)


def test_what_bfloat16_cannot_add_is_not_lost(mesh):
  """1 and seven times 2^-8 are 9 bits apart, and more, one by one."""
  x = np.full((8, 4), 2.0**-8)
  x[3] = 1.0
  placed = split(jnp.asarray(x, jnp.bfloat16), mesh)
  ones = jnp.ones(4)
  wide = gradient(multiply, placed, ones, mesh, wide=True)
  np.testing.assert_array_equal(wide, x.sum(0))
  narrow = gradient(multiply, placed, ones, mesh, wide=False)
  assert (narrow != x.sum(0)).all()


def test_error_of_the_sum_is_that_of_its_parts(mesh):
  """A product's gradient: each device's part may be rounded, no sum is."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(64, 32)), jnp.bfloat16)
  kernel = jnp.asarray(rng.normal(size=(32, 48)), jnp.float32)
  parts = np.asarray(x, np.float64).reshape(8, 8, 32).sum(1)
  got = gradient(jnp.dot, split(x, mesh), kernel, mesh, wide=True)
  error = np.abs(got - parts.sum(0)[:, None])
  assert (error <= 2.0**-9 * 1.01 * np.abs(parts).sum(0)[:, None]).all()


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("iresnet", {"stages": (1, 1), "squeeze_reduction": 4}),
    ("mobilefacenet", {"stages": (1, 1, 1, 1)}),
    ("fmobilenet", {"stages": (1, 1)}),
    ("vit", {"stages": (1,)}),
    ("edgenext", {"stages": (1, 1, 1, 1), "width": 0.5}),
  ],
)
def test_no_parameter_is_left_out(mesh, name, changes):
  """None of a network's gradients has only the bits of bfloat16."""
  config = tiny(base_config())
  config.model.name, config.model.dtype = name, "bfloat16"
  config.model.width = 0.25 if name == "mobilefacenet" else 0.125
  config.model.embedding_size = 16
  config.model.update(changes)
  model = make_model(make_settings(config))
  variables = jax.jit(lambda key: init_backbone(key, model, 32))(
    jax.random.key(0)
  )
  images = split(jax.random.uniform(jax.random.key(1), (16, 32, 32, 3)), mesh)

  def rounded(wide):
    """Parameters of layers in bfloat16 whose gradient bfloat16 holds."""

    def loss(params, images):
      embeddings, _ = model.apply(
        {**variables, "params": params},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(2)},
      )
      return jnp.sum(jnp.sin(7 * embeddings))

    def wide_loss(params, images):
      with gradient_sum.over(mesh):
        return loss(params, images)

    gradient = jax.jit(jax.grad(wide_loss if wide else loss))
    found = gradient(variables["params"], images)
    flat = flax.traverse_util.flatten_dict(found, sep="/")
    return {
      name
      for name, g in flat.items()
      if name.endswith(NARROW) and np.array_equal(g, g.astype(jnp.bfloat16))
    }

  assert rounded(wide=False)
  assert not rounded(wide=True)
