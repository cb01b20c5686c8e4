"""`Linears`, as each platform has it, against float64 in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jamsface_jax.models import layers


@pytest.mark.parametrize("platform", ["tpu", "default"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_linears_are_products_with_parts_of_their_kernel(
  platform, dtype, monkeypatch
):
  """What a TPU does is done here, too; the compiler vouches for the choice."""
  monkeypatch.setattr(
    layers.lax,
    "platform_dependent",
    lambda *arrays, **choices: choices[platform](*arrays),
  )
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(3, 5, 7)), rng.normal(size=(7, 33))
  weight = rng.normal(size=(3, 3, 5, 11))  # Of the results, to be summed.
  module = layers.Linears(11, 3, dtype, jax.nn.initializers.zeros)

  def total(kernel, x):
    parts = module.apply({"params": {"kernel": kernel}}, x)
    assert [part.dtype for part in parts] == [dtype] * 3
    return sum(
      jnp.sum(part.astype(jnp.float32) * w)
      for part, w in zip(parts, weight, strict=True)
    )

  narrow = jnp.asarray(kernel, jnp.float32), jnp.asarray(x, jnp.float32)
  found, (of_kernel, of_x) = jax.value_and_grad(total, argnums=(0, 1))(*narrow)
  results = np.split(x @ kernel, 3, axis=-1)
  tolerance = 1e-5 if dtype == jnp.float32 else 0.05
  expected = sum((r * w).sum() for r, w in zip(results, weight, strict=True))
  scale = np.sqrt(sum((w**2).sum() for w in weight) * 7)
  assert abs(found - expected) < tolerance * scale
  side_by_side = np.concatenate(list(weight), axis=-1)
  for gradient, wanted in (
    (of_kernel, np.einsum("btc,btf->cf", x, side_by_side)),
    (of_x, side_by_side @ kernel.T),
  ):
    error = np.abs(gradient - wanted).max()
    assert error < tolerance * np.abs(wanted).max()
