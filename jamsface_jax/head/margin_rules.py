"""What holds the margins together: rewards, projections, bounds."""

import jax
import jax.numpy as jnp
from jax import lax

from jamsface_jax.head.parameters import (
  ANGULAR,
  CLASS_SIZES,
  COSINE,
  Head,
  HeadParams,
  Margin,
  _is_real,
  _real_mean,
)


def margin_reward(
  params: HeadParams, labels: jax.Array, head: Head
) -> jax.Array:
  """What rule "lambda" subtracts from the loss: lambda times a mean.

  Over all N classes: at a fixed point a class with n images and weight w in the
  mean has 1 - p = lambda w N_images / (N n s), so that the margin falls with n
  where w rises more slowly. Over the batch: n cancels (see docs/losses.md).
  Ours where the abstract is silent.

  Args:
    params: as `init` returns; of it the margins.
    labels: of the batch, int [B].
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
        mean = _real_mean(params[name] * _mean_weights(params, head), head)
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
      params[name] = jnp.where(_is_real(head), inside, 0.0)
  return params


def hold_mean(
  m_c: jax.Array, weights_c: jax.Array, head: Head, margin: Margin
) -> jax.Array:
  """Projects margins on the box [lower, upper] with mean `margin.initial`.

  The nearest point of that set is clip(m + t w, lower, upper) for one t (the
  condition of Karush, Kuhn and Tucker with one multiplier for the mean). t is
  found by Newton's method, kept inside a bisected bracket.

  Args:
    m_c: margins, float32 [C].
    weights_c: of classes in the mean, w above 0 and of mean 1 over real
      classes; float32 [C], or a scalar 1.
    head: gives the number of real classes; padded margins stay 0.
    margin: gives the box and the mean.

  Returns:
    float32 [C].
  """
  target, lower, upper = margin.initial, margin.lower, margin.upper
  real_c = _is_real(head)

  def shifted(t):
    moved_c = jnp.clip(m_c + t * weights_c, lower, upper)
    return jnp.where(real_c, moved_c, 0.0)

  def excess(t):
    return _real_mean(shifted(t) * weights_c, head) - target

  def unsolved(carry):
    _, _, _, e, i = carry
    return (jnp.abs(e) > 1e-6 * max(target, 1e-3)) & (i < 50)

  def improve(carry):
    low, high, t, e, i = carry
    low, high = jnp.where(e < 0, t, low), jnp.where(e < 0, high, t)
    moved_c = m_c + t * weights_c
    free_c = real_c & (moved_c > lower) & (moved_c < upper)
    slope = _real_mean(jnp.where(free_c, weights_c**2, 0.0), head)
    newton = t - e / slope  # Not finite where none is free: outside.
    inside = (newton > low) & (newton < high)
    t = jnp.where(inside, newton, (low + high) / 2)
    return low, high, t, excess(t), i + 1

  low = jnp.min(jnp.where(real_c, (lower - m_c) / weights_c, jnp.inf))
  high = jnp.max(jnp.where(real_c, (upper - m_c) / weights_c, -jnp.inf))
  zero = jnp.zeros_like(low)
  *_, t, _, _ = lax.while_loop(
    unsolved, improve, (low, high, zero, excess(zero), 0)
  )
  return shifted(t)


def margin_statistics(params: HeadParams, head: Head) -> dict[str, jax.Array]:
  """Statistics of both margins over real classes, float32 scalars by name.

  Mean, minimum and maximum; and of those that are learned the share of classes
  within a thousandth of the box from either bound.
  """
  real_c = _is_real(head)
  statistics = {}
  for name, kept in (("margin_angular", ANGULAR), ("margin_cosine", COSINE)):
    m_c, margin = params[kept], head.margin(kept)
    statistics[f"{name}_mean"] = _real_mean(m_c, head)
    if margin.learned:
      near = 1e-3 * (margin.upper - margin.lower)
      for bound, at_c in (
        ("lower", m_c <= margin.lower + near),
        ("upper", m_c >= margin.upper - near),
      ):
        share = _real_mean(at_c.astype(jnp.float32), head)
        statistics[f"{name}_at_{bound}"] = share
    statistics[f"{name}_min"] = jnp.min(jnp.where(real_c, m_c, jnp.inf))
    statistics[f"{name}_max"] = jnp.max(jnp.where(real_c, m_c, -jnp.inf))
  return statistics


def _mean_weights(params: HeadParams, head: Head) -> jax.Array:
  """Of classes in the means of their margins: float32 [C], or a scalar 1."""
  if not head.count_power:
    return jnp.float32(1.0)
  sizes_c = lax.stop_gradient(params[CLASS_SIZES])
  counts_c = jnp.where(_is_real(head), sizes_c**head.count_power, 0.0)
  return counts_c / _real_mean(counts_c, head)
