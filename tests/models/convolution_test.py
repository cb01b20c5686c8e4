"""Gradients of strided convolutions against XLA's own and a float64 sum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jamsface_jax.devices import sharding
from jamsface_jax.models.convolution import convolve, input_gradient

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(scope="module")
def mesh():
  """Of any shape: the batch is split over all devices."""
  return sharding.make_mesh(4)


def dense_input_gradient(gradient, kernel, shape, strides, padding):
  """The definition, tap by tap, in float64."""
  (above, below), (left, right) = padding
  batch, height, width, channels = shape
  padded = np.zeros(
    (batch, above + height + below, left + width + right, channels)
  )
  for row in range(gradient.shape[1]):
    for column in range(gradient.shape[2]):
      top, start = row * strides[0], column * strides[1]
      padded[
        :, top : top + kernel.shape[0], start : start + kernel.shape[1]
      ] += np.einsum("bf,hwcf->bhwc", gradient[:, row, column], kernel)
  return padded[:, above : above + height, left : left + width]


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 5)])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (3, 2)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (0, 2))])
def test_input_gradient_are_the_definition(size, window, strides, padding):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, *size, 2))
  kernel = rng.normal(size=(window, window, 2, 4))
  result = lax.conv_general_dilated(
    jnp.asarray(x),
    jnp.asarray(kernel),
    strides,
    padding,
    dimension_numbers=LAYOUT,
  )
  gradient = rng.normal(size=result.shape)
  got = input_gradient(
    jnp.asarray(gradient), jnp.asarray(kernel), x.shape, strides, padding
  )
  want = dense_input_gradient(gradient, kernel, x.shape, strides, padding)
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolve_has_the_values_and_gradients_of_xla(mesh, strides, dtype):
  rng = np.random.default_rng(1)
  batch = jax.NamedSharding(mesh, jax.P(("data", "model")))
  x = jax.device_put(jnp.asarray(rng.normal(size=(8, 9, 9, 4)), dtype), batch)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 5)), dtype)
  padding = ((1, 1), (1, 1))

  def result(function):
    def loss(x, kernel):
      y = function(x, kernel, strides, padding, dimension_numbers=LAYOUT)
      return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)

  got, want = result(convolve), result(lax.conv_general_dilated)
  tolerance = 1e-5 if dtype == "float32" else 5e-2
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == w.dtype
    np.testing.assert_allclose(
      np.asarray(g, np.float32),
      np.asarray(w, np.float32),
      rtol=tolerance,
      atol=10 * tolerance,
    )


@pytest.mark.parametrize(
  ("size", "window", "padding"),
  [
    ((9, 9), 3, ((1, 1), (1, 1))),
    ((7, 10), 3, ((1, 1), (1, 1))),
    ((6, 5), 2, ((0, 1), (2, 0))),
    ((5, 5), 5, ((0, 0), (0, 0))),  # All of the image.
  ],
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize(
  ("channels", "outputs", "dtype"),
  [
    (1, 3, "float32"),
    (1, 3, "bfloat16"),
    (2, 6, "float32"),
    (1, 6, "float32"),
    (3, 3, "float32"),
  ],
)
def test_groups_have_the_values_and_gradients_of_the_definition(
  mesh, size, window, padding, strides, channels, outputs, dtype
):
  """Against XLA in float64."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(8, *size, 3 * channels))
  kernel = rng.normal(size=(window, window, channels, outputs))
  x, kernel = (np.asarray(jnp.asarray(a, dtype), float) for a in (x, kernel))

  settings = {"dimension_numbers": LAYOUT, "feature_group_count": 3}

  def result(function, x, kernel, *, sums):
    def loss(x, kernel):
      y = function(x, kernel, strides, padding, **settings)
      return jnp.sum(jnp.sin(y.astype(sums))), y

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)

  batch = jax.NamedSharding(mesh, jax.P(("data", "model")))
  placed = jax.device_put(jnp.asarray(x, dtype), batch)
  narrow = jnp.asarray(kernel, dtype)
  got = result(convolve, placed, narrow, sums=jnp.float32)
  # Without gradients it is another program.
  alone = jax.jit(partial(convolve, **settings), static_argnums=(2, 3))(
    placed, narrow, strides, padding
  )
  with jax.enable_x64(True):
    want = result(lax.conv_general_dilated, x, kernel, sums=jnp.float64)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} <= {
    dtype,
    "float32",
  }
  tolerance = 1e-5 if dtype == "float32" else 3e-2
  got, want = (
    (*jax.tree.leaves(got), alone),
    (*jax.tree.leaves(want), want[0][1]),
  )
  for g, w in zip(got, want, strict=True):
    np.testing.assert_allclose(
      np.asarray(g, float), w, rtol=tolerance, atol=10 * tolerance
    )


def test_other_platforms_keep_xlas_form():
  x, kernel = jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 1, 4))
  settings = {"dimension_numbers": LAYOUT, "feature_group_count": 4}

  def text(*platforms):
    return (
      jax.jit(
        lambda x: convolve(x, kernel, (1, 1), ((1, 1), (1, 1)), **settings)
      )
      .trace(x)
      .lower(lowering_platforms=platforms)
      .as_text()
    )

  assert "stablehlo.convolution" in text("tpu")
  assert "stablehlo.convolution" in text("cuda")
  assert "stablehlo.convolution" not in text("cpu")


def test_large_groups_are_left_to_xla():
  x, kernel = jnp.ones((1, 4, 4, 12)), jnp.ones((3, 3, 6, 4))
  settings = {"dimension_numbers": LAYOUT, "feature_group_count": 2}
  padding = ((1, 1), (1, 1))
  got = jax.grad(
    lambda x: convolve(x, kernel, (2, 2), padding, **settings).sum()
  )
  assert float(got(x).sum()) == float(
    lax.conv_general_dilated(x, kernel, (2, 2), padding, **settings).sum()
  )
