"""Against float64 in NumPy, and against Optax's clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jamsface_jax.run import gradient_norm


def make_gradient(vectors: int) -> dict[str, dict[str, jax.Array]]:
  """A network's: kernels, vectors, a number; sizes that nothing divides."""
  rng = np.random.default_rng(vectors)
  shapes = {"kernel": (3, 3, 5, 7), "dense": (11, 13), "number": ()}
  shapes |= {f"vector{k}": (k % 17 + 1,) for k in range(vectors)}
  return {
    name: {"x": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    for name, shape in shapes.items()
  }


@pytest.mark.parametrize("vectors", [0, 1, 62, 63, 64, 65, 200])
def test_norm_is_that_of_float64(vectors):
  gradient = make_gradient(vectors)
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradient)]
  expected = np.sqrt(sum((x**2).sum() for x in leaves))
  found = jax.jit(gradient_norm.gradient_norm)(gradient)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("where", ["kernel", "vector149", "number"])
def test_what_is_not_finite_shows(where, value):
  gradient = make_gradient(150)
  gradient[where]["x"] = gradient[where]["x"].at[...].set(value)
  assert not jnp.isfinite(gradient_norm.gradient_norm(gradient))


@pytest.mark.parametrize("most", [0.5, 1e3])
def test_clipping_is_that_of_optax(most):
  gradient = make_gradient(150)
  ours = gradient_norm.clip_by_norm(most)
  theirs = optax.clip_by_global_norm(most)
  assert ours.init(gradient) == theirs.init(gradient)
  found, _ = ours.update(gradient, ours.init(gradient))
  expected, _ = theirs.update(gradient, theirs.init(gradient))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected
  )
  assert gradient_norm.gradient_norm(found) <= most * (1 + 1e-6)


def test_a_program_has_few_sums():
  """What this file is for."""
  program = jax.jit(gradient_norm.gradient_norm).lower(make_gradient(200))
  assert program.as_text().count("stablehlo.reduce(") <= 2 + 4
