"""What holds the margins together: rewards, projections, bounds."""

from collections.abc import Callable
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
      params[name] = hold(params[name], params, head, margin)
    else:
      inside = jnp.clip(params[name], margin.lower, margin.upper)
      params[name] = jnp.where(is_real(head), inside, 0.0)
  return params


def hold(
  m_c: Float32[Array, " c"], params: HeadParams, head: Head, margin: Margin
) -> Float32[Array, " c"]:
  """Puts margins on the mean that `Head.held` says, inside their bounds.

  Args:
    m_c: margins, float32 [C].
    params: gives the class sizes, where they count.
    head: what is fixed about the head; `held` is not "none".
    margin: gives the box and the mean.

  Returns:
    float32 [C]; 0 of padded classes.
  """
  if head.held == "sizes":
    return hold_size_means(m_c, params[CLASS_SIZES], head, margin)
  counts_c = None
  if head.held == "images":
    counts_c = _of_mean_one(params[CLASS_SIZES], head)
  return hold_mean(m_c, _mean_weights(params, head), head, margin, counts_c)


class _Search(NamedTuple):
  """The state of the search for the multipliers t of `_shift_to_mean`.

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
  counts_c: Float32[Array, " c"] | Float32[Array, ""] | None = None,
) -> Float32[Array, " c"]:
  """Puts margins into the box [lower, upper] with mean `margin.initial`.

  Where classes count in the mean by the weights that they give by, as they do
  without `counts_c`, the nearest point of that set is clip(m + t w, lower,
  upper) for one t (the condition of Karush, Kuhn and Tucker with one multiplier
  for the mean). With other counts it is the one point of that form in it.

  Args:
    m_c: margins, float32 [C].
    weights_c: how much classes give for the mean, w above 0 and of mean 1 over
      real classes; float32 [C], or a scalar 1.
    head: gives the number of real classes; padded margins stay 0.
    margin: gives the box and the mean.
    counts_c: how much classes count in the mean, likewise; None: as they give.

  Returns:
    float32 [C].
  """
  counted_c = weights_c if counts_c is None else counts_c
  return _shift_to_mean(
    m_c,
    weights_c,
    lambda x_c: real_mean(x_c * counted_c, head),
    lambda t: t,
    head,
    margin,
  )


def hold_size_means(
  m_c: Float32[Array, " c"],
  sizes_c: Float32[Array, " c"],
  head: Head,
  margin: Margin,
) -> Float32[Array, " c"]:
  """The nearest margins whose mean is `margin.initial` at each class size.

  Sizes are told apart up to 16 images; beyond, eight to a doubling.

  Args:
    m_c: margins, float32 [C].
    sizes_c: images of each class, at least 1 of real ones, float32 [C].
    head: gives the number of real classes; padded margins stay 0.
    margin: gives the box and the mean.

  Returns:
    float32 [C].
  """
  group_c = _size_group(sizes_c)
  real_c = is_real(head).astype(jnp.float32)

  def total(x_c: jax.Array) -> jax.Array:
    return jax.ops.segment_sum(x_c * real_c, group_c, _SIZE_GROUPS)

  count_g = jnp.maximum(total(jnp.ones_like(m_c)), 1.0)
  return _shift_to_mean(
    m_c,
    jnp.float32(1.0),
    lambda x_c: total(x_c) / count_g,
    lambda t_g: t_g[group_c],
    head,
    margin,
  )


_SIZE_GROUPS = 192  # Of up to 16 images one by one, then up to 2^26.


def _size_group(sizes_c: Float32[Array, " c"]) -> Int[Array, " c"]:
  """A number for each size, int32 [C] in [0, 192)."""
  finer = 16 + jnp.floor(8 * jnp.log2(jnp.maximum(sizes_c, 1.0) / 16) + 1e-4)
  group_c = jnp.where(sizes_c <= 16, sizes_c, finer)
  return jnp.clip(group_c, 0, _SIZE_GROUPS - 1).astype(jnp.int32)


def _shift_to_mean(
  m_c: Float32[Array, " c"],
  along_c: Float32[Array, " c"] | Float32[Array, ""],
  mean_of: Callable[[jax.Array], jax.Array],
  of_classes: Callable[[jax.Array], jax.Array],
  head: Head,
  margin: Margin,
) -> Float32[Array, " c"]:
  """clip(m + t along, lower, upper) for the t without an excess.

  t is found by Newton's method, kept inside a bisected bracket; one for all
  classes, or one for each of several groups at once.

  Args:
    m_c: margins, [C].
    along_c: how far a class moves with t, above 0.
    mean_of: the mean of [C], or those of the groups; 0 of an empty one.
    of_classes: from numbers like means to those of classes.
    head: gives the number of real classes.
    margin: gives the box and the mean.
  """
  lower, upper = margin.lower, margin.upper
  real_c = is_real(head)

  def moved(t: jax.Array) -> jax.Array:
    return m_c + of_classes(t) * along_c

  def shifted(t: jax.Array) -> jax.Array:
    return jnp.where(real_c, jnp.clip(moved(t), lower, upper), 0.0)

  filled = mean_of(jnp.ones_like(m_c)) > 0

  def excess_of(x_c: jax.Array) -> jax.Array:
    return jnp.where(filled, mean_of(x_c) - margin.initial, 0.0)

  def unsolved(search: _Search) -> jax.Array:
    far = jnp.abs(search.excess) > 1e-6 * max(margin.initial, 1e-3)
    return jnp.any(far) & (search.tries < 50)

  def improve(search: _Search) -> _Search:
    low, high, t, e, tries = search
    low, high = jnp.where(e < 0, t, low), jnp.where(e < 0, high, t)
    moved_c = moved(t)
    free_c = real_c & (moved_c > lower) & (moved_c < upper)
    derivative = mean_of(jnp.where(free_c, along_c, 0.0))
    newton = t - e / derivative  # Not finite where none is free: outside.
    inside = (newton > low) & (newton < high)
    t = jnp.where(inside, newton, (low + high) / 2)
    return _Search(low, high, t, excess_of(shifted(t)), tries + 1)

  zero = jnp.zeros_like(mean_of(m_c))
  low = jnp.min(jnp.where(real_c, (lower - m_c) / along_c, jnp.inf))
  high = jnp.max(jnp.where(real_c, (upper - m_c) / along_c, -jnp.inf))
  start = _Search(
    low + zero, high + zero, zero, excess_of(shifted(zero)), jnp.int32(0)
  )
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
  return _of_mean_one(sizes_c**head.count_power, head)


def _of_mean_one(
  counts_c: Float32[Array, " c"], head: Head
) -> Float32[Array, " c"]:
  """Counts over their mean, 0 of padded classes."""
  counts_c = jnp.where(is_real(head), counts_c, 0.0)
  return counts_c / real_mean(counts_c, head)


def even_gradient(
  gradient_c: Float32[Array, " c"],
  sizes_c: Float32[Array, " c"],
  head: Head,
) -> Float32[Array, " c"]:
  """The gradient of margins over (images / their mean)^`head.gradient_power`.

  Args:
    gradient_c: that of the mean loss, float32 [C].
    sizes_c: images of each class, float32 [C].
    head: what is fixed about the head.
  """
  share_c = jnp.where(is_real(head), _of_mean_one(sizes_c, head), 1.0)
  return gradient_c / share_c**head.gradient_power
