"""Gradients kept below a norm."""

import jax
import jax.numpy as jnp


def clip_factor(norm: jax.Array, largest: float) -> jax.Array:
  """Returns what a gradient of this norm is multiplied by; largest 0: 1."""
  return jnp.minimum(1.0, largest / norm) if largest else jnp.float32(1.0)
