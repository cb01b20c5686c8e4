"""Cosines and logits of a chunk of classes, and the products that make them.

Shapes: B examples of a device, D embedding size, n classes of a chunk, K
sub-centers of a class; `_kb` has a row for each of the n K weight rows, `_nb`
one for each class.

Classes come first: of the two products of each walk, XLA:CPU then computes
three of four at full speed, and one of four the other way round.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from jamsface_jax.head.chunks import ChunkClasses
from jamsface_jax.head.layout import varying
from jamsface_jax.head.losses import LossState
from jamsface_jax.head.parameters import Head

# Logit of a class that must not count. Not -inf: a shard may hold padding only,
# and -inf minus -inf is NaN.
MASKED = -1e30
_NORM_FLOOR = 1e-12  # Floor of |w|^2: padded rows are zero.


class Examples(NamedTuple):
  """The examples as both walks of the classes need them.

  All are split over `data` alone.

  Attributes:
    embeddings: scaled to length 1, float32 [B, D].
    labels: int32 [B].
    scale: what multiplies the cosines of an example, float32 [B].
    threshold: what `Loss.threshold` says, float32 [B]; None if the loss does
      not reweight other classes.
  """

  embeddings: jax.Array
  labels: jax.Array
  scale: jax.Array
  threshold: jax.Array | None


class Logits(NamedTuple):
  """Cosines and logits of a chunk of classes with all examples of a device.

  Attributes:
    cosine_kb: with every sub-center, float32 [n K, B].
    cosine_nb: with the nearest of each class, float32 [n, B].
    reweighted_nb: the same as the loss has them.
    derivative_nb: derivative of `reweighted_nb` in `cosine_nb`; None: 1.
    others_nb: logits, masked where a class does not count or is the true one.
    counts_nb: where it does and is not.
    is_true_nb: whether it is the true one.
    inverse_length_k1: as from `inverse_lengths`.
  """

  cosine_kb: jax.Array
  cosine_nb: jax.Array
  reweighted_nb: jax.Array
  derivative_nb: jax.Array | None
  others_nb: jax.Array
  counts_nb: jax.Array
  is_true_nb: jax.Array
  inverse_length_k1: jax.Array

  def best_b(self, scale_b: Float32[Array, " b"]) -> Float32[Array, " b"]:
    """The largest logit of each example before the loss changes any."""
    logit_nb = scale_b[None] * self.cosine_nb
    return jnp.where(self.counts_nb, logit_nb, MASKED).max(axis=0)

  def gradient_of_cosines(
    self, gradient_nb: Float32[Array, "n b"]
  ) -> Float32[Array, "n b"]:
    """Takes a gradient in the reweighted cosines to one in the cosines."""
    if self.derivative_nb is None:
      return gradient_nb
    return gradient_nb * self.derivative_nb

  def gradient_of_rows(
    self, gradient_nb: Float32[Array, "n b"]
  ) -> Float32[Array, "nk b"]:
    """Gives the gradient of each class to the nearest of its sub-centers."""
    size, examples = gradient_nb.shape
    if self.cosine_kb.shape == gradient_nb.shape:
      return gradient_nb
    cosine_nkb = self.cosine_kb.reshape(size, -1, examples)
    nearest_nkb = one_hot_of_largest(cosine_nkb, axis=1)
    return (gradient_nb[:, None] * nearest_nkb).reshape(-1, examples)


def make_logits(
  examples: Examples,
  loss_state: LossState,
  w_nk: Float32[Array, "nk d"],
  inverse_length_k1: Float32[Array, "nk 1"],
  classes: ChunkClasses,
  head: Head,
  cosine_kb: Float32[Array, "nk b"] | None = None,
) -> Logits:
  """Multiplies the weights of a chunk with all examples of a device.

  Args:
    examples: those of the device.
    loss_state: what the loss remembers.
    w_nk: weight rows of the chunk.
    inverse_length_k1: what `inverse_lengths` says of them.
    classes: which classes they belong to.
    head: what is fixed about the head.
    cosine_kb: the cosines if an earlier walk has kept them.
  """
  class_n, offset_n = classes
  if cosine_kb is None:
    cosine_kb = product(w_nk, examples.embeddings, (1, 1), head)
    cosine_kb *= inverse_length_k1
  cosine_nb = cosine_kb
  if head.sub_centers > 1:
    cosine_nkb = cosine_kb.reshape(len(class_n), head.sub_centers, -1)
    cosine_nb = cosine_nkb.max(axis=1)
  is_true_nb = class_n[:, None] == examples.labels[None]
  counts_nb = (class_n >= 0)[:, None] & ~is_true_nb
  if head.ignore_above < 1:
    counts_nb &= cosine_nb <= head.ignore_above
  reweighted_nb, derivative_nb = cosine_nb, None
  if examples.threshold is not None:
    reweighted_nb, derivative_nb = head.loss.reweight_others(
      cosine_nb, examples.threshold, loss_state
    )
  logit_nb = examples.scale[None] * reweighted_nb + offset_n[:, None]
  return Logits(
    cosine_kb=cosine_kb,
    cosine_nb=cosine_nb,
    reweighted_nb=reweighted_nb,
    derivative_nb=derivative_nb,
    others_nb=jnp.where(counts_nb, logit_nb, MASKED),
    counts_nb=counts_nb,
    is_true_nb=is_true_nb,
    inverse_length_k1=inverse_length_k1,
  )


def inverse_lengths(
  w_nk: Float32[Array, "nk d"], head: Head
) -> Float32[Array, "nk 1"]:
  """1 / |w| of every weight row; 1 if the loss takes weights as they are."""
  if not head.loss.unit_weights:
    return jnp.ones((len(w_nk), 1))
  return inverse_length(w_nk)


def product(
  left: Float[Array, "i j"],
  right: Float[Array, "k l"],
  axes: tuple[int, int],
  head: Head,
) -> Float32[Array, "m n"]:
  """Contracts two matrices over the given axes, one of each.

  Operands are rounded to `head.product_dtype`; sums are float32.
  """
  return lax.dot_general(
    left.astype(head.product_dtype),
    right.astype(head.product_dtype),
    (((axes[0],), (axes[1],)), ((), ())),
    precision=head.product_precision,
    preferred_element_type=jnp.float32,
  )


def product_unless_below(
  log_share_b: Float32[Array, " b"],
  make_product: Callable[[], Float32[Array, "i j"]],
  shape: tuple[int, ...],
  head: Head,
) -> tuple[Float32[Array, "i j"], Float32[Array, ""]]:
  """The product, or zeros if no share of the block reaches `head.skip_below`.

  A block of probabilities that the sums cannot hold is not worth its product:
  the gradient filter of Cut Cross-Entropy (https://arxiv.org/abs/2411.09009).

  Args:
    log_share_b: log of the largest probability of the block for each example.
    make_product: multiplies; is not called on the device if it is skipped.
    shape: shape of the product.
    head: what is fixed about the head.

  Returns:
    The product, and 1 if it was skipped, else 0.
  """
  zeros, not_skipped = varying((jnp.zeros(shape), jnp.float32(0.0)))
  if not head.skip_below:
    return make_product(), not_skipped
  return lax.cond(
    log_share_b.max() < math.log(head.skip_below),
    lambda: (zeros, not_skipped + 1.0),
    lambda: (make_product(), not_skipped),
  )


def inverse_length(v_nd: Float32[Array, "*n d"]) -> Float32[Array, "*n 1"]:
  """1 / |v| of every row; finite where it is zero."""
  square_n1 = jnp.sum(v_nd**2, axis=-1, keepdims=True)
  return lax.rsqrt(jnp.maximum(square_n1, _NORM_FLOOR))


def unit(v_nd: Float32[Array, "*n d"]) -> Float32[Array, "*n d"]:
  """Rows scaled to length 1."""
  return v_nd * inverse_length(v_nd)


def unit_and_length(
  v_nd: Float32[Array, "n d"],
) -> tuple[Float32[Array, "n d"], Float32[Array, " n"]]:
  """The same, and the lengths that they had."""
  inverse_n1 = inverse_length(v_nd)
  return v_nd * inverse_n1, 1 / inverse_n1[:, 0]


def one_hot_of_largest(
  array: Float32[Array, "..."], axis: int
) -> Float32[Array, "..."]:
  """1 where an entry is the (first) largest along an axis, else 0."""
  largest = array.argmax(axis=axis)
  return jax.nn.one_hot(largest, array.shape[axis], axis=axis)
