"""What holds the margins together: rewards, projections, bounds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int

from jamsface_jax.head.parameters import (
  ANGULAR,
  CLASS_SIZES,
  COSINE,
  Head,
  HeadParams,
  Margin,
  is_real,
  real_mean,
)


def margin_reward(
  params: HeadParams, labels: Int[Array, " b"], head: Head
) -> Float32[Array, ""]:
  """What rule "lambda" subtracts from the loss: lambda times a mean.

  Over all N classes: at a fixed point a class with n images and weight w in the
  mean has 1 - p = lambda w N_images / (N n s), so that the margin falls with n
  where w rises more slowly. Over the batch: n cancels (see docs/losses.md).
  Ours where the abstract is silent.

  Args:
    params: as `init` returns; the weights may be missing.
    labels: classes of the batch, int [B].
    head: what is fixed about the head.

  Returns:
    float32 scalar; 0 for margins that are frozen or held by rule "mean".
  """
  reward = jnp.float32(0.0)
  for name in (ANGULAR, COSINE):
    margin = head.margin(name)
    if margin.learned and margin.rule == "lambda":
      if margin.rewarded == "batch":
        mean = params[name][labels].mean()
      else:
        mean = real_mean(params[name] * _mean_weights(params, head), head)
      reward += margin.strength * mean
  return reward


def constrain(params: HeadParams, head: Head) -> HeadParams:
  """Puts learned margins back into their box, and on their mean if it is held.

  Called after each step of the optimizer.
  """
  params = dict(params)
  for name in (ANGULAR, COSINE):
    margin = head.margin(name)
    if not margin.learned:
      continue
    if margin.rule == "mean":
      params[name] = hold_mean(
        params[name], _mean_weights(params, head), head, margin
      )
    else:
      inside = jnp.clip(params[name], margin.lower, margin.upper)
      params[name] = jnp.where(is_real(head), inside, 0.0)
  return params


class _Search(NamedTuple):
  """The state of the search for the multiplier t of `hold_mean`.

  Attributes:
    low: t is not below it.
    high: t is not above it.
    t: the best so far.
    excess: by how much the mean at t is too large.
    tries: steps done.
  """

  low: jax.Array
  high: jax.Array
  t: jax.Array
  excess: jax.Array
  tries: jax.Array


def hold_mean(
  m_c: Float32[Array, " c"],
  weights_c: Float32[Array, " c"] | Float32[Array, ""],
  head: Head,
  margin: Margin,
) -> Float32[Array, " c"]:
  """Projects margins on the box [lower, upper] with mean `margin.initial`.

  The nearest point of that set is clip(m + t w, lower, upper) for one t (the
  condition of Karush, Kuhn and Tucker with one multiplier for the mean). t is
  found by Newton's method, kept inside a bisected bracket.

  Args:
    m_c: margins, float32 [C].
    weights_c: how much classes count in the mean, w above 0 and of mean 1 over
      real classes; float32 [C], or a scalar 1.
    head: gives the number of real classes; padded margins stay 0.
    margin: gives the box and the mean.

  Returns:
    float32 [C].
  """
  target, lower, upper = margin.initial, margin.lower, margin.upper
  real_c = is_real(head)

  def shifted(t: jax.Array) -> jax.Array:
    moved_c = jnp.clip(m_c + t * weights_c, lower, upper)
    return jnp.where(real_c, moved_c, 0.0)

  def excess(t: jax.Array) -> jax.Array:
    return real_mean(shifted(t) * weights_c, head) - target

  def unsolved(search: _Search) -> jax.Array:
    far = jnp.abs(search.excess) > 1e-6 * max(target, 1e-3)
    return far & (search.tries < 50)

  def improve(search: _Search) -> _Search:
    low, high, t, e, tries = search
    low, high = jnp.where(e < 0, t, low), jnp.where(e < 0, high, t)
    moved_c = m_c + t * weights_c
    free_c = real_c & (moved_c > lower) & (moved_c < upper)
    derivative = real_mean(jnp.where(free_c, weights_c**2, 0.0), head)
    newton = t - e / derivative  # Not finite where none is free: outside.
    inside = (newton > low) & (newton < high)
    t = jnp.where(inside, newton, (low + high) / 2)
    return _Search(low, high, t, excess(t), tries + 1)

  low = jnp.min(jnp.where(real_c, (lower - m_c) / weights_c, jnp.inf))
  high = jnp.max(jnp.where(real_c, (upper - m_c) / weights_c, -jnp.inf))
  zero = jnp.zeros_like(low)
  start = _Search(low, high, zero, excess(zero), jnp.int32(0))
  return shifted(lax.while_loop(unsolved, improve, start).t)


def margin_statistics(
  params: HeadParams, head: Head
) -> dict[str, Float32[Array, ""]]:
  """Statistics of both margins over real classes, float32 scalars by name.

  Mean, minimum and maximum; and of those that are learned the share of classes
  within a thousandth of the box from either bound.
  """
  real_c = is_real(head)
  statistics = {}
  for name, kept in (("margin_angular", ANGULAR), ("margin_cosine", COSINE)):
    m_c, margin = params[kept], head.margin(kept)
    statistics[f"{name}_mean"] = real_mean(m_c, head)
    if margin.learned:
      near = 1e-3 * (margin.upper - margin.lower)
      for bound, at_c in (
        ("lower", m_c <= margin.lower + near),
        ("upper", m_c >= margin.upper - near),
      ):
        share = real_mean(at_c.astype(jnp.float32), head)
        statistics[f"{name}_at_{bound}"] = share
    statistics[f"{name}_min"] = jnp.min(jnp.where(real_c, m_c, jnp.inf))
    statistics[f"{name}_max"] = jnp.max(jnp.where(real_c, m_c, -jnp.inf))
  return statistics


def _mean_weights(
  params: HeadParams, head: Head
) -> Float32[Array, " c"] | Float32[Array, ""]:
  """How much classes count in the means of their margins: [C], or 1 for all."""
  if not head.count_power:
    return jnp.float32(1.0)
  sizes_c = lax.stop_gradient(params[CLASS_SIZES])
  counts_c = jnp.where(is_real(head), sizes_c**head.count_power, 0.0)
  return counts_c / real_mean(counts_c, head)
