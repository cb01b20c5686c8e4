"""The mean loss as a function that JAX differentiates, for any training loop.

`mean_loss` has the two walks of `forward` and `update` as its forward and its
backward: `jax.grad` of it costs four matrix products, and no array has an entry
for each example and each class. The gradient of the class weights exists as a
whole then; `fused_optimizer` is for those who want its memory.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Key, Shaped

from jamsface_jax.devices.sharding import BATCH
from jamsface_jax.head import class_sampling
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.forward import LossResult, check_inputs, loss
from jamsface_jax.head.layout import mesh_for, place, spec_of
from jamsface_jax.head.losses import LossState
from jamsface_jax.head.margin_rules import constrain, margin_reward
from jamsface_jax.head.parameters import (
  WEIGHTS,
  Head,
  HeadParams,
  margins_and_scalars,
)
from jamsface_jax.head.update import weight_gradient


class Measured(NamedTuple):
  """What is known of a batch beside its mean loss; without gradient.

  Attributes:
    cross_entropy: of every example, float32 [B] (nats).
    correct: whether the true class has the largest cosine, bool [B].
    true_cosine: to the true class, float32 [B].
    hardest_cosine: the largest to another class, float32 [B].
    loss_state: what the loss remembers: give it to the next step.
  """

  cross_entropy: jax.Array
  correct: jax.Array
  true_cosine: jax.Array
  hardest_cosine: jax.Array
  loss_state: LossState


def mean_loss(
  params: HeadParams,
  embeddings: Float[Array | np.ndarray, "b d"],
  labels: Shaped[Array | np.ndarray, " n"],
  *,
  head: Head,
  mesh: Mesh | None = None,
  loss_state: LossState | None = None,
  key: Key[Array, ""] | None = None,
  reward: float | Float32[Array, ""] = 1.0,
) -> tuple[Float32[Array, ""], Measured]:
  """The mean loss of a batch, to be differentiated in params and embeddings.

  Learned margins count as `constrain` puts them, so that a loop which forgets
  to do so after its steps (`optimizer.optimizer` does) cannot let them sink;
  their gradient is that at the projected values (ours).

  Args:
    params: as `init` returns.
    embeddings: float [B, D], any length and dtype.
    labels: int [B] in [0, N). One outside is an `InputError` where labels have
      values, and makes the loss NaN inside of `jit`.
    head: what is fixed about the head.
    mesh: a mesh with axes `data` and `model`, whose devices divide B; None: one
      device.
    loss_state: `first_state(head)`, or what the step before measured; of
      losses that remember.
    key: for losses that draw, and for sampled classes.
    reward: factor on the reward of rule "lambda".

  Returns:
    The mean over the batch, less the reward of large margins; and what else is
    known of it, for `has_aux=True`.

  Raises:
    InputError: shapes, labels, mesh, state or key do not fit the head.
  """
  mesh = mesh_for(embeddings, mesh)
  check_inputs(params, embeddings, labels, head, mesh, loss_state, key)
  batch = _Batch(jnp.asarray(labels), loss_state, key, sample=None)
  return _compile(head, mesh)(
    params, jnp.asarray(embeddings), batch, jnp.float32(reward)
  )


class _Batch(NamedTuple):
  """What the loss is given beside what it is differentiated in."""

  labels: jax.Array
  loss_state: LossState | None
  key: jax.Array | None
  sample: Sample | None


@cache
def _compile(head: Head, mesh: Mesh) -> Callable[..., Any]:
  """The loss of this head on this mesh, compiled once where no `jit` is."""
  cross_entropy = _differentiable(head, mesh)

  @jax.jit
  def compiled(
    params: HeadParams, embeddings: jax.Array, batch: _Batch, reward: jax.Array
  ) -> tuple[jax.Array, Measured]:
    params = {
      name: place(value, mesh, spec_of(value)) for name, value in params.items()
    }
    params = _constrained(params, head)
    labels = place(batch.labels, mesh, BATCH)
    batch = batch._replace(labels=labels)
    if head.sample_rate < 1 and batch.key is not None:
      draw_key = jax.random.fold_in(batch.key, 1)
      drawn = class_sampling.draw(draw_key, labels, head, mesh)
      batch = batch._replace(sample=drawn)
    mean, measured = cross_entropy(
      params, place(embeddings, mesh, BATCH), batch
    )
    mean -= reward * margin_reward(params, labels, head)
    return mean, lax.stop_gradient(measured)

  return compiled


def _differentiable(head: Head, mesh: Mesh) -> Callable[..., Any]:
  """The mean cross-entropy and what is measured, with its own derivative."""

  def forward(
    params: HeadParams, embeddings: jax.Array, batch: _Batch
  ) -> LossResult:
    return loss(
      params,
      embeddings,
      batch.labels,
      head=head,
      mesh=mesh,
      loss_state=batch.loss_state,
      key=batch.key,
      sample=batch.sample,
    )

  @jax.custom_vjp
  def cross_entropy(
    params: HeadParams, embeddings: jax.Array, batch: _Batch
  ) -> tuple[jax.Array, Measured]:
    return _mean_and_measured(forward(params, embeddings, batch))

  def keep(
    params: HeadParams, embeddings: jax.Array, batch: _Batch
  ) -> tuple[tuple[jax.Array, Measured], tuple[Any, ...]]:
    result = forward(params, embeddings, batch)
    kept = (
      params,
      result.residuals,
      result.embedding_gradient,
      result.margins_and_scalars_gradient,
      batch.sample,
    )
    return _mean_and_measured(result), kept

  def pull_back(
    kept: tuple[Any, ...], cotangents: tuple[jax.Array, Any]
  ) -> tuple[HeadParams, jax.Array, None]:
    params, residuals, of_embeddings, of_others, sample = kept
    of_weights = weight_gradient(
      params, residuals, head=head, mesh=mesh, sample=sample
    )
    scaled = partial(_times, cotangents[0])
    of_params = {WEIGHTS: of_weights, **of_others}
    return jax.tree.map(scaled, of_params), scaled(of_embeddings), None

  cross_entropy.defvjp(keep, pull_back)
  return cross_entropy


def _times(factor: jax.Array, gradient: jax.Array) -> jax.Array:
  return (factor * gradient).astype(gradient.dtype)


def _mean_and_measured(result: LossResult) -> tuple[jax.Array, Measured]:
  measured = Measured(
    cross_entropy=result.cross_entropy,
    correct=result.correct,
    true_cosine=result.true_cosine,
    hardest_cosine=result.hardest_cosine,
    loss_state=result.loss_state,
  )
  return result.cross_entropy.mean(), measured


def _constrained(params: HeadParams, head: Head) -> HeadParams:
  """The same where margins are as they should be; gradients pass through."""
  rest = margins_and_scalars(params)
  inside = constrain(lax.stop_gradient(rest), head)
  return params | {
    name: value + lax.stop_gradient(inside[name] - value)
    for name, value in rest.items()
  }
