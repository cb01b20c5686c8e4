"""Margins: from a cosine to the penalised cosine of the true class.

Each function takes the cosine of every example to its own class and the margins
of that class, and returns what the softmax sees in its place.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Floor of sin^2: the derivative of the square root is infinite at 0.
SINE_FLOOR = 1e-7

PerExample = Float[Array, " b"]


def joint(
  cosine: PerExample,
  angular_margin: PerExample,
  cosine_margin: PerExample,
  *,
  smooth: bool,
) -> PerExample:
  r"""Joint margin in the angular and the cosine space: cos(t + a) - c.

  With c = 0 this is ArcFace (https://arxiv.org/abs/1801.07698, eq. 3), with
  a = 0 CosFace (https://arxiv.org/abs/1801.09414, eq. 4), with both 0 the
  normalised softmax. JAMsFace (doi 10.1007/s00521-023-08732-5) names margins
  learned per class in both spaces; only its abstract was at hand, so that this
  form of the sum is ours.

  Beyond t = pi - a the shifted cosine would rise again. Two continuations keep
  it falling there: `cos t - a sin a`, that of ArcFace's public code, which
  jumps at the seam; and `-2 - cos(t + a)` (ours), which meets it with equal
  value and derivative in t and in a, as learned margins want. Gradients are
  the true ones with respect to all three arguments.

  Args:
    cosine: cos t to the true class, float [B], in [-1, 1].
    angular_margin: a in radians, float [B], in [0, pi).
    cosine_margin: c, float [B].
    smooth: continue by `-2 - cos(t + a)` instead of `cos t - a sin a`.

  Returns:
    The penalised cosine, float [B].
  """
  sin_a, cos_a = jnp.sin(angular_margin), jnp.cos(angular_margin)
  shifted = shift(cosine, angular_margin)
  beyond = -2.0 - shifted if smooth else cosine - angular_margin * sin_a
  return jnp.where(cosine > -cos_a, shifted, beyond) - cosine_margin


def shift(cosine: PerExample, angular_margin: PerExample) -> PerExample:
  """cos(t + a) of cos t and a, float [B]: falls with t up to pi - a only."""
  # arccos has an infinite derivative at +-1, so expand cos(t + a) instead.
  sine = jnp.sqrt(jnp.maximum(1.0 - cosine**2, SINE_FLOOR))
  return cosine * jnp.cos(angular_margin) - sine * jnp.sin(angular_margin)


def angle(cosine: Float[Array, "*n b"]) -> Float[Array, "*n b"]:
  """The angle t of cos t, radians, any shape; its derivative is finite."""
  sine = jnp.sqrt(jnp.maximum(1.0 - cosine**2, SINE_FLOOR))
  return jnp.arctan2(sine, cosine)


def combined(
  cosine: PerExample,
  multiplier: float,
  angular_margin: PerExample,
  cosine_margin: PerExample,
) -> PerExample:
  """Combined margin cos(m t + a) - c, falling over all angles.

  Beyond pi it goes on as (-1)^k cos(m t + a) - 2 k with k = floor((m t + a) /
  pi), which is psi of SphereFace (https://arxiv.org/abs/1704.08063, eq. 7) with
  an angle more; ArcFace (https://arxiv.org/abs/1801.07698, eq. 4), whose three
  margins these are, leaves it open.

  Args:
    cosine: cos t to the true class, float [B].
    multiplier: m.
    angular_margin: a in radians, float [B].
    cosine_margin: c, float [B].

  Returns:
    The penalised cosine, float [B].
  """
  shifted = multiplier * angle(cosine) + angular_margin
  k = jnp.floor(shifted / jnp.pi)
  return (1 - 2 * (k % 2)) * jnp.cos(shifted) - 2 * k - cosine_margin
