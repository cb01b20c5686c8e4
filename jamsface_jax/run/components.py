"""What a run is made of and never changes, built from its settings."""

import dataclasses

import flax.linen as nn
import jax
import optax

from jamsface_jax import models
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.head.losses import make_loss
from jamsface_jax.head.parameters import Head, Margin, pad_classes
from jamsface_jax.run.margin_curve import read_curve
from jamsface_jax.run.optimizer import Optimizers, make_optimizers
from jamsface_jax.run.schedule import make_schedule, steps_of
from jamsface_jax.settings.sections import Settings


@dataclasses.dataclass(frozen=True)
class Components:
  """What a run is made of and never changes.

  Attributes:
    model: the backbone.
    head: what is fixed about the head.
    optimizers: those of backbone and head.
    schedule: learning rate by step.
    reward: factor on both lambdas by step, see `head.margin_reward`.
  """

  model: nn.Module
  head: Head
  optimizers: Optimizers
  schedule: optax.Schedule
  reward: optax.Schedule


def make_components(
  settings: Settings, num_classes: int, num_images: int
) -> Components:
  """Builds the components of a run.

  Args:
    settings: those of the run.
    num_classes: classes of the training set.
    num_images: images of the training set, to turn epochs into steps.
  """
  head = make_head(settings, num_classes, num_images)
  schedule = make_schedule(settings, num_images)
  total_steps = steps_of(settings.schedule.length, settings, num_images)
  return Components(
    model=make_model(settings),
    head=head,
    optimizers=make_optimizers(settings, schedule, head),
    schedule=schedule,
    reward=optax.linear_schedule(1.0, settings.head.lambda_end, total_steps),
  )


def make_model(settings: Settings) -> nn.Module:
  """Builds the backbone that `settings.model` describes."""
  return models.make_model(**dataclasses.asdict(settings.model))


def make_head(settings: Settings, num_classes: int, num_images: int) -> Head:
  """Builds the head that `settings.head` describes.

  Args:
    settings: those of the run.
    num_classes: classes of the training set.
    num_images: images of the training set, to turn epochs into steps.
  """
  chosen = settings.head
  return Head(
    num_classes=num_classes,
    padded_classes=pad_classes(num_classes, chosen.class_multiple),
    embedding_size=settings.model.embedding_size,
    sub_centers=chosen.sub_centers,
    scale=chosen.scale,
    learn_scale=chosen.learn_scale,
    loss=make_loss(chosen),
    angular=_make_margin("angular", settings, num_images),
    cosine=_make_margin("cosine", settings, num_images),
    count_power=chosen.count_power,
    held=chosen.held,
    gradient_power=chosen.gradient_power,
    concentration_temperature=chosen.concentration_temperature,
    concentration_share=chosen.concentration_share,
    logit_adjustment=chosen.logit_adjustment,
    ignore_above=chosen.ignore_above,
    sample_rate=chosen.sample_rate,
    weigh_sample=chosen.weigh_sample,
    chunk_classes=chosen.chunk_classes or chunk_classes(jax.default_backend()),
    keep_bytes=chosen.keep_mib * 2**20,
    skip_below=chosen.skip_below,
    product_dtype=chosen.product_dtype,
  )


def _make_margin(kind: str, settings: Settings, num_images: int) -> Margin:
  """What is fixed about the "angular" or the "cosine" margins."""
  chosen = settings.head
  return Margin(
    initial=getattr(chosen, f"{kind}_margin"),
    power=chosen.margin_power,
    slope=chosen.margin_slope,
    curve=read_curve(chosen.margin_curve, kind) if chosen.margin_curve else (),
    learned=getattr(chosen, f"learn_{kind}"),
    rule=chosen.margin_rule,
    lower=getattr(chosen, f"{kind}_min"),
    upper=getattr(chosen, f"{kind}_max"),
    bounds=chosen.margin_bounds,
    strength=getattr(chosen, f"{kind}_lambda"),
    rewarded=chosen.rewarded,
    start=steps_of(chosen.margin_start, settings, num_images),
  )
