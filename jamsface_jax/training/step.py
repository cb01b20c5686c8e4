"""One step of training: a pure function of a state and a batch."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jamsface_jax.augmentation.augment import augment, normalize
from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import compiler_options
from jamsface_jax.head import class_sampling, margin_rules, softmax
from jamsface_jax.head.clipping import clip_factor
from jamsface_jax.head.parameters import WEIGHTS
from jamsface_jax.run.optimizer import small_parameters
from jamsface_jax.run.state import Parts, TrainState, state_shapes
from jamsface_jax.settings.sections import Settings


def make_train_step(
  config: Settings, parts: Parts, mesh: Mesh
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Compiles `train_step` for these settings; it takes over its state."""
  shapes = state_shapes(parts, config.data.image_size, mesh)
  shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
  step = partial(
    train_step,
    parts=parts,
    mesh=mesh,
    augmentation=dataclasses.asdict(config.augment),
    accumulation=config.optimizer.accumulation,
    fused_update=config.head.fused_update,
    clip_norm=config.head.clip_norm,
    seed=config.seed,
  )
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(shardings, None),
    compiler_options=compiler_options(mesh.devices.flat[0].platform),
  )


class _Slopes(NamedTuple):
  """Gradients of a batch or of a micro-batch, and what else comes of it.

  `weights` is None where the weights are updated as their gradient comes.
  """

  backbone: Any
  small: dict[str, jax.Array]
  weights: jax.Array | None
  metrics: dict[str, jax.Array]


def train_step(
  state: TrainState,
  batch: Mapping[str, jax.Array],
  *,
  parts: Parts,
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
    parts: of the run.
    mesh: the (data, model) mesh.
    augmentation: arguments of `augment`, beside key and images.
    accumulation: micro-batches; their mean gradient is that of the batch
      (batch statistics are each micro-batch's own). More than one needs
      `fused_update=False`.
    fused_update: update the class weights as their gradient comes.
    clip_norm: of the class weights' gradient; 0: never.
    seed: of augmentation, dropout and sampled classes.

  Returns:
    The next state, and float32 scalars by their name in `metrics.jsonl`.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  augment_key, forward_key = jax.random.split(key)
  images = normalize(batch["images"])
  images = augment(augment_key, images, **augmentation)
  old, old_opt = state.params, state.opt_state
  on_head = {"head": parts.head, "mesh": mesh}
  sample = None
  if parts.head.sample_rate < 1:
    sample_key = jax.random.fold_in(key, 2)
    sample = class_sampling.draw(sample_key, batch["labels"], parts.head, mesh)

  def forward_and_back(statistics, images, labels, key):
    batch_stats, running = statistics
    dropout_key, loss_key = jax.random.split(key)

    def embed(params):
      embeddings, updated = parts.model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": dropout_key},
      )
      return embeddings, updated["batch_stats"]

    embeddings, pull_back, batch_stats = jax.vjp(
      embed, old["backbone"], has_aux=True
    )
    loss = softmax.loss(
      *(old["head"], embeddings, labels),
      running=running,
      key=loss_key,
      sample=sample,
      **on_head,
    )
    # One sum over devices for all of them.
    of_examples = {
      "cross_entropy": loss.cross_entropy,
      "accuracy": loss.correct.astype(jnp.float32),
      "true_cosine": loss.true_cosine,
      "hardest_cosine": loss.hardest_cosine,
    }
    means = jnp.stack([*of_examples.values()]).mean(axis=1)
    metrics = {
      f"train/{name}": mean
      for name, mean in zip(of_examples, means, strict=True)
    }
    weights = None
    if not fused_update:
      weights = softmax.weight_slopes(old["head"], loss.pull, **on_head)
    (backbone,) = pull_back(loss.embedding_slopes)
    slopes = _Slopes(backbone, loss.small_slopes, weights, metrics)
    return (batch_stats, loss.running), slopes, loss

  statistics = (state.batch_stats, state.running)
  if accumulation == 1:
    statistics, slopes, loss = forward_and_back(
      statistics, images, batch["labels"], forward_key
    )
  else:
    statistics, slopes = _accumulate(
      lambda *inputs: forward_and_back(*inputs)[:2],
      statistics,
      sharding.split_batch(images, accumulation, mesh),
      sharding.split_batch(batch["labels"], accumulation, mesh),
      jax.random.split(forward_key, accumulation),
    )

  metrics = slopes.metrics

  def reward_of(small):
    reward = margin_rules.margin_reward(small, batch["labels"], parts.head)
    return parts.reward(state.step) * reward

  reward, reward_slopes = jax.value_and_grad(reward_of)(
    small_parameters(old["head"])
  )
  metrics["train/loss"] = metrics["train/cross_entropy"] - reward
  backbone_norm = optax.tree.norm(slopes.backbone)
  accept = jnp.isfinite(metrics["train/loss"]) & jnp.isfinite(backbone_norm)

  update = partial(_update, accept)
  backbone, backbone_opt = update(
    parts.optimizers.backbone,
    *(slopes.backbone, old_opt["backbone"], old["backbone"]),
  )
  small, small_opt = update(
    parts.optimizers.small,
    jax.tree.map(jnp.subtract, slopes.small, reward_slopes),
    *(old_opt["head"]["small"], small_parameters(old["head"])),
    then=partial(margin_rules.constrain, head=parts.head),
  )
  if fused_update:
    weights, weights_opt, weight_norm, skipped = softmax.update_weights(
      *(old["head"], old_opt["head"]["weights"], loss.pull, accept),
      optimizer=parts.optimizers.weights,
      clip_norm=clip_norm,
      sample=sample,
      **on_head,
    )
    if parts.head.skip_below:
      metrics["train/skipped_blocks"] = (loss.skipped + skipped) / 2
  else:
    weight_norm = jnp.linalg.norm(slopes.weights)
    weights, weights_opt = update(
      parts.optimizers.weights,
      clip_factor(weight_norm, clip_norm) * slopes.weights,
      *(old_opt["head"]["weights"], old["head"][WEIGHTS]),
    )

  batch_stats, running = _choose(
    accept, statistics, (state.batch_stats, state.running)
  )
  in_all, in_a_row = state.rejected
  next_state = TrainState(
    step=state.step + 1,
    params={"backbone": backbone, "head": {WEIGHTS: weights, **small}},
    batch_stats=batch_stats,
    opt_state={
      "backbone": backbone_opt,
      "head": {"weights": weights_opt, "small": small_opt},
    },
    running=running,
    rejected=jnp.stack([in_all + ~accept, jnp.where(accept, 0, in_a_row + 1)]),
  )
  statistics = margin_rules.margin_statistics(
    next_state.params["head"], parts.head
  )
  metrics |= {f"train/{name}": value for name, value in statistics.items()}
  metrics |= {f"train/loss_{name}": value for name, value in running.items()}
  metrics |= {
    "train/learning_rate": jnp.float32(parts.schedule(state.step)),
    "train/gradient_norm": jnp.hypot(backbone_norm, weight_norm),
    "train/rejected_steps": next_state.rejected[0].astype(jnp.float32),
    "train/rejected_in_a_row": next_state.rejected[1].astype(jnp.float32),
  }
  return next_state, metrics


def _update(accept, optimizer, slopes, opt_state, params, then=lambda new: new):
  """The next parameters and optimizer state, or the same if not accepted."""
  updates, new_opt_state = optimizer.update(slopes, opt_state, params)
  new = then(optax.apply_updates(params, updates))
  return _choose(accept, (new, new_opt_state), (params, opt_state))


def _choose(accept, new, old):
  return jax.tree.map(lambda n, o: jnp.where(accept, n, o), new, old)


def _accumulate(slopes_of, statistics, images, labels, keys):
  """Mean slopes of micro-batches, one after the other."""
  parts = len(images)

  def step(carry, inputs):
    statistics, total = carry
    statistics, new = slopes_of(statistics, *inputs)
    return (statistics, jax.tree.map(jnp.add, total, new)), None

  shapes = jax.eval_shape(slopes_of, statistics, images[0], labels[0], keys[0])[
    1
  ]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (statistics, total), _ = jax.lax.scan(
    step, (statistics, zeros), (images, labels, keys)
  )
  return statistics, jax.tree.map(lambda x: x / parts, total)
