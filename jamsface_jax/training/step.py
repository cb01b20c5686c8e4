"""One step of training: a pure function of a state and a batch."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, UInt32

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
  concentration,
)
from jamsface_jax.models import gradient_sum
from jamsface_jax.run.components import Components
from jamsface_jax.run.gradient_norm import gradient_norm
from jamsface_jax.run.state import TrainState, state_shapes
from jamsface_jax.settings.sections import Settings

Tree = TypeVar("Tree")

MISSES = "misses_by_size"
_SIZE_GROUPS = 25  # Of classes, by powers of two.


def make_train_step(
  settings: Settings, components: Components, mesh: Mesh
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Compiles `train_step` for these settings; it takes over its state.

  The seed is an argument of it, so that runs of other seeds are one program.
  """
  shapes = state_shapes(components, settings.data.image_size, mesh)
  shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
  step = partial(
    train_step,
    components=components,
    mesh=mesh,
    augmentation=dataclasses.asdict(settings.augment),
    accumulation=settings.optimizer.accumulation,
    sum_wide=settings.optimizer.gradient_dtype == "float32",
    batch_norm_group=settings.model.batch_norm_group,
    fused_update=settings.head.fused_update,
    clip_norm=settings.head.clip_norm,
  )
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(shardings, None),
    compiler_options=compiler_options(mesh.devices.flat[0].platform),
  )


def seed_key(seed: int) -> UInt32[np.ndarray, " k"]:
  """What `train_step` is given for a seed: the data of its key, uint32 [2]."""
  return np.asarray(jax.random.key_data(jax.random.key(seed)))


class _Embedded(NamedTuple):
  """The embeddings of a batch, and what comes with them.

  Attributes:
    embeddings: float [B, D], sharding BATCH.
    pull_back: takes the gradient of the embeddings to that of the backbone's
      parameters.
    batch_stats: running statistics of the backbone after the step.
  """

  embeddings: jax.Array
  pull_back: Callable[[jax.Array], Any]
  batch_stats: Any


class _Gradients(NamedTuple):
  """Gradients of a batch, and what else comes of it.

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
  seed: UInt32[np.ndarray | Array, " k"],
  *,
  components: Components,
  mesh: Mesh,
  augmentation: Mapping[str, Any],
  accumulation: int,
  sum_wide: bool,
  batch_norm_group: int,
  fused_update: bool,
  clip_norm: float,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of the optimizers, pure.

  A step whose loss or backbone gradient is not finite is rejected: it is
  counted, and changes nothing else.

  Args:
    state: sharded as `state_shapes` says.
    batch: `images` uint8 [B, H, W, 3], `labels` int32 [B] and, for what is
      said of it alone, `sizes` int32 [B], the images of each example's class;
      sharding BATCH.
    seed: that of augmentation, dropout and sampled classes, see `seed_key`.
    components: what the run is made of.
    mesh: the (data, model) mesh.
    augmentation: arguments of `augment`, beside key and images.
    accumulation: micro-batches that the backbone sees one after the other; the
      head sees the whole batch, and so does what a loss remembers.
    sum_wide: sum gradients of the backbone over devices in float32, not in
      the dtype of the network.
    batch_norm_group: examples that share batch statistics; 0: those of a
      micro-batch.
    fused_update: update the class weights as their gradient comes.
    clip_norm: largest norm of the class weights' gradient; 0: any.

  Returns:
    The next state, and float32 scalars by their name in `metrics.jsonl`; with
    sizes also `MISSES`, see `misses_by_size`.
  """
  key = jax.random.wrap_key_data(jnp.asarray(seed))
  key = jax.random.fold_in(key, state.step)
  augment_key, forward_key = jax.random.split(key)
  images = jnp.asarray(normalize(batch["images"]))
  images = augment(augment_key, images, **augmentation)
  labels = batch["labels"]
  sample = _draw_classes(key, labels, components.head, mesh)
  dropout_key, loss_key = jax.random.split(forward_key)
  embedded = _embed(
    state,
    images,
    dropout_key,
    components,
    accumulation,
    batch_norm_group,
    mesh,
    sum_wide=sum_wide,
  )
  loss = head_lib.loss(
    state.params["head"],
    embedded.embeddings,
    labels,
    head=components.head,
    mesh=mesh,
    loss_state=state.running,
    key=loss_key,
    sample=sample,
  )
  gradients = _gradients(
    loss, embedded, state, components, mesh, fused_update=fused_update
  )
  gradients = _subtract_reward(gradients, state, labels, components)
  backbone_norm = gradient_norm(gradients.backbone)
  accept = jnp.isfinite(gradients.metrics["train/loss"])
  accept &= jnp.isfinite(backbone_norm)

  backbone = _update_backbone(accept, gradients, state, components)
  others = _update_margins_and_scalars(accept, gradients, state, components)
  weights = _update_weights(
    accept, gradients, loss, state, components, mesh, clip_norm, sample
  )
  seen = _add_seen(
    accept, state, embedded.embeddings, labels, components.head, mesh
  )
  next_state = _next_state(
    state,
    accept,
    backbone,
    others,
    weights,
    (embedded.batch_stats, loss.loss_state),
    seen,
  )

  metrics = gradients.metrics | _state_metrics(state, next_state, components)
  metrics["train/gradient_norm"] = jnp.hypot(
    backbone_norm, weights.gradient_norm
  )
  if "sizes" in batch:
    metrics[MISSES] = misses_by_size(loss.cross_entropy, batch["sizes"])
  if fused_update and components.head.skip_below:
    metrics["train/skipped_blocks"] = (loss.skipped + weights.skipped) / 2
  return next_state, metrics


def make_end_pass(
  settings: Settings, components: Components, mesh: Mesh
) -> Callable[[TrainState], TrainState]:
  """What comes after the last step of each pass over the data.

  Returns:
    A function that takes over a state. Of a head whose margins follow from what
    a pass has seen it returns the next one, see `concentration.end_pass`; of
    any other the same.
  """
  head = components.head
  if not head.makes_anew:
    return lambda state: state
  shapes = state_shapes(components, settings.data.image_size, mesh)
  margins = head_lib.margins_and_scalars(shapes.params["head"])
  compiled = jax.jit(
    partial(concentration.end_pass, head=head, mesh=mesh),
    donate_argnums=(0, 1),
    out_shardings=jax.tree.map(
      lambda shape: shape.sharding, (margins, shapes.seen["head"])
    ),
    compiler_options=compiler_options(mesh.devices.flat[0].platform),
  )
  compiled = sharding.in_turn(compiled, mesh)

  def end_pass(state: TrainState) -> TrainState:
    of_head = state.params["head"]
    margins, seen = compiled(
      head_lib.margins_and_scalars(of_head), state.seen["head"]
    )
    params = state.params | {"head": of_head | margins}
    return state.replace(params=params, seen={"head": seen})

  return end_pass


def _add_seen(
  accept: Bool[Array, ""],
  state: TrainState,
  embeddings: Float[Array, "b d"],
  labels: Int32[Array, " b"],
  head: Head,
  mesh: Mesh,
) -> dict[str, Any]:
  """What the pass has seen of classes, with this batch if it is accepted."""
  if not state.seen:
    return {}
  seen = concentration.add(
    state.seen["head"], embeddings, labels, head=head, mesh=mesh, accept=accept
  )
  return {"head": seen}


def _draw_classes(
  key: Key[Array, ""], labels: Int32[Array, " b"], head: Head, mesh: Mesh
) -> Sample | None:
  """The classes that the step walks; None: all."""
  if head.sample_rate >= 1:
    return None
  return class_sampling.draw(jax.random.fold_in(key, 2), labels, head, mesh)


def _embed(
  state: TrainState,
  images: Float[Array, "b h w 3"],
  key: Key[Array, ""],
  components: Components,
  micro_batches: int,
  batch_norm_group: int,
  mesh: Mesh,
  *,
  sum_wide: bool,
) -> _Embedded:
  """Embeds a batch, in one or in micro-batches one after the other.

  Of micro-batches the first pass keeps the embeddings alone, so that the head
  sees the whole batch; the second embeds once more to pull the gradient back
  (GradCache, https://arxiv.org/abs/2101.06983). A network that normalises in
  groups has the gradient and the statistics of the large batch.
  """
  backbone = state.params["backbone"]

  def embed(
    backbone: Any, images: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, Any]:
    with gradient_sum.over(mesh) if sum_wide else contextlib.nullcontext():
      embeddings, updated = components.model.apply(
        {"params": backbone, "batch_stats": state.batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
      )
    return embeddings, updated["batch_stats"]

  if micro_batches == 1:
    embeddings, pull_back, batch_stats = jax.vjp(
      lambda backbone: embed(backbone, images, key), backbone, has_aux=True
    )
    return _Embedded(embeddings, lambda g: pull_back(g)[0], batch_stats)

  block = batch_norm_group or 1

  def split(array: jax.Array) -> jax.Array:
    return sharding.split_batch(array, micro_batches, block, mesh)

  inputs = split(images), jax.random.split(key, micro_batches)

  def forward(
    total: Any, inputs: tuple[jax.Array, ...]
  ) -> tuple[Any, jax.Array]:
    embeddings, batch_stats = embed(backbone, *inputs)
    return jax.tree.map(jnp.add, total, batch_stats), embeddings

  def pull_back(gradient_bd: jax.Array) -> Any:
    def step(total: Any, inputs: tuple[jax.Array, ...]) -> tuple[Any, None]:
      *micro_batch, gradient = inputs
      _, pull_back, _ = jax.vjp(
        lambda backbone: embed(backbone, *micro_batch), backbone, has_aux=True
      )
      return jax.tree.map(jnp.add, total, pull_back(gradient)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, backbone)
    total, _ = jax.lax.scan(step, zeros, (*inputs, split(gradient_bd)))
    return total

  # Each micro-batch moves the statistics from where the step found them: their
  # mean is what the large batch would make of them.
  zeros = jax.tree.map(jnp.zeros_like, state.batch_stats)
  total, embeddings = jax.lax.scan(forward, zeros, inputs)
  return _Embedded(
    sharding.join_batch(embeddings, block, mesh),
    pull_back,
    jax.tree.map(lambda x: x / micro_batches, total),
  )


def _gradients(
  loss: LossResult,
  embedded: _Embedded,
  state: TrainState,
  components: Components,
  mesh: Mesh,
  *,
  fused_update: bool,
) -> _Gradients:
  """All gradients that the loss of a batch has, and what is said of it."""
  weights = None
  if not fused_update:
    weights = head_lib.weight_gradient(
      state.params["head"], loss.residuals, head=components.head, mesh=mesh
    )
  return _Gradients(
    backbone=embedded.pull_back(loss.embedding_gradient),
    margins_and_scalars=loss.margins_and_scalars_gradient,
    weights=weights,
    metrics=_example_means(loss),
  )


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


def misses_by_size(
  cross_entropy: Float32[Array, " b"], sizes: Int32[Array, " b"]
) -> Float32[Array, "g 2"]:
  """How far examples are from being sure, by the size of their class.

  At rest 1 - p says what keeps a margin up: with means that are held it is one
  number over the images of the class (docs/losses.md).

  Args:
    cross_entropy: -log p of each example, float32 [B].
    sizes: images of its class, at least 1, int32 [B].

  Returns:
    float32 [25, 2]: for classes of 2^g to 2^(g + 1) - 1 images the sum of 1 - p
    over their examples, and how many these are.
  """
  group = jnp.clip(31 - lax.clz(sizes), 0, _SIZE_GROUPS - 1)
  of_each = jnp.stack([-jnp.expm1(-cross_entropy), jnp.ones_like(sizes)], 1)
  return jax.ops.segment_sum(of_each, group, _SIZE_GROUPS)


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
  loss: LossResult,
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
  statistics: tuple[Any, head_lib.LossState],
  seen: dict[str, Any],
) -> TrainState:
  """Puts together what was updated, and counts the steps.

  Args:
    state: before the step.
    accept: whether the step counts.
    backbone: next parameters and optimizer state.
    margins_and_scalars: the same of these.
    weights: the same of the classes.
    statistics: what the forward pass made of the backbone's statistics and of
      what the loss remembers, accepted or not.
    seen: what the pass has seen of classes.
  """
  batch_stats, running = _choose(
    accept, statistics, (state.batch_stats, state.running)
  )
  in_all, in_a_row = state.rejected
  return TrainState(
    step=state.step + 1,
    params={
      "backbone": backbone[0],
      "head": {WEIGHTS: weights.weights, **margins_and_scalars[0]},
    },
    batch_stats=batch_stats,
    opt_state={
      "backbone": backbone[1],
      "head": {"weights": weights.opt_state, "small": margins_and_scalars[1]},
    },
    running=running,
    seen=seen,
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
