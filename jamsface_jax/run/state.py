"""What training changes (`TrainState`) and what it never does (`Parts`)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jamsface_jax import models
from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import options_to_run_once
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.head.losses import LossState, make_loss
from jamsface_jax.models import init_backbone
from jamsface_jax.run.optimizer import (
  Optimizers,
  make_optimizers,
)
from jamsface_jax.run.schedule import make_schedule, steps_of
from jamsface_jax.settings.sections import Settings


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step reads and writes.

  Attributes:
    step: finished steps, int32 scalar.
    params: `backbone` (replicated) and `head` (split by class), float32.
    batch_stats: running statistics of the backbone, float32.
    opt_state: of the optimizers, each leaf sharded as its parameter.
    running: what the loss remembers, float32 scalars by name (the field keeps
      the name that checkpoints have).
    rejected: steps whose loss or gradient was not finite, which changed nothing
      else: int32 [2], in all and in a row.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  running: LossState
  rejected: jax.Array


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a run is made of and never changes.

  Attributes:
    model: backbone.
    head: what is fixed about the head.
    optimizers: of backbone and head.
    schedule: learning rate by step.
    reward: factor on both lambdas by step, see `head.margin_reward`.
  """

  model: nn.Module
  head: head_lib.Head
  optimizers: Optimizers
  schedule: optax.Schedule
  reward: optax.Schedule


def make_parts(config: Settings, num_classes: int, num_images: int) -> Parts:
  """Builds the parts of a run from its settings and the size of its data."""
  head = make_head(config, num_classes, num_images)
  schedule = make_schedule(config, num_images)
  return Parts(
    model=make_model(config),
    head=head,
    optimizers=make_optimizers(config, schedule, head),
    schedule=schedule,
    reward=optax.linear_schedule(
      *(1.0, config.head.lambda_end),
      steps_of(config.schedule.length, config, num_images),
    ),
  )


def make_model(config: Settings) -> nn.Module:
  """Builds the backbone of `config.model`."""
  return models.make_model(**dataclasses.asdict(config.model))


def make_head(
  config: Settings, num_classes: int, num_images: int
) -> head_lib.Head:
  """Builds the head of `config.head` for so many classes and images."""
  settings = config.head

  def margin(kind: str) -> head_lib.Margin:
    return head_lib.Margin(
      initial=getattr(settings, f"{kind}_margin"),
      power=settings.margin_power,
      learned=getattr(settings, f"learn_{kind}"),
      rule=settings.margin_rule,
      lower=getattr(settings, f"{kind}_min"),
      upper=getattr(settings, f"{kind}_max"),
      bounds=settings.margin_bounds,
      strength=getattr(settings, f"{kind}_lambda"),
      rewarded=settings.rewarded,
      start=steps_of(settings.margin_start, config, num_images),
    )

  return head_lib.Head(
    num_classes=num_classes,
    padded_classes=head_lib.pad_classes(num_classes, settings.class_multiple),
    embedding_size=config.model.embedding_size,
    sub_centers=settings.sub_centers,
    scale=settings.scale,
    learn_scale=settings.learn_scale,
    loss=make_loss(settings),
    angular=margin("angular"),
    cosine=margin("cosine"),
    count_power=settings.count_power,
    logit_adjustment=settings.logit_adjustment,
    ignore_above=settings.ignore_above,
    sample_rate=settings.sample_rate,
    weigh_sample=settings.weigh_sample,
    chunk_classes=settings.chunk_classes
    or chunk_classes(jax.default_backend()),
    keep_bytes=settings.keep_mib * 2**20,
    skip_below=settings.skip_below,
    product_dtype=settings.product_dtype,
  )


def make_init(
  parts: Parts,
  image_size: int,
  mesh: Mesh,
  class_sizes: np.ndarray | None = None,
):
  """Returns the pure function from a key to the first state."""

  def init(key: jax.Array) -> TrainState:
    backbone_key, head_key = jax.random.split(key)
    variables = init_backbone(backbone_key, parts.model, image_size)
    params = {
      "backbone": variables["params"],
      "head": head_lib.init(head_key, parts.head, mesh, class_sizes),
    }
    return TrainState(
      step=jnp.int32(0),
      params=params,
      batch_stats=variables["batch_stats"],
      opt_state=parts.optimizers.init(params),
      running={
        name: jnp.float32(value)
        for name, value in parts.head.loss.start(parts.head.num_classes).items()
      },
      rejected=jnp.zeros(2, jnp.int32),
    )

  return init


@functools.lru_cache(maxsize=4)  # A start asks several times; each is a trace.
def state_shapes(parts: Parts, image_size: int, mesh: Mesh) -> TrainState:
  """Describes the state without making it.

  Returns:
    A TrainState of ShapeDtypeStructs that carry their shardings.
  """
  shapes = jax.eval_shape(make_init(parts, image_size, mesh), jax.random.key(0))
  return jax.tree.map(
    lambda shape, where: jax.ShapeDtypeStruct(
      shape.shape, shape.dtype, sharding=where
    ),
    shapes,
    sharding.state_shardings(shapes, mesh),
  )


def create_state(
  seed: int,
  parts: Parts,
  image_size: int,
  mesh: Mesh,
  class_sizes: np.ndarray | None = None,
) -> TrainState:
  """Makes the first state, born sharded: no device ever holds it whole.

  Args:
    seed: of the initial values.
    parts: of the run.
    image_size: pixels along a side.
    mesh: the (data, model) mesh.
    class_sizes: images of each class; see `head.init`.
  """
  shardings = jax.tree.map(
    lambda shape: shape.sharding, state_shapes(parts, image_size, mesh)
  )
  init = jax.jit(
    make_init(parts, image_size, mesh, class_sizes),
    out_shardings=shardings,
    compiler_options=options_to_run_once(),
  )
  return init(jax.random.key(seed))
