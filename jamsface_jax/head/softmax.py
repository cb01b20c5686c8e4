"""The margin softmax over classes split across devices, with its gradients.

    CE_i = -log( exp(s phi_i) / (exp(s phi_i) + sum_{j != y} exp(s cos t_ij)) )

where phi_i, and what little else differs between the losses of the field, is
for `losses` to say.

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

from jamsface_jax.devices.sharding import BATCH, CLASSES, REPLICATED
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.clipping import clip_factor
from jamsface_jax.head.losses import Example, Running
from jamsface_jax.head.parameters import (
  ANGULAR,
  BIAS,
  CLASS_SIZES,
  COSINE,
  LOG_SCALE,
  WEIGHTS,
  Head,
  HeadParams,
  logit_offsets,
)

# Logit of a class that must not count. Not -inf: a shard may hold padding only,
# and -inf minus -inf is NaN.
_MASKED = -1e30
_NORM_FLOOR = 1e-12  # Floor of |w|^2: padded rows are zero.
_EXAMPLES = P("data")  # As the head sees them: gathered along `model`.


class Examples(NamedTuple):
  """The examples as both walks of the classes need them.

  All but `running` are split over `data` alone.

  Attributes:
    embeddings: of length 1, float32 [B, D].
    labels: int32 [B].
    scale: of each example's cosines, float32 [B].
    threshold: cosine above which other classes are hard, float32 [B]; None if
      the loss does not ask.
    running: what the loss remembers, float32 scalars.
  """

  embeddings: jax.Array
  labels: jax.Array
  scale: jax.Array
  threshold: jax.Array | None
  running: Running


class Pull(NamedTuple):
  """What the gradient of the weights needs; all but `kept` split over `data`.

  Attributes:
    examples: as the first walk had them.
    rest: log-sum-exp over the other classes, float32 [B]; the bias if the loss
      counts them one by one.
    rest_slope: derivative of the loss in it (in their sum), float32 [B].
    true_slope: derivative of the loss in the true class's cosine, float32 [B].
    kept: cosines of the first classes of each shard with all examples, so that
      the second walk need not multiply them again, split over `model` and
      `data`; None if none are kept.
  """

  examples: Examples
  rest: jax.Array
  rest_slope: jax.Array
  true_slope: jax.Array
  kept: jax.Array | None


class Result(NamedTuple):
  """The loss of a batch, and all gradients of its mean but one.

  Attributes:
    cross_entropy: of every example, float32 [B] (nats), split over `data`; with
      what the loss adds to it.
    correct: whether the true class has the largest cosine of the classes
      walked, margins apart; bool [B], split over `data`.
    true_cosine: to the true class, float32 [B], split over `data`.
    hardest_cosine: the largest to another of the classes walked, likewise.
    embedding_slopes: as the embeddings, sharding BATCH.
    small_slopes: of each parameter of the head but its weights, by name.
    running: what the loss remembers after this batch, float32 scalars.
    pull: for `weight_slopes` or `update_weights`.
    skipped: share of blocks whose gradient product was skipped, scalar.
  """

  cross_entropy: jax.Array
  correct: jax.Array
  true_cosine: jax.Array
  hardest_cosine: jax.Array
  embedding_slopes: jax.Array
  small_slopes: dict[str, jax.Array]
  running: Running
  pull: Pull
  skipped: jax.Array


def loss(
  params: HeadParams,
  embeddings: jax.Array,
  labels: jax.Array,
  *,
  head: Head,
  mesh: Mesh,
  running: Running,
  key: jax.Array,
  sample: Sample | None = None,
) -> Result:
  """Margin softmax cross-entropy, and the gradients of its mean.

  Args:
    params: as `head.init` returns, sharded by class.
    embeddings: float [B, D], any length, sharding BATCH.
    labels: int [B] in [0, N), sharding BATCH.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.
    running: what the loss remembers: `head.loss.start` or an earlier result's.
    key: of what the loss draws.
    sample: the classes to walk, all positives among them; None: all.
  """
  (unit_bd, length_b), pull_unit = jax.vjp(
    lambda x_bd: _unit_and_length(x_bd.astype(jnp.float32)), embeddings
  )
  noise_b = jnp.zeros(len(labels))
  if head.loss.draws:
    noise_b = jax.random.normal(key, (len(labels),))
  examples = lax.with_sharding_constraint(
    (unit_bd, labels, length_b, noise_b), NamedSharding(mesh, _EXAMPLES)
  )
  small = {name: _spec(p) for name, p in params.items() if name != WEIGHTS}
  pull_spec = _pull_spec(head)
  result = jax.shard_map(
    partial(_local_loss, head=head, mesh=mesh),
    mesh=mesh,
    in_specs=(
      *(jax.tree.map(_spec, params), jax.tree.map(_spec, sample)),
      *(_EXAMPLES, REPLICATED),
    ),
    out_specs=Result(
      *(_EXAMPLES, _EXAMPLES, _EXAMPLES, _EXAMPLES),
      *((BATCH, _EXAMPLES), small, REPLICATED),
      *(pull_spec, REPLICATED),
    ),
  )(params, sample, examples, running)
  return result._replace(embedding_slopes=pull_unit(result.embedding_slopes)[0])


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
  offsets = logit_offsets(params, head)

  def local(w_rk, pull, offset_r):
    def step(rows, slopes_rk):
      # Rows that an earlier chunk has had come out the same once more.
      rows = rows._replace(stale=0)
      classes = rows.classes(None, offset_r, head)
      slopes_nk, _ = _weight_slopes_of(
        rows, rows.cut(w_rk), classes, pull, head
      )
      return rows.put(slopes_rk, slopes_nk)

    slopes_rk = _varying(jnp.zeros(w_rk.shape))
    return lax.psum(
      _walk(len(w_rk), len(pull.rest), head, step, slopes_rk), "data"
    )

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(CLASSES, _pull_spec(head), jax.tree.map(_spec, offsets)),
    out_specs=CLASSES,
  )(params[WEIGHTS], pull, offsets)


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
  offsets = logit_offsets(params, head)

  def local(weights, state, pull, accept, sample, offset_r):
    w_rk, state_rk = weights, state
    if sample is not None:
      w_rk, state_rk = _by_row(
        lambda array: _take(array, sample.rows, head), (w_rk, state_rk)
      )
      offset_r = _of_sample(offset_r, sample)
    factor = jnp.float32(1.0)
    if clip_norm:

      def measure(rows, square):
        classes = rows.classes(sample, offset_r, head)
        slopes_nk, _ = _weight_slopes_of(
          rows, rows.cut(w_rk), classes, pull, head
        )
        return square + jnp.sum(lax.psum(slopes_nk, "data") ** 2)

      square = lax.pcast(jnp.float32(0.0), "model", to="varying")
      square = _walk(len(w_rk), len(pull.rest), head, measure, square)
      square = lax.psum(square, "model")
      factor = clip_factor(jnp.sqrt(square), clip_norm)

    def step(rows, carry):
      w_rk, state_rk, square, skipped = carry
      # Scalars as they were before the first chunk: all see one step.
      old = _by_row(
        lambda array, _: rows.cut(array), (w_rk, state_rk), (weights, state)
      )
      classes = rows.classes(sample, offset_r, head)
      slopes_nk, skips = _weight_slopes_of(rows, old[0], classes, pull, head)
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
      len(pull.rest),
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
        *(CLASSES, state_spec, _pull_spec(head), REPLICATED),
        *(jax.tree.map(_spec, sample), jax.tree.map(_spec, offsets)),
      ),
      out_specs=(CLASSES, state_spec, REPLICATED, REPLICATED),
    )(params[WEIGHTS], opt_state, pull, accept, sample, offsets)
  )


def _local_loss(params, sample, examples, running, *, head, mesh):
  """One device's part: examples of its `data` row, classes of its shard."""
  x_bd, y_b, length_b, noise_b = examples
  w_rk, classes = params[WEIGHTS], len(params[ANGULAR])
  batch = len(y_b) * mesh.shape["data"]

  # The true class, if it is one of mine: in float32 from its own rows.
  row_b = y_b - lax.axis_index("model") * classes
  mine_b = (row_b >= 0) & (row_b < classes)
  row_b = jnp.where(mine_b, row_b, 0)
  own_bkd = w_rk.reshape(classes, head.sub_centers, -1)[row_b]
  if head.loss.unit_weights:
    own_bkd = unit(own_bkd)
  cosine_bk = jnp.sum(x_bd[:, None] * own_bkd, axis=2)
  nearest_bk = _one_hot_of_largest(cosine_bk, axis=1)
  own_bd = jnp.sum(own_bkd * nearest_bk[..., None], axis=1)
  offset_r = logit_offsets(params, head)
  terms = [params[ANGULAR][row_b], params[COSINE][row_b]]
  terms += [] if offset_r is None else [offset_r[row_b]]
  terms = jnp.stack([cosine_bk.max(axis=1), *terms])
  true_b, a_b, c_b, *own = lax.psum(jnp.where(mine_b, terms, 0), "model")
  own_offset_b = own[0] if own else 0.0

  def whole(values_b):
    """The values of the whole batch, on every device."""
    start = lax.axis_index("data") * len(values_b)
    part = lax.dynamic_update_slice_in_dim(
      _varying(jnp.zeros(batch), "data"), values_b, start, 0
    )
    return lax.psum(part, "data")

  seen = Example(true_b, a_b, c_b, length_b, noise_b, running)
  if head.loss.remembers:
    everyone = Example(*map(whole, seen[:-1]), running)
    running = head.loss.observe(everyone)
  seen = seen._replace(running=running)
  scale = jnp.float32(head.scale)
  if LOG_SCALE in params:
    scale = jnp.exp(params[LOG_SCALE])
  bias = params.get(BIAS, jnp.float32(0.0))
  scale_b = head.loss.scale(seen, scale)
  threshold_b = head.loss.threshold(seen) if head.loss.hardens else None

  if sample is not None:
    w_rk = _take(w_rk, sample.rows, head)
    offset_r = _of_sample(offset_r, sample)
  walked = Examples(x_bd, y_b, scale_b, threshold_b, running)
  sums = _walk_forward(
    *(walked, w_rk, sample, offset_r, bias, LOG_SCALE in params, head)
  )
  best_b = lax.pmax(sums.best_b, "model")
  if head.loss.one_by_one:
    top_b = bias
    shrink_b = jnp.ones_like(sums.sum_b)
  else:
    top_b = lax.pmax(sums.top_b, "model") if sums.apart else best_b
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

  def mean(true_b, rest_b, a_b, c_b, length_b, scale, bias):
    x = seen._replace(
      cosine=true_b, angular=a_b, cosine_margin=c_b, length=length_b
    )
    scale_b = head.loss.scale(x, scale)
    phi_b = head.loss.similarity(x)
    # The sum over other classes is made already; what it owes to the scale and
    # to the bias is added here, with value 0.
    if cosine_sum_b is not None:
      slope_b = cosine_sum_b if head.loss.one_by_one else cosine_sum_b / sum_b
      rest_b += slope_b * (scale_b - lax.stop_gradient(scale_b))
    if head.loss.one_by_one:
      rest_b -= share_sum_b * (bias - lax.stop_gradient(bias))
      loss_b = (
        jax.nn.softplus(bias - scale_b * phi_b) + head.loss.weight * rest_b
      )
    else:
      loss_b = jax.nn.softplus(rest_b - scale_b * phi_b - own_offset_b)
    loss_b += head.loss.penalty(x)
    return loss_b.sum() / batch, loss_b

  slopes, loss_b = jax.grad(mean, argnums=tuple(range(7)), has_aux=True)(
    true_b, rest_b, a_b, c_b, length_b, scale, bias
  )
  true_slope_b, rest_slope_b, a_slope_b, c_slope_b, length_slope_b = slopes[:5]

  pull_b = scale_b * rest_slope_b
  if not head.loss.one_by_one:
    pull_b *= jnp.exp(sums.top_b - rest_b)
  slopes_bd = pull_b[:, None] * sums.pulled_bd
  slopes_bd += jnp.where(mine_b, true_slope_b, 0.0)[:, None] * own_bd
  of_margins_b2 = jnp.stack([a_slope_b, c_slope_b], axis=1)
  slopes_c2 = jnp.zeros((classes, 2)).at[row_b]
  slopes_c2 = lax.psum(
    slopes_c2.add(jnp.where(mine_b[:, None], of_margins_b2, 0.0)), "data"
  )
  small_slopes = {ANGULAR: slopes_c2[:, 0], COSINE: slopes_c2[:, 1]}
  # The same on every device: their gradients come summed over `data`.
  for name, slope in (
    *((LOG_SCALE, scale * slopes[5]), (BIAS, slopes[6])),
    (CLASS_SIZES, jnp.zeros(classes)),
  ):
    if name in params:
      small_slopes[name] = slope
  if head.loss.remembers:
    running = head.loss.adapt(everyone._replace(running=running), whole(rest_b))
  return Result(
    cross_entropy=loss_b,
    correct=scale_b * true_b > best_b,
    true_cosine=true_b,
    hardest_cosine=best_b / scale_b,
    embedding_slopes=(
      lax.psum_scatter(slopes_bd, "model", tiled=True),
      length_slope_b,
    ),
    small_slopes=small_slopes,
    running=running,
    pull=Pull(walked, counted_from_b, rest_slope_b, true_slope_b, sums.kept),
    skipped=lax.pmean(sums.skipped, ("data", "model")),
  )


class _Sums(NamedTuple):
  """What the first walk leaves of this shard's classes but the true ones.

  Attributes:
    best_b: largest logit before classes are hardened or weighed.
    top_b, sum_b: log-sum-exp = top + log(sum). If classes count one by one, top
      is their bias, and sum is that of log(1 + exp(l - bias)).
    pulled_bd: sum of exp(l - top) u, u the slope of the cosine in x.
    cosine_sum_b: of exp(l - top) cos; None if no scale has a slope.
    share_sum_b: of exp(l - top) / (1 + exp(l - top)); None if not one by one.
    kept: cosines to keep, or None.
    skipped: share of blocks that were skipped.
    apart: whether `best_b` and `top_b` differ.
  """

  best_b: jax.Array
  top_b: jax.Array
  sum_b: jax.Array
  pulled_bd: jax.Array
  cosine_sum_b: jax.Array | None
  share_sum_b: jax.Array | None
  kept: jax.Array | None
  skipped: jax.Array
  apart: bool


def _walk_forward(examples, w_rk, sample, offset_r, bias, learns_scale, head):
  """Sums over this shard's classes but the true ones, see `_Sums`."""
  x_bd, y_b = examples.embeddings, examples.labels
  one_by_one = head.loss.one_by_one
  apart = head.loss.hardens or one_by_one or head.weigh_sample
  apart = apart or offset_r is not None
  needs_cosine = learns_scale or head.loss.scale_has_slope

  def step(rows, carry):
    best_b, top_b, sum_b, pulled_bd, cosine_sum_b, share_sum_b = carry[:6]
    kept, skipped = carry[6:]
    w_nk = rows.cut(w_rk)
    classes = rows.classes(sample, offset_r, head)
    logits = _logits(examples, w_nk, classes, head)
    chunk_top_b = logits.others_nb.max(axis=0)
    if one_by_one:
      new_top_b, shrink_b = top_b, jnp.ones_like(top_b)
      above_nb = logits.others_nb - top_b[None]
      e_nb = jax.nn.sigmoid(above_nb)
      sum_b += jax.nn.softplus(above_nb).sum(axis=0)
      share_sum_b += e_nb.sum(axis=0)
    else:
      new_top_b = jnp.maximum(top_b, chunk_top_b)
      shrink_b = jnp.exp(top_b - new_top_b)
      e_nb = jnp.exp(logits.others_nb - new_top_b[None])
      sum_b = sum_b * shrink_b + e_nb.sum(axis=0)
    if apart:
      best_b = jnp.maximum(best_b, logits.best_b(examples.scale))
    else:
      best_b = new_top_b
    if needs_cosine:
      cosine_sum_b *= shrink_b
      cosine_sum_b += (e_nb * logits.seen_nb).sum(axis=0)

    def pull():
      e_kb = logits.spread(logits.through(e_nb)) * logits.inverse_k1
      return product(e_kb, w_nk, (0, 0), head)

    share_b = chunk_top_b - new_top_b
    if not one_by_one:  # The share so far is at least the share in the end.
      share_b -= jnp.log(sum_b)
    pulled, skips = _unless_below(share_b, pull, x_bd.shape, head)
    pulled_bd = pulled_bd * shrink_b[:, None] + pulled
    if rows.is_kept:
      kept = rows.keep(kept, logits.cosine_kb)
    return (
      *(best_b, new_top_b, sum_b, pulled_bd, cosine_sum_b, share_sum_b),
      *(kept, skipped + skips),
    )

  zeros_b, kept = jnp.zeros(len(y_b)), None
  chunks, size = count_chunks(len(w_rk) // head.sub_centers, head)
  if head.keep_bytes:
    kept = count_kept(chunks, size, len(y_b), head)
    kept = jnp.zeros((kept * size * head.sub_centers, len(y_b)))
  start = _varying(
    (
      *(zeros_b + _MASKED, zeros_b, zeros_b, jnp.zeros(x_bd.shape)),
      *(zeros_b if needs_cosine else None, zeros_b if one_by_one else None),
      *(kept, 0.0),
    )
  )
  start = (start[0], start[1] + (bias if one_by_one else _MASKED), *start[2:])
  *sums, skipped = _walk(len(w_rk), len(y_b), head, step, start)
  return _Sums(*sums, skipped / chunks, apart)


def _weight_slopes_of(rows, w_nk, classes, pull, head):
  """Gradient of some rows of the weights from this device's examples.

  `classes` is what `rows.classes` says of them.

  Returns:
    float32 [n, D] for the n weight rows of this chunk, and whether their
    product was skipped, 1 or 0.
  """
  examples = pull.examples
  logits = _logits(
    *(examples, w_nk, classes, head),
    cosine_kb=rows.kept(pull.kept) if rows.is_kept else None,
  )
  log_share_nb = logits.others_nb - pull.rest[None]
  share = jax.nn.sigmoid if head.loss.one_by_one else jnp.exp
  slopes_nb = jnp.where(
    logits.is_true_nb,
    pull.true_slope[None],
    (examples.scale * pull.rest_slope)[None]
    * logits.through(share(log_share_nb)),
  )

  def pulled():
    slopes_kb = logits.spread(slopes_nb)
    pulled_nk = product(slopes_kb, examples.embeddings, (1, 0), head)
    if not head.loss.unit_weights:
      return pulled_nk
    along_k = jnp.sum(slopes_kb * logits.cosine_kb, axis=1)
    # Of a unit vector: what lies along the weight itself does not count.
    along_k1 = logits.inverse_k1 * along_k[:, None]
    return logits.inverse_k1 * (pulled_nk - w_nk * along_k1)

  # A softmax over all classes has the share times the share of the rest, which
  # `rest_slope` holds (divided by the batch).
  batch = len(pull.rest) * lax.axis_size("data")
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

  def classes(self, sample, offset_r, head):
    """The classes, -1 for those that do not count, and what is on top."""
    if sample is None:
      shards = lax.axis_size("model")
      first = lax.axis_index("model") * (head.padded_classes // shards)
      class_n = first + self.start + jnp.arange(self.size)
      class_n = jnp.where(class_n < head.num_classes, class_n, -1)
      offset_n = jnp.zeros(self.size)
    else:
      class_n, offset_n = (
        lax.dynamic_slice_in_dim(array, self.start, self.size)
        for array in (sample.classes, sample.log_weights)
      )
    if offset_r is not None:
      offset_n += lax.dynamic_slice_in_dim(offset_r, self.start, self.size)
    fresh_n = jnp.arange(self.size) >= self.stale
    return jnp.where(fresh_n, class_n, -1), offset_n


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
    seen_nb: the same as the loss has them.
    seen_slope_nb: slope of `seen_nb` in `cosine_nb`; None: 1.
    others_nb: logits, masked where a class does not count or is the true one.
    counts_nb: where it does and is not.
    is_true_nb: whether it is the true one.
    inverse_k1: 1 / |w| of every weight row, float32 [n K, 1]; 1 if the loss
      takes weights as they are.
  """

  cosine_kb: jax.Array
  cosine_nb: jax.Array
  seen_nb: jax.Array
  seen_slope_nb: jax.Array | None
  others_nb: jax.Array
  counts_nb: jax.Array
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

  def through(self, slopes_nb):
    """Takes slopes in what the loss has to slopes in the cosines."""
    if self.seen_slope_nb is None:
      return slopes_nb
    return slopes_nb * self.seen_slope_nb

  def best_b(self, scale_b):
    """The largest logit of each example before the loss changes any."""
    logits_nb = scale_b[None] * self.cosine_nb
    return jnp.where(self.counts_nb, logits_nb, _MASKED).max(axis=0)


def _logits(examples, w_nk, classes, head, cosine_kb=None):
  class_n, offset_n = classes
  inverse_k1 = jnp.ones((len(w_nk), 1))
  if head.loss.unit_weights:
    inverse_k1 = _inverse_length(w_nk)
  if cosine_kb is None:
    cosine_kb = product(w_nk, examples.embeddings, (1, 1), head) * inverse_k1
  cosine_nb = cosine_kb
  if head.sub_centers > 1:
    by_class = cosine_kb.reshape(len(class_n), head.sub_centers, -1)
    cosine_nb = by_class.max(axis=1)
  is_true_nb = class_n[:, None] == examples.labels[None]
  counts_nb = (class_n >= 0)[:, None] & ~is_true_nb
  if head.ignore_above < 1:
    counts_nb &= cosine_nb <= head.ignore_above
  seen_nb, seen_slope_nb = cosine_nb, None
  if head.loss.hardens:
    seen_nb, seen_slope_nb = head.loss.harden(
      cosine_nb, examples.threshold, examples.running
    )
  logits_nb = examples.scale[None] * seen_nb + offset_n[:, None]
  return _Logits(
    *(cosine_kb, cosine_nb, seen_nb, seen_slope_nb),
    jnp.where(counts_nb, logits_nb, _MASKED),
    *(counts_nb, is_true_nb, inverse_k1),
  )


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


def _of_sample(offset_r, sample):
  """Those of the sampled classes; None stays None."""
  if offset_r is None:
    return None
  return jnp.take(offset_r, sample.rows, mode="clip")


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


def unit(v_nd: jax.Array) -> jax.Array:
  """Rows scaled to length 1."""
  return v_nd * _inverse_length(v_nd)


def _unit_and_length(v_nd: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The same, and the lengths that they had."""
  inverse_n1 = _inverse_length(v_nd)
  return v_nd * inverse_n1, 1 / inverse_n1[:, 0]


def _varying(tree, axes=("data", "model")):
  return lax.pcast(tree, axes, to="varying")


def _spec(leaf) -> P:
  return CLASSES if leaf.ndim else REPLICATED


def _pull_spec(head: Head) -> Pull:
  examples = Examples(
    *(_EXAMPLES, _EXAMPLES, _EXAMPLES),
    threshold=_EXAMPLES if head.loss.hardens else None,
    running=REPLICATED,
  )
  kept = P("model", "data") if head.keep_bytes else None
  return Pull(examples, _EXAMPLES, _EXAMPLES, _EXAMPLES, kept)
