"""One step of training: a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jamsface_jax import head as head_lib
from jamsface_jax import sharding
from jamsface_jax.compiling import compiler_options
from jamsface_jax.data import augmentation
from jamsface_jax.state import Parts, TrainState, state_shapes


def make_train_step(
  config: ConfigDict, parts: Parts, mesh: Mesh
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Compiles `train_step` for these settings; it takes over its state."""
  shapes = state_shapes(parts, config.data.image_size, mesh)
  shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
  step = partial(
    train_step,
    parts=parts,
    mesh=mesh,
    augment=config.augment.to_dict(),
    accumulation=config.optimizer.accumulation,
    seed=config.seed,
  )
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(shardings, None),
    compiler_options=compiler_options(),
  )


def train_step(
  state: TrainState,
  batch: Mapping[str, jax.Array],
  *,
  parts: Parts,
  mesh: Mesh,
  augment: Mapping[str, Any],
  accumulation: int,
  seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of the optimizer, pure.

  Args:
    state: sharded as `state_shapes` says.
    batch: `images` uint8 [B, H, W, 3] and `labels` int32 [B], sharding BATCH.
    parts: of the run.
    mesh: the (data, model) mesh.
    augment: arguments of `augmentation.augment`.
    accumulation: micro-batches; their mean gradient is that of the batch
      (batch statistics are each micro-batch's own).
    seed: of augmentation and dropout.

  Returns:
    The next state, and float32 scalars by their name in `metrics.jsonl`.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  augment_key, dropout_key = jax.random.split(key)
  images = augmentation.normalize(batch["images"])
  images = augmentation.augment(augment_key, images, **augment)

  def gradients(batch_stats, images, labels, dropout_key):
    def loss(params):
      embeddings, updated = parts.model.apply(
        {"params": params["backbone"], "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": dropout_key},
      )
      cross_entropy_b, correct_b = head_lib.cross_entropy(
        params["head"], embeddings, labels, head=parts.head, mesh=mesh
      )
      cross_entropy = cross_entropy_b.mean()
      reward = head_lib.margin_reward(params["head"], parts.head)
      metrics = {
        "train/loss": cross_entropy - reward,
        "train/cross_entropy": cross_entropy,
        "train/accuracy": correct_b.astype(jnp.float32).mean(),
      }
      return cross_entropy - reward, (updated["batch_stats"], metrics)

    slopes, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(state.params)
    return batch_stats, (slopes, metrics)

  if accumulation == 1:
    batch_stats, (slopes, metrics) = gradients(
      state.batch_stats, images, batch["labels"], dropout_key
    )
  else:
    batch_stats, (slopes, metrics) = _accumulate(
      gradients,
      state.batch_stats,
      sharding.split_batch(images, accumulation, mesh),
      sharding.split_batch(batch["labels"], accumulation, mesh),
      jax.random.split(dropout_key, accumulation),
    )

  updates, opt_state = parts.optimizer.update(
    slopes, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  params["head"] = head_lib.constrain(params["head"], parts.head)
  statistics = head_lib.margin_statistics(params["head"], parts.head)
  metrics |= {f"train/{name}": value for name, value in statistics.items()}
  metrics["train/learning_rate"] = jnp.float32(parts.schedule(state.step))
  metrics["train/gradient_norm"] = optax.tree.norm(slopes)
  next_state = TrainState(
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  return next_state, metrics


def _accumulate(gradients, batch_stats, images, labels, keys):
  """Means of gradients and metrics over micro-batches, one after the other."""
  parts = len(images)

  def step(carry, inputs):
    batch_stats, total = carry
    batch_stats, new = gradients(batch_stats, *inputs)
    return (batch_stats, jax.tree.map(jnp.add, total, new)), None

  shapes = jax.eval_shape(
    gradients, batch_stats, images[0], labels[0], keys[0]
  )[1]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (batch_stats, total), _ = jax.lax.scan(
    step, (batch_stats, zeros), (images, labels, keys)
  )
  return batch_stats, jax.tree.map(lambda x: x / parts, total)
