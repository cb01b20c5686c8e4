"""The margin softmax over classes split across devices, with its gradients.

    phi_i = cos(t_iy + a_y) - c_y
    CE_i  = -log( exp(s phi_i) / (exp(s phi_i) + sum_{j != y} exp(s cos t_ij)) )

No [B, C] array is needed. `loss` walks the classes once, in chunks, and keeps
for every example a running log-sum-exp and the running sum of exp(s cos) w_j;
when the walk ends, that sum is the gradient of the embeddings (the online
softmax of https://arxiv.org/abs/2205.14135, section 3.1, with class weights in
the place of values). `weight_slopes` and `update_weights` walk once more for
the gradient of the weights, which needs the normaliser of every example. That
makes four matrix products of 2 B C D operations, two in each walk: the logits
twice, but for those that `head.keep_bytes` has room for.

All collectives of the head are in this file. Shapes: B examples of the global
batch, D embedding size, C padded classes, N real classes, K sub-centers of a
class, R classes walked by one device, `_rk` their R K weight rows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jamsface_jax import margins
from jamsface_jax.head import (
  ANGULAR,
  COSINE,
  LOG_SCALE,
  WEIGHTS,
  Head,
  HeadParams,
)
from jamsface_jax.negatives import Sample
from jamsface_jax.optimizer import clip_factor
from jamsface_jax.sharding import BATCH, CLASSES, REPLICATED

# Logit of a class that must not count. Not -inf: a shard may hold padding only,
# and -inf minus -inf is NaN.
_MASKED = -1e30
_NORM_FLOOR = 1e-12  # Floor of |w|^2: padded rows are zero.
_EXAMPLES = P("data")  # As the head sees them: gathered along `model`.


class Pull(NamedTuple):
  """What the gradient of the weights needs of the examples.

  All but the scale and `kept` are split over `data` alone.

  Attributes:
    embeddings: of length 1, float32 [B, D].
    labels: int32 [B].
    rest: log-sum-exp over the other classes, float32 [B].
    rest_slope: derivative of the loss in it, float32 [B].
    true_slope: derivative of the loss in the true class's cosine, float32 [B].
    scale: s, float32 scalar.
    kept: cosines of the first classes of each shard with all examples, so that
      the second walk need not multiply them again, split over `model` and
      `data`; None if none are kept.
  """

  embeddings: jax.Array
  labels: jax.Array
  rest: jax.Array
  rest_slope: jax.Array
  true_slope: jax.Array
  scale: jax.Array
  kept: jax.Array | None


class Loss(NamedTuple):
  """The cross-entropy of a batch, and all gradients of its mean but one.

  Attributes:
    cross_entropy: of every example, float32 [B] (nats), split over `data`.
    correct: whether the true class has the largest cosine of the classes
      walked, margins apart; bool [B], split over `data`.
    embedding_slopes: as the embeddings, sharding BATCH.
    small_slopes: of each parameter of the head but its weights, by name.
    pull: for `weight_slopes` or `update_weights`.
    skipped: share of blocks whose gradient product was skipped, scalar.
  """

  cross_entropy: jax.Array
  correct: jax.Array
  embedding_slopes: jax.Array
  small_slopes: dict[str, jax.Array]
  pull: Pull
  skipped: jax.Array


def loss(
  params: HeadParams,
  embeddings: jax.Array,
  labels: jax.Array,
  *,
  head: Head,
  mesh: Mesh,
  sample: Sample | None = None,
) -> Loss:
  """Margin softmax cross-entropy, and the gradients of its mean.

  Args:
    params: as `head.init` returns, sharded by class.
    embeddings: float [B, D], any length, sharding BATCH.
    labels: int [B] in [0, N), sharding BATCH.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.
    sample: the classes to walk, all positives among them; None: all.
  """
  unit_bd, pull_unit = jax.vjp(
    lambda x_bd: _unit(x_bd.astype(jnp.float32)), embeddings
  )
  x_bd, y_b = lax.with_sharding_constraint(
    (unit_bd, labels), NamedSharding(mesh, _EXAMPLES)
  )
  small = {name: _spec(p) for name, p in params.items() if name != WEIGHTS}
  of_head = (jax.tree.map(_spec, params), jax.tree.map(_spec, sample))
  kept = P("model", "data") if head.keep_bytes else None

  def local(params, sample, x_bd, y_b):
    return _local_loss(params, sample, x_bd, y_b, head, mesh)

  cross_entropy_b, correct_b, slopes_bd, small_slopes, pulls, skipped = (
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(*of_head, _EXAMPLES, _EXAMPLES),
      out_specs=(
        *(_EXAMPLES, _EXAMPLES, BATCH, small),
        *((_EXAMPLES, _EXAMPLES, _EXAMPLES, REPLICATED, kept), REPLICATED),
      ),
    )(params, sample, x_bd, y_b)
  )
  return Loss(
    cross_entropy=cross_entropy_b,
    correct=correct_b,
    embedding_slopes=pull_unit(slopes_bd)[0],
    small_slopes=small_slopes,
    pull=Pull(x_bd, y_b, *pulls),
    skipped=skipped,
  )


def weight_slopes(
  params: HeadParams, pull: Pull, *, head: Head, mesh: Mesh
) -> jax.Array:
  """Gradient of the mean cross-entropy in the class weights.

  Args:
    params: those of `loss`.
    pull: what `loss` returned, without a sample.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.

  Returns:
    float32, as the weights; padded rows are 0.
  """

  def local(w_rk, pull):
    def step(rows, slopes_rk):
      # Rows that an earlier chunk has had come out the same once more.
      rows = rows._replace(stale=0)
      slopes_nk, _ = _weight_slopes_of(rows, rows.cut(w_rk), pull, None, head)
      return rows.put(slopes_rk, slopes_nk)

    slopes_rk = _varying(jnp.zeros(w_rk.shape))
    return lax.psum(
      _walk(len(w_rk), len(pull.labels), head, step, slopes_rk), "data"
    )

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(CLASSES, _pull_spec(pull)),
    out_specs=CLASSES,
  )(params[WEIGHTS], pull)


class Update(NamedTuple):
  """What a step makes of the class weights.

  Attributes:
    weights: float32, sharding CLASSES.
    opt_state: of their optimizer.
    gradient_norm: of the gradient before clipping, scalar.
    skipped: share of blocks whose gradient product was skipped, scalar.
  """

  weights: jax.Array
  opt_state: Any
  gradient_norm: jax.Array
  skipped: jax.Array


def update_weights(
  params: HeadParams,
  opt_state: Any,
  pull: Pull,
  accept: jax.Array,
  *,
  head: Head,
  mesh: Mesh,
  optimizer: optax.GradientTransformation,
  clip_norm: float,
  sample: Sample | None = None,
) -> Update:
  """Takes a step of the class weights, chunk by chunk as their gradient comes.

  The gradient never exists as a whole. With a sample, the other classes'
  weights and optimizer state are neither read nor written. The norm that
  clipping needs is known when the last class has been seen, so that clipping
  costs a walk more.

  Args:
    params: those of `loss`.
    opt_state: what `optimizer.init(weights)` returned, or a later one.
    pull: what `loss` returned.
    accept: bool scalar; False leaves weights and state as they are.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.
    optimizer: acts on each element alone, as SGD and Adam do: state with a
      first axis is cut by class as the weights are, other state is a scalar.
    clip_norm: largest norm of the gradient; 0: any.
    sample: the classes that were walked; None: all.
  """
  state_spec = jax.tree.map(_spec, opt_state)

  def local(weights, state, pull, accept, sample):
    w_rk, state_rk = weights, state
    if sample is not None:
      w_rk, state_rk = _by_row(
        lambda array: _take(array, sample.rows, head), (w_rk, state_rk)
      )
    factor = jnp.float32(1.0)
    if clip_norm:

      def measure(rows, square):
        slopes_nk, _ = _weight_slopes_of(
          rows, rows.cut(w_rk), pull, sample, head
        )
        return square + jnp.sum(lax.psum(slopes_nk, "data") ** 2)

      square = lax.pcast(jnp.float32(0.0), "model", to="varying")
      square = _walk(len(w_rk), len(pull.labels), head, measure, square)
      square = lax.psum(square, "model")
      factor = clip_factor(jnp.sqrt(square), clip_norm)

    def step(rows, carry):
      w_rk, state_rk, square, skipped = carry
      # Scalars as they were before the first chunk: all see one step.
      old = _by_row(
        lambda array, _: rows.cut(array), (w_rk, state_rk), (weights, state)
      )
      slopes_nk, skips = _weight_slopes_of(rows, old[0], pull, sample, head)
      slopes_nk = lax.psum(slopes_nk, "data")

      def take_step():
        w_nk, state_nk = old
        updates, state_nk = optimizer.update(factor * slopes_nk, state_nk, w_nk)
        new = optax.apply_updates(w_nk, updates), state_nk
        return _by_row(rows.unless_stale, old, new)

      # A branch, not a choice by element: what it returns is a buffer of its
      # own. XLA would otherwise read the old rows while it writes the new ones,
      # and for that copy the whole arrays once a chunk.
      new = lax.cond(accept, take_step, lambda: old)
      return (
        *_by_row(rows.put, (w_rk, state_rk), new),
        square + jnp.sum(slopes_nk**2),
        skipped + skips,
      )

    chunks, _ = count_chunks(len(w_rk) // head.sub_centers, head)
    square = lax.pcast(jnp.float32(0.0), "model", to="varying")
    w_rk, state_rk, square, skipped = _walk(
      len(w_rk),
      len(pull.labels),
      head,
      step,
      (w_rk, state_rk, square, _varying(jnp.float32(0.0))),
    )
    if sample is not None:
      w_rk, state_rk = _by_row(
        lambda array, new: _put_back(array, sample.rows, new, head),
        (weights, state),
        (w_rk, state_rk),
      )
    norm = jnp.sqrt(lax.psum(square, "model"))
    return w_rk, state_rk, norm, lax.pmean(skipped / chunks, ("data", "model"))

  return Update(
    *jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(
        *(CLASSES, state_spec, _pull_spec(pull), REPLICATED),
        jax.tree.map(_spec, sample),
      ),
      out_specs=(CLASSES, state_spec, REPLICATED, REPLICATED),
    )(params[WEIGHTS], opt_state, pull, accept, sample)
  )


def _local_loss(params, sample, x_bd, y_b, head, mesh):
  """One device's part: examples of its `data` row, classes of its shard."""
  w_rk, classes = params[WEIGHTS], len(params[ANGULAR])
  learns_scale = LOG_SCALE in params
  scale = jnp.float32(head.scale)
  if learns_scale:
    scale = jnp.exp(params[LOG_SCALE])

  # The true class, if it is one of mine: in float32 from its own rows.
  row_b = y_b - lax.axis_index("model") * classes
  mine_b = (row_b >= 0) & (row_b < classes)
  row_b = jnp.where(mine_b, row_b, 0)
  own_bkd = _unit(w_rk.reshape(classes, head.sub_centers, -1)[row_b])
  cosine_bk = jnp.sum(x_bd[:, None] * own_bkd, axis=2)
  nearest_bk = _one_hot_of_largest(cosine_bk, axis=1)
  own_bd = jnp.sum(own_bkd * nearest_bk[..., None], axis=1)

  if sample is not None:
    w_rk = _take(w_rk, sample.rows, head)
  top_b, sum_b, pulled_bd, cosine_sum_b, kept, skipped = _walk_forward(
    x_bd, y_b, w_rk, scale, sample, learns_scale, head
  )
  top_all_b = lax.pmax(top_b, "model")
  shrink_b = jnp.exp(top_b - top_all_b)
  terms = [
    sum_b * shrink_b,
    jnp.where(mine_b, cosine_bk.max(axis=1), 0.0),
    jnp.where(mine_b, params[ANGULAR][row_b], 0.0),
    jnp.where(mine_b, params[COSINE][row_b], 0.0),
  ]
  if learns_scale:
    terms.append(cosine_sum_b * shrink_b)
  sum_b, true_b, a_b, c_b, *cosine_sum_b = lax.psum(jnp.stack(terms), "model")
  rest_b = top_all_b + jnp.log(sum_b)
  batch = len(y_b) * mesh.shape["data"]

  def mean(true_b, rest_b, a_b, c_b, scale):
    phi_b = margins.joint(true_b, a_b, c_b, smooth=head.smooth)
    cross_entropy_b = jax.nn.softplus(rest_b - scale * phi_b)
    return cross_entropy_b.sum() / batch, cross_entropy_b

  (
    (true_slope_b, rest_slope_b, a_slope_b, c_slope_b, scale_slope),
    (cross_entropy_b),
  ) = jax.grad(mean, argnums=(0, 1, 2, 3, 4), has_aux=True)(
    true_b, rest_b, a_b, c_b, scale
  )

  pull_b = scale * rest_slope_b * jnp.exp(top_b - rest_b)
  slopes_bd = pull_b[:, None] * pulled_bd
  slopes_bd += jnp.where(mine_b, true_slope_b, 0.0)[:, None] * own_bd
  of_margins_b2 = jnp.stack([a_slope_b, c_slope_b], axis=1)
  slopes_c2 = jnp.zeros((classes, 2)).at[row_b]
  slopes_c2 = lax.psum(
    slopes_c2.add(jnp.where(mine_b[:, None], of_margins_b2, 0.0)), "data"
  )
  small_slopes = {ANGULAR: slopes_c2[:, 0], COSINE: slopes_c2[:, 1]}
  if learns_scale:
    # The slope of `rest` in the scale is the mean cosine under its softmax.
    of_rest = jnp.sum(rest_slope_b * cosine_sum_b[0] / sum_b)
    small_slopes[LOG_SCALE] = scale * (scale_slope + lax.psum(of_rest, "data"))
  return (
    cross_entropy_b,
    scale * true_b > top_all_b,
    lax.psum_scatter(slopes_bd, "model", tiled=True),
    small_slopes,
    (rest_b, rest_slope_b, true_slope_b, scale, kept),
    lax.pmean(skipped, ("data", "model")),
  )


def _walk_forward(x_bd, y_b, w_rk, scale, sample, learns_scale, head):
  """Log-sum-exp over this shard's classes but the true one, and its slopes.

  Returns:
    `top_b`, `sum_b` with log-sum-exp = top + log(sum); the sums of
    exp(l - top) u [B, D] and of exp(l - top) cos [B] (0 if the scale is fixed);
    cosines to keep, or None; and the share of blocks that were skipped.
  """

  def step(rows, carry):
    top_b, sum_b, pulled_bd, cosine_sum_b, kept, skipped = carry
    w_nk = rows.cut(w_rk)
    logits = _logits(x_bd, y_b, w_nk, scale, rows.classes(sample, head), head)
    chunk_top_b = logits.others_nb.max(axis=0)
    new_top_b = jnp.maximum(top_b, chunk_top_b)
    shrink_b = jnp.exp(top_b - new_top_b)
    e_nb = jnp.exp(logits.others_nb - new_top_b[None])
    sum_b = sum_b * shrink_b + e_nb.sum(axis=0)
    if learns_scale:
      cosine_sum_b *= shrink_b
      cosine_sum_b += (e_nb * logits.cosine_nb).sum(axis=0)

    def pull():
      e_kb = logits.spread(e_nb) * logits.inverse_k1
      return product(e_kb, w_nk, (0, 0), head)

    # The share in the sum so far is at least the share in the end.
    share_b = chunk_top_b - new_top_b - jnp.log(sum_b)
    pulled, skips = _unless_below(share_b, pull, x_bd.shape, head)
    pulled_bd = pulled_bd * shrink_b[:, None] + pulled
    if rows.is_kept:
      kept = rows.keep(kept, logits.cosine_kb)
    return new_top_b, sum_b, pulled_bd, cosine_sum_b, kept, skipped + skips

  zeros_b, kept = jnp.zeros(len(y_b)), None
  chunks, size = count_chunks(len(w_rk) // head.sub_centers, head)
  if head.keep_bytes:
    kept = count_kept(chunks, size, len(y_b), head)
    kept = jnp.zeros((kept * size * head.sub_centers, len(y_b)))
  start = _varying(
    (zeros_b + _MASKED, zeros_b, jnp.zeros(x_bd.shape), zeros_b, kept, 0.0)
  )
  *sums, skipped = _walk(len(w_rk), len(y_b), head, step, start)
  return *sums, skipped / chunks


def _weight_slopes_of(rows, w_nk, pull, sample, head):
  """Gradient of some rows of the weights from this device's examples.

  Returns:
    float32 [n, D] for the n weight rows of this chunk, and whether their
    product was skipped, 1 or 0.
  """
  logits = _logits(
    *(pull.embeddings, pull.labels, w_nk, pull.scale),
    *(rows.classes(sample, head), head),
    cosine_kb=rows.kept(pull.kept) if rows.is_kept else None,
  )
  log_share_nb = logits.others_nb - pull.rest[None]
  slopes_nb = jnp.where(
    logits.is_true_nb,
    pull.true_slope[None],
    (pull.scale * pull.rest_slope)[None] * jnp.exp(log_share_nb),
  )

  def pulled():
    slopes_kb = logits.spread(slopes_nb)
    along_k = jnp.sum(slopes_kb * logits.cosine_kb, axis=1)
    pulled_nk = product(slopes_kb, pull.embeddings, (1, 0), head)
    # Of a unit vector: what lies along the weight itself does not count.
    along_k1 = logits.inverse_k1 * along_k[:, None]
    return logits.inverse_k1 * (pulled_nk - w_nk * along_k1)

  # A softmax over all classes has the share times the share of the rest, which
  # `rest_slope` holds (divided by the batch).
  batch = len(pull.labels) * lax.axis_size("data")
  share_b = log_share_nb.max(axis=0) + jnp.log(
    jnp.maximum(batch * pull.rest_slope, 1e-38)
  )
  share_b = jnp.where(logits.is_true_nb.any(axis=0), 0.0, share_b)
  return _unless_below(share_b, pulled, w_nk.shape, head)


class _Rows(NamedTuple):
  """The classes of one chunk.

  Attributes:
    index: of the chunk.
    is_kept: whether its cosines are kept from walk to walk.
    start: the first of them, counted in the classes walked.
    size: how many.
    stale: how many of the first ones an earlier chunk has had: the last chunk
      ends with the last class and overlaps the one before.
    sub_centers: weight rows of a class.
  """

  index: jax.Array
  is_kept: bool
  start: jax.Array
  size: int
  stale: jax.Array
  sub_centers: int

  def cut(self, array):
    k = self.sub_centers
    return lax.dynamic_slice_in_dim(array, self.start * k, self.size * k)

  def put(self, array, new):
    return lax.dynamic_update_slice_in_dim(
      array, new, self.start * self.sub_centers, 0
    )

  def keep(self, kept, cosine_kb):
    start = self.index * len(cosine_kb)
    return lax.dynamic_update_slice_in_dim(kept, cosine_kb, start, 0)

  def kept(self, kept):
    size = self.size * self.sub_centers
    return lax.dynamic_slice_in_dim(kept, self.index * size, size)

  def unless_stale(self, old, new):
    """The new rows, but the old ones where an earlier chunk has been."""
    fresh = jnp.arange(len(new)) >= self.stale * self.sub_centers
    return jnp.where(fresh[:, None], new, old)

  def classes(self, sample, head):
    """The classes, -1 for those that do not count, and their log weights."""
    if sample is None:
      shards = lax.axis_size("model")
      first = lax.axis_index("model") * (head.padded_classes // shards)
      class_n = first + self.start + jnp.arange(self.size)
      class_n = jnp.where(class_n < head.num_classes, class_n, -1)
      log_weight_n = jnp.zeros(self.size)
    else:
      class_n, log_weight_n = (
        lax.dynamic_slice_in_dim(array, self.start, self.size)
        for array in (sample.classes, sample.log_weights)
      )
    fresh_n = jnp.arange(self.size) >= self.stale
    return jnp.where(fresh_n, class_n, -1), log_weight_n


def _walk(weight_rows, examples, head, step, carry):
  """Calls step(rows, carry) for one chunk of classes after the other."""
  classes = weight_rows // head.sub_centers
  chunks, size = count_chunks(classes, head)
  kept = count_kept(chunks, size, examples, head)

  def body(is_kept, k, carry):
    start = jnp.minimum(k * size, classes - size)
    stale = k * size - start
    return step(_Rows(k, is_kept, start, size, stale, head.sub_centers), carry)

  for first, end, is_kept in ((0, kept, True), (kept, chunks, False)):
    if first < end:
      carry = lax.fori_loop(first, end, partial(body, is_kept), carry)
  return carry


def count_chunks(classes: int, head: Head) -> tuple[int, int]:
  """Number and size of chunks: equal, and the fewest that are small enough."""
  chunks = math.ceil(classes / head.chunk_classes)
  return chunks, math.ceil(classes / chunks)


def count_kept(chunks: int, size: int, examples: int, head: Head) -> int:
  """Chunks whose cosines fit into `head.keep_bytes`."""
  return min(
    chunks, head.keep_bytes // (4 * size * head.sub_centers * examples)
  )


class _Logits(NamedTuple):
  """Cosines of a chunk of n classes with all examples of a device.

  Classes come first: of the two products of each walk, XLA:CPU then computes
  three of four at full speed, and one of four the other way round.

  Attributes:
    cosine_kb: with every sub-center, float32 [n K, B].
    cosine_nb: with the nearest of each class, float32 [n, B].
    others_nb: logits, masked where a class does not count or is the true one.
    is_true_nb: whether it is the true one.
    inverse_k1: 1 / |w| of every weight row, float32 [n K, 1].
  """

  cosine_kb: jax.Array
  cosine_nb: jax.Array
  others_nb: jax.Array
  is_true_nb: jax.Array
  inverse_k1: jax.Array

  def spread(self, slopes_nb):
    """Gives the slope of each class to the nearest of its sub-centers."""
    size, examples = slopes_nb.shape
    if self.cosine_kb.shape == slopes_nb.shape:
      return slopes_nb
    cosine_nkb = self.cosine_kb.reshape(size, -1, examples)
    nearest_nkb = _one_hot_of_largest(cosine_nkb, axis=1)
    return (slopes_nb[:, None] * nearest_nkb).reshape(-1, examples)


def _logits(x_bd, y_b, w_nk, scale, classes, head, cosine_kb=None):
  class_n, log_weight_n = classes
  inverse_k1 = _inverse_length(w_nk)
  if cosine_kb is None:
    cosine_kb = product(w_nk, x_bd, (1, 1), head) * inverse_k1
  cosine_nb = cosine_kb
  if head.sub_centers > 1:
    by_class = cosine_kb.reshape(len(class_n), head.sub_centers, -1)
    cosine_nb = by_class.max(axis=1)
  is_true_nb = class_n[:, None] == y_b[None]
  counts_nb = (class_n >= 0)[:, None] & ~is_true_nb
  if head.ignore_above < 1:
    counts_nb &= cosine_nb <= head.ignore_above
  logits_nb = scale * cosine_nb + log_weight_n[:, None]
  logits_nb = jnp.where(counts_nb, logits_nb, _MASKED)
  return _Logits(cosine_kb, cosine_nb, logits_nb, is_true_nb, inverse_k1)


def product(left, right, axes, head):
  """Contracts two matrices over the given axes; sums are float32."""
  exact = head.product_dtype == "float32"
  return lax.dot_general(
    left.astype(head.product_dtype),
    right.astype(head.product_dtype),
    (((axes[0],), (axes[1],)), ((), ())),
    # Accelerators would round float32 operands to 10 bits or fewer.
    precision=lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def _unless_below(
  log_share_b: jax.Array,
  product: Callable[[], jax.Array],
  shape: tuple[int, ...],
  head: Head,
) -> tuple[jax.Array, jax.Array]:
  """The product, or zeros if no share of the block reaches the threshold.

  A block of probabilities that the sums cannot hold is not worth its product:
  the gradient filter of Cut Cross-Entropy (https://arxiv.org/abs/2411.09009).
  """
  nothing = _varying((jnp.zeros(shape), jnp.float32(0.0)))
  if not head.skip_below:
    return product(), nothing[1]
  return lax.cond(
    log_share_b.max() < math.log(head.skip_below),
    lambda: (nothing[0], nothing[1] + 1.0),
    lambda: (product(), nothing[1]),
  )


def _take(array, rows, head):
  """Rows of some classes, [R K, ...] (unused slots repeat the last)."""
  by_class = array.reshape(len(array) // head.sub_centers, -1)
  taken = jnp.take(by_class, rows, axis=0, mode="clip")
  return taken.reshape(-1, *array.shape[1:])


def _put_back(array, rows, new, head):
  by_class = array.reshape(len(array) // head.sub_centers, -1)
  new = new.reshape(len(rows), -1)
  by_class = by_class.at[rows].set(new, mode="drop", unique_indices=True)
  return by_class.reshape(array.shape)


def _by_row(function, *trees):
  """Maps over what is split by class; scalars are those of the last tree."""
  return jax.tree.map(
    lambda *leaves: function(*leaves) if leaves[-1].ndim else leaves[-1], *trees
  )


def _one_hot_of_largest(array, axis):
  largest = array.argmax(axis=axis)
  return jax.nn.one_hot(largest, array.shape[axis], axis=axis)


def _inverse_length(v_nd):
  square_n1 = jnp.sum(v_nd**2, axis=-1, keepdims=True)
  return lax.rsqrt(jnp.maximum(square_n1, _NORM_FLOOR))


def _unit(v_nd: jax.Array) -> jax.Array:
  """Rows scaled to length 1."""
  return v_nd * _inverse_length(v_nd)


def _varying(tree):
  return lax.pcast(tree, ("data", "model"), to="varying")


def _spec(leaf) -> P:
  return CLASSES if leaf.ndim else REPLICATED


def _pull_spec(pull: Pull) -> Pull:
  kept = None if pull.kept is None else P("model", "data")
  return Pull(*(_EXAMPLES,) * 5, scale=REPLICATED, kept=kept)
