"""How long a run is, and its learning rate over time."""

import collections

import optax

from jamsface_jax.settings.sections import Settings


def steps_of(amount: float, settings: Settings, num_images: int) -> int:
  """Turns an amount of `schedule.unit` into steps, rounded up.

  Args:
    amount: epochs or steps, as `schedule.unit` says.
    settings: those of the run.
    num_images: images of the training set.
  """
  if settings.schedule.unit == "steps":
    return -int(-amount // 1)
  return -int(-amount * num_images // settings.data.batch_size)


def ends_pass(step: int, settings: Settings, num_images: int) -> bool:
  """Whether a pass over the data ends with a step, as `steps_of` rounds.

  An epoch is seldom a whole number of steps: the first images of the next are
  then of the step that ends it, and of its pass.

  Args:
    step: finished steps, from 1.
    settings: those of the run.
    num_images: images of the training set.
  """
  batch = settings.data.batch_size
  return step * batch // num_images > (step - 1) * batch // num_images


def make_schedule(settings: Settings, num_images: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up, then one of the usual decays.

  The rate is `optimizer.learning_rate` for a batch of
  `optimizer.reference_batch` and grows linearly with the batch
  (https://arxiv.org/abs/1706.02677, section 2.1).

  Args:
    settings: those of the run.
    num_images: images of the training set, to turn epochs into steps.

  Returns:
    Maps the number of finished steps to the rate of the next.
  """
  schedule = settings.schedule
  peak = (
    settings.optimizer.learning_rate
    * settings.data.batch_size
    / settings.optimizer.reference_batch
  )
  total = steps_of(schedule.length, settings, num_images)
  warmup = steps_of(schedule.warmup, settings, num_images)
  rest = max(total - warmup, 1)
  if schedule.decay == "polynomial":
    decay = optax.polynomial_schedule(peak, 0.0, schedule.power, rest)
  elif schedule.decay == "cosine":
    decay = optax.cosine_decay_schedule(peak, rest)
  else:
    decay = optax.constant_schedule(peak)
  rate = decay
  if warmup:
    rate = optax.join_schedules(
      [optax.linear_schedule(0.0, peak, warmup), decay], [warmup]
    )
  if schedule.decay != "step":
    return rate
  share = _drops(settings, num_images)
  return lambda step: rate(step) * share(step)


def _drops(settings: Settings, num_images: int) -> optax.Schedule:
  """What milestones leave of the rate, in the warm-up as after it.

  They may come in any order, and several at one step.
  """
  schedule = settings.schedule
  counts = collections.Counter(
    steps_of(milestone, settings, num_images)
    for milestone in schedule.milestones
  )
  drops = {step: schedule.factor**count for step, count in counts.items()}
  return optax.piecewise_constant_schedule(1.0, drops)
