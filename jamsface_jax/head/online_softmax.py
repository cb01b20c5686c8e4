"""Sums over the other classes of each example, made in one walk.

The online softmax of https://arxiv.org/abs/2205.14135, section 3.1, with class
weights in the place of values: a running log-sum-exp, and the running sum of
exp(s cos) w_j under the same largest logit, which is the gradient of the
embeddings once the normaliser is known. Shapes are those of `forward`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

from jamsface_jax.head.chunks import (
  Chunk,
  count_chunks,
  count_kept,
  take_classes,
  take_offsets,
  walk,
)
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.layout import varying
from jamsface_jax.head.logits import (
  MASKED,
  Examples,
  Logits,
  inverse_lengths,
  make_logits,
  product,
  product_unless_below,
)
from jamsface_jax.head.losses import LossState
from jamsface_jax.head.parameters import (
  WEIGHTS,
  Head,
  HeadParams,
  logit_offsets,
)


class Sums(NamedTuple):
  """What the first walk has summed of this shard's classes but the true ones.

  Attributes:
    best_b: largest logit before classes are reweighted or weighed.
    top_b: largest logit; the bias if classes count one by one.
    sum_b: log-sum-exp = top + log(sum); if classes count one by one, the sum of
      log(1 + exp(l - bias)).
    weighted_bd: sum of exp(l - top) u, u the gradient of the cosine in x.
    cosine_sum_b: sum of exp(l - top) cos; None if no scale has a gradient.
    share_sum_b: sum of exp(l - top) / (1 + exp(l - top)); None if not one by
      one.
    kept: cosines to keep, or None.
    inverse_length_r: 1 / |w| of every weight row walked, so that the second
      walk need not sum squares again; None if the loss takes them as they are.
    skipped: number of blocks that were skipped; in the end their share.
  """

  best_b: jax.Array
  top_b: jax.Array
  sum_b: jax.Array
  weighted_bd: jax.Array
  cosine_sum_b: jax.Array | None
  share_sum_b: jax.Array | None
  kept: jax.Array | None
  inverse_length_r: jax.Array | None
  skipped: jax.Array


def sum_others(
  params: HeadParams,
  sample: Sample | None,
  examples: Examples,
  loss_state: LossState,
  bias: Float32[Array, ""],
  head: Head,
) -> Sums:
  """Walks this shard's classes, and sums over all but the true ones.

  Args:
    params: parameters of the head, this device's part.
    sample: this device's slots of the classes to walk; None: all of its shard.
    examples: those of this device.
    loss_state: what the loss remembers.
    bias: what `top_b` is if classes count one by one, a scalar.
    head: what is fixed about the head.
  """
  w_rk, offset_r = params[WEIGHTS], logit_offsets(params, head)
  if sample is not None:
    w_rk = take_classes(w_rk, sample.rows, head)
    offset_r = take_offsets(offset_r, sample)

  def step(chunk: Chunk, sums: Sums) -> Sums:
    w_nk = chunk.cut(w_rk)
    classes = chunk.classes(sample, offset_r, head)
    inverse_k1 = inverse_lengths(w_nk, head)
    logits = make_logits(examples, loss_state, w_nk, inverse_k1, classes, head)
    sums = _add_chunk(sums, logits, w_nk, examples, head)
    if sums.inverse_length_r is not None:
      lengths_r = chunk.put(sums.inverse_length_r, inverse_k1[:, 0])
      sums = sums._replace(inverse_length_r=lengths_r)
    if chunk.is_kept and sums.kept is not None:
      sums = sums._replace(kept=chunk.keep(sums.kept, logits.cosine_kb))
    return sums

  chunks, size = count_chunks(len(w_rk) // head.sub_centers, head)
  start = _nothing_summed(chunks, size, examples, bias, head)
  if head.loss.unit_weights:
    # The same for all examples: it varies along one axis alone.
    lengths_r = varying(jnp.zeros(len(w_rk)), "model")
    start = start._replace(inverse_length_r=lengths_r)
  sums = walk(len(w_rk), len(examples.labels), head, step, start)
  return sums._replace(skipped=sums.skipped / chunks)


def _nothing_summed(
  chunks: int, size: int, examples: Examples, bias: jax.Array, head: Head
) -> Sums:
  """The sums before the first chunk."""
  count = len(examples.labels)
  zeros_b, kept = jnp.zeros(count), None
  if head.keep_bytes:
    kept = count_kept(chunks, size, count, head)
    # Zeros would be written first: a fifth of the time on a v5e, by its
    # compiler (360,232 classes, 16 devices). The walk writes all of it.
    kept = lax.empty((kept * size * head.sub_centers, count), jnp.float32)
  scale_has_gradient = head.learn_scale or head.loss.scale_has_gradient
  sums = varying(
    Sums(
      best_b=zeros_b + MASKED,
      top_b=zeros_b,
      sum_b=zeros_b,
      weighted_bd=jnp.zeros(examples.embeddings.shape),
      cosine_sum_b=zeros_b if scale_has_gradient else None,
      share_sum_b=zeros_b if head.loss.one_by_one else None,
      kept=kept,
      inverse_length_r=None,
      skipped=jnp.float32(0.0),
    )
  )
  first_top = bias if head.loss.one_by_one else MASKED
  return sums._replace(top_b=sums.top_b + first_top)


def _add_chunk(
  sums: Sums,
  logits: Logits,
  w_nk: Float32[Array, "nk d"],
  examples: Examples,
  head: Head,
) -> Sums:
  """Adds the classes of one chunk, with weights `w_nk`, to the sums."""
  one_by_one = head.loss.one_by_one
  chunk_top_b = logits.others_nb.max(axis=0)
  share_sum_b = sums.share_sum_b
  if share_sum_b is not None:
    top_b, shrink_b = sums.top_b, jnp.ones_like(sums.top_b)
    above_nb = logits.others_nb - top_b[None]
    e_nb = jax.nn.sigmoid(above_nb)
    sum_b = sums.sum_b + jax.nn.softplus(above_nb).sum(axis=0)
    share_sum_b += e_nb.sum(axis=0)
  else:
    top_b = jnp.maximum(sums.top_b, chunk_top_b)
    shrink_b = jnp.exp(sums.top_b - top_b)
    e_nb = jnp.exp(logits.others_nb - top_b[None])
    sum_b = sums.sum_b * shrink_b + e_nb.sum(axis=0)
  best_b = top_b
  if _best_is_apart(head):
    best_b = jnp.maximum(sums.best_b, logits.best_b(examples.scale))
  cosine_sum_b = sums.cosine_sum_b
  if cosine_sum_b is not None:
    cosine_sum_b *= shrink_b
    cosine_sum_b += (e_nb * logits.reweighted_nb).sum(axis=0)

  def weigh() -> jax.Array:
    e_kb = logits.gradient_of_rows(logits.gradient_of_cosines(e_nb))
    return product(e_kb * logits.inverse_length_k1, w_nk, (0, 0), head)

  share_b = chunk_top_b - top_b
  if not one_by_one:  # The share so far is at least the share in the end.
    share_b -= jnp.log(sum_b)
  weighted_bd, skips = product_unless_below(
    share_b, weigh, sums.weighted_bd.shape, head
  )
  return Sums(
    best_b=best_b,
    top_b=top_b,
    sum_b=sum_b,
    weighted_bd=sums.weighted_bd * shrink_b[:, None] + weighted_bd,
    cosine_sum_b=cosine_sum_b,
    share_sum_b=share_sum_b,
    kept=sums.kept,
    inverse_length_r=sums.inverse_length_r,
    skipped=sums.skipped + skips,
  )


def _best_is_apart(head: Head) -> bool:
  """Whether the largest logit may be another than the largest cosine's."""
  changed = head.loss.reweights_others or head.loss.one_by_one
  return bool(changed or head.weigh_sample or head.logit_adjustment)


class Others(NamedTuple):
  """What all shards together say of the other classes of each example.

  Attributes:
    best_b: largest logit before classes are reweighted or weighed.
    sum_b: sum of exp(l - top); of log(1 + exp(l - bias)) if one by one.
    cosine_sum_b: as in `Sums`.
    share_sum_b: as in `Sums`.
    rest_b: log-sum-exp; the sum if classes count one by one.
    counted_from_b: the same; the bias if they do.
  """

  best_b: jax.Array
  sum_b: jax.Array
  cosine_sum_b: jax.Array | None
  share_sum_b: jax.Array | None
  rest_b: jax.Array
  counted_from_b: jax.Array


def sum_over_shards(sums: Sums, bias: Float32[Array, ""], head: Head) -> Others:
  """Brings the sums of all shards to one largest logit, and adds them."""
  best_b = lax.pmax(sums.best_b, "model")
  if head.loss.one_by_one:
    top_b = bias
    shrink_b = jnp.ones_like(sums.sum_b)
  else:
    top_b = lax.pmax(sums.top_b, "model") if _best_is_apart(head) else best_b
    shrink_b = jnp.exp(sums.top_b - top_b)
  sum_b, cosine_sum_b, share_sum_b = lax.psum(
    jax.tree.map(
      lambda sum_b: sum_b * shrink_b,
      (sums.sum_b, sums.cosine_sum_b, sums.share_sum_b),
    ),
    "model",
  )
  if head.loss.one_by_one:
    rest_b, counted_from_b = sum_b, jnp.broadcast_to(bias, sum_b.shape)
  else:
    rest_b = counted_from_b = top_b + jnp.log(sum_b)
  return Others(
    best_b=best_b,
    sum_b=sum_b,
    cosine_sum_b=cosine_sum_b,
    share_sum_b=share_sum_b,
    rest_b=rest_b,
    counted_from_b=counted_from_b,
  )
