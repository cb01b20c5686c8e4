"""SGD as face recognition uses it: three groups of parameters, one schedule.

`main` has momentum, clipping and weight decay; `margin`, the learned margins,
has a rate of its own and neither momentum nor decay, since the projection after
the step would fight with both; `frozen` does not move.
"""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from jamsface_jax.config import steps_of
from jamsface_jax.head import ANGULAR, COSINE, Head


def make_schedule(config: ConfigDict, num_images: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up, then one of the usual decays.

  The rate is `optimizer.learning_rate` for a batch of
  `optimizer.reference_batch` and grows linearly with the batch
  (https://arxiv.org/abs/1706.02677, section 2.1).

  Args:
    config: all settings.
    num_images: images of the training set, to turn epochs into steps.

  Returns:
    Maps the number of finished steps to the rate of the next.
  """
  settings = config.schedule
  peak = (
    config.optimizer.learning_rate
    * config.data.batch_size
    / config.optimizer.reference_batch
  )
  total = steps_of(settings.length, config, num_images)
  warmup = steps_of(settings.warmup, config, num_images)
  rest = max(total - warmup, 1)
  if settings.decay == "polynomial":
    decay = optax.polynomial_schedule(peak, 0.0, settings.power, rest)
  elif settings.decay == "cosine":
    decay = optax.cosine_decay_schedule(peak, rest)
  elif settings.decay == "step":
    drops = {
      max(steps_of(milestone, config, num_images) - warmup, 0): settings.factor
      for milestone in settings.milestones
    }
    decay = optax.piecewise_constant_schedule(peak, drops)
  else:
    decay = optax.constant_schedule(peak)
  if not warmup:
    return decay
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, warmup), decay], [warmup]
  )


def make_optimizer(
  config: ConfigDict, schedule: optax.Schedule, head: Head
) -> optax.GradientTransformation:
  """Builds the optimizer of `{"backbone": ..., "head": ...}` parameters."""
  settings = config.optimizer

  def decays(params):
    return jax.tree.map(lambda p: settings.decay_vectors or p.ndim > 1, params)

  main = [
    optax.add_decayed_weights(settings.weight_decay, mask=decays),
    optax.sgd(schedule, momentum=settings.momentum),
  ]
  if settings.clip_norm:
    main.insert(0, optax.clip_by_global_norm(settings.clip_norm))

  def margin_rate(step):
    return config.head.margin_rate * schedule(step)

  return optax.partition(
    {
      "main": optax.chain(*main),
      "margin": optax.sgd(margin_rate),
      "frozen": optax.set_to_zero(),
    },
    lambda params: parameter_groups(params, head),
  )


def parameter_groups(params: Any, head: Head) -> Any:
  """Names the group of each parameter: "main", "margin" or "frozen"."""

  def group(path, _):
    keys = [entry.key for entry in path]
    if keys[0] == "head" and keys[-1] in (ANGULAR, COSINE):
      return "margin" if head.margin(keys[-1]).learned else "frozen"
    # The field keeps the scale of the last batch normalisation at 1: the
    # softmax sees directions only.
    if keys[-2:] == ["embedding_bn", "scale"]:
      return "frozen"
    return "main"

  return jax.tree_util.tree_map_with_path(group, params)
