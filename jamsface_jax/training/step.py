"""One step of training: a pure function of a state and a batch."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, Key

from jamsface_jax import head as head_lib
from jamsface_jax.augmentation.augment import augment, normalize
from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import compiler_options
from jamsface_jax.head import (
  WEIGHTS,
  Head,
  LossResult,
  Sample,
  WeightUpdate,
  class_sampling,
)
from jamsface_jax.run.components import Components
from jamsface_jax.run.state import TrainState, state_shapes
from jamsface_jax.settings.sections import Settings

Tree = TypeVar("Tree")


def make_train_step(
  settings: Settings, components: Components, mesh: Mesh
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Compiles `train_step` for these settings; it takes over its state."""
  shapes = state_shapes(components, settings.data.image_size, mesh)
  shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
  step = partial(
    train_step,
    components=components,
    mesh=mesh,
    augmentation=dataclasses.asdict(settings.augment),
    accumulation=settings.optimizer.accumulation,
    fused_update=settings.head.fused_update,
    clip_norm=settings.head.clip_norm,
    seed=settings.seed,
  )
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(shardings, None),
    compiler_options=compiler_options(mesh.devices.flat[0].platform),
  )


class _Statistics(NamedTuple):
  """What a forward pass changes besides gradients.

  Attributes:
    batch_stats: running statistics of the backbone.
    loss_state: what the loss remembers.
  """

  batch_stats: Any
  loss_state: head_lib.LossState


class _Gradients(NamedTuple):
  """Gradients of a batch or of a micro-batch, and what else comes of it.

  Attributes:
    backbone: as its parameters.
    margins_and_scalars: gradients of those of the head, by name.
    weights: gradient of the class weights; None if they move as it comes.
    metrics: means over examples, float32 scalars by name.
  """

  backbone: Any
  margins_and_scalars: dict[str, jax.Array]
  weights: jax.Array | None
  metrics: dict[str, jax.Array]


def train_step(
  state: TrainState,
  batch: Mapping[str, jax.Array],
  *,
  components: Components,
  mesh: Mesh,
  augmentation: Mapping[str, Any],
  accumulation: int,
  fused_update: bool,
  clip_norm: float,
  seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of the optimizers, pure.

  A step whose loss or backbone gradient is not finite is rejected: it is
  counted, and changes nothing else.

  Args:
    state: sharded as `state_shapes` says.
    batch: `images` uint8 [B, H, W, 3] and `labels` int32 [B], sharding BATCH.
    components: what the run is made of.
    mesh: the (data, model) mesh.
    augmentation: arguments of `augment`, beside key and images.
    accumulation: micro-batches; their mean gradient is that of the batch
      (batch statistics are each micro-batch's own). More than one needs
      `fused_update=False`.
    fused_update: update the class weights as their gradient comes.
    clip_norm: largest norm of the class weights' gradient; 0: any.
    seed: seed of augmentation, dropout and sampled classes.

  Returns:
    The next state, and float32 scalars by their name in `metrics.jsonl`.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  augment_key, forward_key = jax.random.split(key)
  images = jnp.asarray(normalize(batch["images"]))
  images = augment(augment_key, images, **augmentation)
  labels = batch["labels"]
  sample = _draw_classes(key, labels, components.head, mesh)
  forward_and_back = partial(
    _forward_and_back,
    params=state.params,
    components=components,
    mesh=mesh,
    sample=sample,
    fused_update=fused_update,
  )
  statistics, gradients, loss = _accumulate(
    forward_and_back, state, images, labels, forward_key, accumulation, mesh
  )
  gradients = _subtract_reward(gradients, state, labels, components)
  backbone_norm = optax.tree.norm(gradients.backbone)
  accept = jnp.isfinite(gradients.metrics["train/loss"])
  accept &= jnp.isfinite(backbone_norm)

  backbone = _update_backbone(accept, gradients, state, components)
  others = _update_margins_and_scalars(accept, gradients, state, components)
  weights = _update_weights(
    accept, gradients, loss, state, components, mesh, clip_norm, sample
  )
  next_state = _next_state(state, accept, backbone, others, weights, statistics)

  metrics = gradients.metrics | _state_metrics(state, next_state, components)
  metrics["train/gradient_norm"] = jnp.hypot(
    backbone_norm, weights.gradient_norm
  )
  if loss is not None and fused_update and components.head.skip_below:
    metrics["train/skipped_blocks"] = (loss.skipped + weights.skipped) / 2
  return next_state, metrics


def _draw_classes(
  key: Key[Array, ""], labels: Int32[Array, " b"], head: Head, mesh: Mesh
) -> Sample | None:
  """The classes that the step walks; None: all."""
  if head.sample_rate >= 1:
    return None
  return class_sampling.draw(jax.random.fold_in(key, 2), labels, head, mesh)


def _forward_and_back(
  statistics: _Statistics,
  images: Float[Array, "b h w 3"],
  labels: Int32[Array, " b"],
  key: Key[Array, ""],
  *,
  params: Any,
  components: Components,
  mesh: Mesh,
  sample: Sample | None,
  fused_update: bool,
) -> tuple[_Statistics, _Gradients, LossResult]:
  """From the images of a (micro-)batch to loss, gradients and statistics."""
  dropout_key, loss_key = jax.random.split(key)

  def embed(backbone: Any) -> tuple[jax.Array, Any]:
    embeddings, updated = components.model.apply(
      {"params": backbone, "batch_stats": statistics.batch_stats},
      images,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": dropout_key},
    )
    return embeddings, updated["batch_stats"]

  embeddings, pull_back, batch_stats = jax.vjp(
    embed, params["backbone"], has_aux=True
  )
  loss = head_lib.loss(
    params["head"],
    embeddings,
    labels,
    head=components.head,
    mesh=mesh,
    loss_state=statistics.loss_state,
    key=loss_key,
    sample=sample,
  )
  metrics = _example_means(loss)
  weights = None
  if not fused_update:
    weights = head_lib.weight_gradient(
      params["head"], loss.residuals, head=components.head, mesh=mesh
    )
  (backbone,) = pull_back(loss.embedding_gradient)
  gradients = _Gradients(
    backbone=backbone,
    margins_and_scalars=loss.margins_and_scalars_gradient,
    weights=weights,
    metrics=metrics,
  )
  return _Statistics(batch_stats, loss.loss_state), gradients, loss


def _example_means(loss: LossResult) -> dict[str, jax.Array]:
  """Means over the examples, float32 scalars by name."""
  # One sum over devices for all of them.
  of_examples = {
    "cross_entropy": loss.cross_entropy,
    "accuracy": loss.correct.astype(jnp.float32),
    "true_cosine": loss.true_cosine,
    "hardest_cosine": loss.hardest_cosine,
  }
  means = jnp.stack([*of_examples.values()]).mean(axis=1)
  return {
    f"train/{name}": mean for name, mean in zip(of_examples, means, strict=True)
  }


def _accumulate(
  forward_and_back: Callable[..., tuple[_Statistics, _Gradients, LossResult]],
  state: TrainState,
  images: Float[Array, "b h w 3"],
  labels: Int32[Array, " b"],
  key: Key[Array, ""],
  micro_batches: int,
  mesh: Mesh,
) -> tuple[_Statistics, _Gradients, LossResult | None]:
  """Mean gradients of micro-batches, one after the other.

  The result of the loss is had of a batch that is one micro-batch alone.
  """
  first = _Statistics(state.batch_stats, state.running)
  if micro_batches == 1:
    return forward_and_back(first, images, labels, key)

  def gradients_of(
    statistics: _Statistics, inputs: tuple[jax.Array, ...]
  ) -> tuple[_Statistics, _Gradients]:
    statistics, gradients, _ = forward_and_back(statistics, *inputs)
    return statistics, gradients

  def step(
    carry: tuple[_Statistics, _Gradients], inputs: tuple[jax.Array, ...]
  ) -> tuple[tuple[_Statistics, _Gradients], None]:
    statistics, total = carry
    statistics, new = gradients_of(statistics, inputs)
    return (statistics, jax.tree.map(jnp.add, total, new)), None

  inputs = (
    sharding.split_batch(images, micro_batches, mesh),
    sharding.split_batch(labels, micro_batches, mesh),
    jax.random.split(key, micro_batches),
  )
  _, shapes = jax.eval_shape(gradients_of, first, tuple(x[0] for x in inputs))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (statistics, total), _ = jax.lax.scan(step, (first, zeros), inputs)
  return statistics, jax.tree.map(lambda x: x / micro_batches, total), None


def _subtract_reward(
  gradients: _Gradients,
  state: TrainState,
  labels: Int32[Array, " b"],
  components: Components,
) -> _Gradients:
  """The same of the loss: cross-entropy less what rewards large margins."""

  def reward_of(params: dict[str, jax.Array]) -> jax.Array:
    reward = head_lib.margin_reward(params, labels, components.head)
    return jnp.asarray(components.reward(state.step)) * reward

  reward, reward_gradient = jax.value_and_grad(reward_of)(
    head_lib.margins_and_scalars(state.params["head"])
  )
  loss = gradients.metrics["train/cross_entropy"] - reward
  return gradients._replace(
    margins_and_scalars=jax.tree.map(
      jnp.subtract, gradients.margins_and_scalars, reward_gradient
    ),
    metrics=gradients.metrics | {"train/loss": loss},
  )


def _update_backbone(
  accept: Bool[Array, ""],
  gradients: _Gradients,
  state: TrainState,
  components: Components,
) -> tuple[Any, Any]:
  """The next parameters of the backbone, and their optimizer's state."""
  return _update(
    accept,
    components.optimizers.backbone,
    gradients.backbone,
    state.opt_state["backbone"],
    state.params["backbone"],
  )


def _update_margins_and_scalars(
  accept: Bool[Array, ""],
  gradients: _Gradients,
  state: TrainState,
  components: Components,
) -> tuple[dict[str, jax.Array], Any]:
  """The next margins and scalars of the head, and their optimizer's state."""
  return _update(
    accept,
    components.optimizers.margins_and_scalars,
    gradients.margins_and_scalars,
    state.opt_state["head"]["small"],
    head_lib.margins_and_scalars(state.params["head"]),
    then=partial(head_lib.constrain, head=components.head),
  )


def _update_weights(
  accept: Bool[Array, ""],
  gradients: _Gradients,
  loss: LossResult | None,
  state: TrainState,
  components: Components,
  mesh: Mesh,
  clip_norm: float,
  sample: Sample | None,
) -> WeightUpdate:
  """The next class weights, from their gradient or as it comes."""
  params, opt_state = state.params["head"], state.opt_state["head"]["weights"]
  if gradients.weights is not None:
    norm = jnp.linalg.norm(gradients.weights)
    weights, opt_state = _update(
      accept,
      components.optimizers.weights,
      head_lib.clip_factor(norm, clip_norm) * gradients.weights,
      opt_state,
      params[WEIGHTS],
    )
    return WeightUpdate(weights, opt_state, norm, skipped=jnp.float32(0.0))
  assert loss is not None, "Accumulated gradients hold those of the weights."
  return head_lib.update_weights(
    params,
    opt_state,
    loss.residuals,
    accept,
    head=components.head,
    mesh=mesh,
    optimizer=components.optimizers.weights,
    clip_norm=clip_norm,
    sample=sample,
  )


def _update(
  accept: Bool[Array, ""],
  optimizer: optax.GradientTransformation,
  gradient: Any,
  opt_state: Any,
  params: Any,
  then: Callable[[Any], Any] = lambda new: new,
) -> tuple[Any, Any]:
  """The next parameters and optimizer state, or the same if not accepted."""
  updates, new_opt_state = optimizer.update(gradient, opt_state, params)
  new = then(optax.apply_updates(params, updates))
  return _choose(accept, (new, new_opt_state), (params, opt_state))


def _choose(accept: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
  """The new values if the step is accepted, else the old."""
  return jax.tree.map(lambda n, o: jnp.where(accept, n, o), new, old)


def _next_state(
  state: TrainState,
  accept: Bool[Array, ""],
  backbone: tuple[Any, Any],
  margins_and_scalars: tuple[dict[str, jax.Array], Any],
  weights: WeightUpdate,
  statistics: _Statistics,
) -> TrainState:
  """Puts together what was updated, and counts the steps.

  Args:
    state: before the step.
    accept: whether the step counts.
    backbone: next parameters and optimizer state.
    margins_and_scalars: the same of these.
    weights: the same of the classes.
    statistics: what the forward pass made of them, accepted or not.
  """
  statistics = _choose(
    accept, statistics, _Statistics(state.batch_stats, state.running)
  )
  in_all, in_a_row = state.rejected
  return TrainState(
    step=state.step + 1,
    params={
      "backbone": backbone[0],
      "head": {WEIGHTS: weights.weights, **margins_and_scalars[0]},
    },
    batch_stats=statistics.batch_stats,
    opt_state={
      "backbone": backbone[1],
      "head": {"weights": weights.opt_state, "small": margins_and_scalars[1]},
    },
    running=statistics.loss_state,
    rejected=jnp.stack([in_all + ~accept, jnp.where(accept, 0, in_a_row + 1)]),
  )


def _state_metrics(
  state: TrainState, next_state: TrainState, components: Components
) -> dict[str, jax.Array]:
  """What is said of margins, loss, rate and rejected steps, by name."""
  in_all, in_a_row = next_state.rejected.astype(jnp.float32)
  margins = head_lib.margin_statistics(
    next_state.params["head"], components.head
  )
  loss_state = next_state.running
  return {
    **{f"train/{name}": value for name, value in margins.items()},
    **{f"train/loss_{name}": value for name, value in loss_state.items()},
    "train/learning_rate": jnp.float32(components.schedule(state.step)),
    "train/rejected_steps": in_all,
    "train/rejected_in_a_row": in_a_row,
  }
