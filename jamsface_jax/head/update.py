"""The second walk of the classes: the gradient of their weights, and a step.

`weight_gradient` returns it; `update_weights` takes a step with it, chunk by
chunk as it comes, so that it never exists as a whole. Shapes are those of
`forward`.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32

from jamsface_jax.devices.sharding import CLASSES, REPLICATED
from jamsface_jax.head.chunks import (
  Chunk,
  count_chunks,
  map_classes,
  put_classes,
  take_classes,
  take_offsets,
  walk,
)
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.forward import RESIDUAL_SPECS, Residuals
from jamsface_jax.head.layout import spec_of, varying
from jamsface_jax.head.logits import (
  make_logits,
  product,
  product_unless_below,
)
from jamsface_jax.head.parameters import (
  WEIGHTS,
  Head,
  HeadParams,
  logit_offsets,
)


def weight_gradient(
  params: HeadParams,
  residuals: Residuals,
  *,
  head: Head,
  mesh: Mesh,
  sample: Sample | None = None,
) -> Float32[Array, "ck d"]:
  """Gradient of the mean cross-entropy in the class weights.

  Args:
    params: those of `loss`.
    residuals: what `loss` returned.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.
    sample: the classes that were walked; None: all.

  Returns:
    float32 [C K, D], as the weights; 0 in rows that are padding or were not
    walked.
  """

  def local(
    weights: jax.Array,
    residuals: dict[str, Any],
    sample: Sample | None,
    offset_c: jax.Array | None,
  ) -> jax.Array:
    if sample is None:
      sources = _Sources(Residuals(**residuals), None, offset_c)
      return _local_gradient(weights, sources, head)
    sources = _Sources(
      Residuals(**residuals), sample, take_offsets(offset_c, sample)
    )
    w_rk = take_classes(weights, sample.rows, head)
    gradient_rk = _local_gradient(w_rk, sources, head)
    zeros = jnp.zeros_like(weights)
    return put_classes(zeros, sample.rows, gradient_rk, head)

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(CLASSES, RESIDUAL_SPECS, CLASSES, CLASSES),
    out_specs=CLASSES,
  )(params[WEIGHTS], residuals._asdict(), sample, logit_offsets(params, head))


class WeightUpdate(NamedTuple):
  """What a step makes of the class weights.

  Attributes:
    weights: float32 [C K, D], sharding CLASSES.
    opt_state: state of their optimizer.
    gradient_norm: norm of the gradient before clipping, scalar.
    skipped: share of blocks whose gradient product was skipped, scalar.
  """

  weights: jax.Array
  opt_state: Any
  gradient_norm: jax.Array
  skipped: jax.Array


def update_weights(
  params: HeadParams,
  opt_state: Any,
  residuals: Residuals,
  accept: Bool[Array, ""],
  *,
  head: Head,
  mesh: Mesh,
  optimizer: optax.GradientTransformation,
  clip_norm: float,
  sample: Sample | None = None,
) -> WeightUpdate:
  """Takes a step of the class weights, chunk by chunk as their gradient comes.

  The gradient never exists as a whole. With a sample, the other classes'
  weights and optimizer state are neither read nor written. The norm that
  clipping needs is known when the last class has been seen, so that clipping
  costs a walk more.

  Args:
    params: those of `loss`.
    opt_state: what `optimizer.init(weights)` returned, or a later one.
    residuals: what `loss` returned.
    accept: bool scalar; False leaves weights and state as they are.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.
    optimizer: acts on each element alone, as SGD and Adam do: state with a
      first axis is cut by class as the weights are, other state is a scalar.
    clip_norm: largest norm of the gradient; 0: any.
    sample: the classes that were walked; None: all.
  """
  state_specs = jax.tree.map(spec_of, opt_state)
  local = partial(
    _local_update, head=head, optimizer=optimizer, clip_norm=clip_norm
  )
  weights, opt_state, gradient_norm, skipped = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(
      CLASSES,
      state_specs,
      RESIDUAL_SPECS,
      REPLICATED,
      CLASSES,
      CLASSES,
    ),
    out_specs=(CLASSES, state_specs, REPLICATED, REPLICATED),
  )(
    params[WEIGHTS],
    opt_state,
    residuals._asdict(),
    accept,
    sample,
    logit_offsets(params, head),
  )
  return WeightUpdate(weights, opt_state, gradient_norm, skipped)


class _Sources(NamedTuple):
  """What the gradient of a device's classes is made of.

  Attributes:
    residuals: this device's part of them.
    sample: its slots of the sampled classes; None: it walks all of its shard.
    offset_r: what is added to the logits of the classes walked, or None.
  """

  residuals: Residuals
  sample: Sample | None
  offset_r: jax.Array | None

  @property
  def examples(self) -> int:
    """Number of this device's examples."""
    return len(self.residuals.examples.labels)


class _Walked(NamedTuple):
  """What a walk that updates carries from chunk to chunk.

  Attributes:
    w_rk: weight rows of the classes walked, those of earlier chunks new.
    state_rk: state of their optimizer, likewise.
    square: squared norm of the gradient so far.
    skipped: blocks that were skipped so far.
  """

  w_rk: jax.Array
  state_rk: Any
  square: jax.Array
  skipped: jax.Array


def _local_gradient(
  w_rk: Float32[Array, "rk d"], sources: _Sources, head: Head
) -> Float32[Array, "rk d"]:
  """The gradient of one shard's weights from all examples."""

  def step(chunk: Chunk, gradient_rk: jax.Array) -> jax.Array:
    # Rows that an earlier chunk has had come out the same once more.
    chunk = dataclasses.replace(chunk, stale=0)
    gradient_nk, _ = _chunk_gradient(chunk, chunk.cut(w_rk), sources, head)
    return chunk.put(gradient_rk, gradient_nk)

  gradient_rk = varying(jnp.zeros(w_rk.shape))
  gradient_rk = walk(len(w_rk), sources.examples, head, step, gradient_rk)
  return lax.psum(gradient_rk, "data")


def _local_update(
  weights: Float32[Array, "ck d"],
  opt_state: Any,
  residuals: dict[str, Any],
  accept: Bool[Array, ""],
  sample: Sample | None,
  offset_c: Float32[Array, " c"] | None,
  *,
  head: Head,
  optimizer: optax.GradientTransformation,
  clip_norm: float,
) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
  """One shard's step: its weights and state, norm, share of skipped blocks."""
  w_rk, state_rk, offset_r = weights, opt_state, offset_c
  if sample is not None:
    w_rk, state_rk = map_classes(
      lambda array: take_classes(array, sample.rows, head), (w_rk, state_rk)
    )
    offset_r = take_offsets(offset_c, sample)
  sources = _Sources(Residuals(**residuals), sample, offset_r)
  factor = jnp.float32(1.0)
  if clip_norm:
    factor = clip_factor(_gradient_norm(w_rk, sources, head), clip_norm)

  def step(chunk: Chunk, walked: _Walked) -> _Walked:
    # Scalars as they were before the first chunk: all see one step.
    old = map_classes(
      lambda array, _: chunk.cut(array),
      (walked.w_rk, walked.state_rk),
      (weights, opt_state),
    )
    gradient_nk, skips = _chunk_gradient(chunk, old[0], sources, head)
    gradient_nk = lax.psum(gradient_nk, "data")
    new = _step_of_chunk(chunk, old, gradient_nk, factor, accept, optimizer)
    w_rk, state_rk = map_classes(chunk.put, (walked.w_rk, walked.state_rk), new)
    return _Walked(
      w_rk=w_rk,
      state_rk=state_rk,
      square=walked.square + jnp.sum(gradient_nk**2),
      skipped=walked.skipped + skips,
    )

  zero = jnp.float32(0.0)
  start = _Walked(w_rk, state_rk, varying(zero, "model"), varying(zero))
  rows = len(w_rk)
  walked = walk(rows, sources.examples, head, step, start)
  w_rk, state_rk = walked.w_rk, walked.state_rk
  if sample is not None:
    w_rk, state_rk = map_classes(
      lambda array, new: put_classes(array, sample.rows, new, head),
      (weights, opt_state),
      (w_rk, state_rk),
    )
  norm = jnp.sqrt(lax.psum(walked.square, "model"))
  chunks, _ = count_chunks(rows // head.sub_centers, head)
  skipped = lax.pmean(walked.skipped / chunks, ("data", "model"))
  return w_rk, state_rk, norm, skipped


def _gradient_norm(
  w_rk: Float32[Array, "rk d"], sources: _Sources, head: Head
) -> Float32[Array, ""]:
  """The norm of the gradient of all shards' walked classes."""

  def step(chunk: Chunk, square: jax.Array) -> jax.Array:
    gradient_nk, _ = _chunk_gradient(chunk, chunk.cut(w_rk), sources, head)
    return square + jnp.sum(lax.psum(gradient_nk, "data") ** 2)

  square = varying(jnp.float32(0.0), "model")
  square = walk(len(w_rk), sources.examples, head, step, square)
  return jnp.sqrt(lax.psum(square, "model"))


def _step_of_chunk(
  chunk: Chunk,
  old: tuple[jax.Array, Any],
  gradient_nk: Float32[Array, "nk d"],
  factor: Float32[Array, ""],
  accept: Bool[Array, ""],
  optimizer: optax.GradientTransformation,
) -> tuple[jax.Array, Any]:
  """A chunk's next weights and optimizer state, or the old if not accepted."""

  def take_step() -> tuple[jax.Array, Any]:
    w_nk, state_nk = old
    updates, state_nk = optimizer.update(factor * gradient_nk, state_nk, w_nk)
    new = optax.apply_updates(w_nk, updates), state_nk
    return map_classes(chunk.unless_stale, old, new)

  def choose_by_branch() -> tuple[jax.Array, Any]:
    # What a branch returns is a buffer of its own. XLA:CPU would otherwise read
    # the old rows while it writes the new ones, and for that copy the whole
    # arrays once a chunk.
    return lax.cond(accept, take_step, lambda: old)

  def choose_by_element() -> tuple[jax.Array, Any]:
    # XLA:GPU writes in place, and a branch would have the host wait for the
    # device: an H100 took 28.4 ms by branch and 24.6 by element.
    return jax.tree.map(partial(jnp.where, accept), take_step(), old)

  return lax.platform_dependent(
    cuda=choose_by_element, rocm=choose_by_element, default=choose_by_branch
  )


def _chunk_gradient(
  chunk: Chunk, w_nk: Float32[Array, "nk d"], sources: _Sources, head: Head
) -> tuple[Float32[Array, "nk d"], Float32[Array, ""]]:
  """Gradient of a chunk's weight rows from this device's examples.

  Returns:
    The gradient, and whether its product was skipped, 1 or 0.
  """
  examples, of_loss, loss_state, kept, inverse_length_r = sources.residuals
  cosine_kb = None
  if kept is not None and chunk.is_kept:
    cosine_kb = chunk.kept(kept)
  classes = chunk.classes(sources.sample, sources.offset_r, head)
  inverse_k1 = jnp.ones((len(w_nk), 1))
  if inverse_length_r is not None:
    inverse_k1 = chunk.cut(inverse_length_r)[:, None]
  logits = make_logits(
    examples, loss_state, w_nk, inverse_k1, classes, head, cosine_kb
  )
  log_share_nb = logits.others_nb - of_loss.rest[None]
  share = jax.nn.sigmoid if head.loss.one_by_one else jnp.exp
  gradient_nb = jnp.where(
    logits.is_true_nb,
    of_loss.true_gradient[None],
    (examples.scale * of_loss.rest_gradient)[None]
    * logits.gradient_of_cosines(share(log_share_nb)),
  )

  def gradient_of_weights() -> jax.Array:
    gradient_kb = logits.gradient_of_rows(gradient_nb)
    gradient_nk = product(gradient_kb, examples.embeddings, (1, 0), head)
    if not head.loss.unit_weights:
      return gradient_nk
    along_k = jnp.sum(gradient_kb * logits.cosine_kb, axis=1)
    # Of a unit vector: what lies along the weight itself does not count.
    along_k1 = logits.inverse_length_k1 * along_k[:, None]
    return logits.inverse_length_k1 * (gradient_nk - w_nk * along_k1)

  # A softmax over all classes has the share times the share of the rest, which
  # `rest_gradient` holds (divided by the batch).
  batch = sources.examples * lax.axis_size("data")
  share_b = log_share_nb.max(axis=0) + jnp.log(
    jnp.maximum(batch * of_loss.rest_gradient, 1e-38)
  )
  share_b = jnp.where(logits.is_true_nb.any(axis=0), 0.0, share_b)
  return product_unless_below(share_b, gradient_of_weights, w_nk.shape, head)


def clip_factor(norm: Float[Array, ""], largest: float) -> Float[Array, ""]:
  """What a gradient of this norm is multiplied by to keep below the largest.

  Args:
    norm: norm of the gradient, scalar.
    largest: norm that it may have; 0: any, the factor is 1.
  """
  return jnp.minimum(1.0, largest / norm) if largest else jnp.float32(1.0)
