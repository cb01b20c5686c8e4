"""The norm of a gradient of which most arrays are small."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32

from jamsface_jax.head import clip_factor

# At once: a kernel of a GPU takes so many operands well.
_TOGETHER = 64


def gradient_norm(gradient: Any) -> Float32[Array, ""]:
  """The Euclidean norm over all elements of all arrays.

  Equal to `optax.tree.norm` up to rounding. What differs is the program: two in
  three arrays of a backbone are vectors of a few hundred numbers, and a sum for
  each is as many kernels that cost more to start than to run.

  Args:
    gradient: a tree of float32 arrays, replicated.
  """
  arrays = jax.tree.leaves(gradient)
  vectors = [array.ravel() for array in arrays if array.ndim < 2]
  parts = [array for array in arrays if array.ndim >= 2]
  parts += [
    jnp.concatenate(vectors[k : k + _TOGETHER])
    for k in range(0, len(vectors), _TOGETHER)
  ]
  return optax.tree.norm(parts)


def clip_by_norm(most: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, by this file's norm.

  Args:
    most: the largest norm of an update.
  """

  def clip(updates: Any, params: Any) -> Any:
    del params
    factor = clip_factor(gradient_norm(updates), most)
    return jax.tree.map(lambda x: factor * x, updates)

  return optax.stateless(clip)
