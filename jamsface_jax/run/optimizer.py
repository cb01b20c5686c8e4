"""SGD, AdamW or LARS for face recognition: three optimizers, one schedule.

Class weights have one of their own because theirs must act on any part of them:
see `head.update_weights`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from jamsface_jax.head.optimizer import of_margins_and_scalars
from jamsface_jax.head.parameters import WEIGHTS, Head, margins_and_scalars
from jamsface_jax.run.gradient_norm import clip_by_norm
from jamsface_jax.settings import sections
from jamsface_jax.settings.sections import Settings


class Optimizers(NamedTuple):
  """One for each kind of parameter, see the head of this file.

  Attributes:
    backbone: the backbone's, with weight decay, its gradient clipped.
    weights: that of the class weights, with weight decay.
    margins_and_scalars: that of all else the head has: margins, scale, bias.
  """

  backbone: optax.GradientTransformation
  weights: optax.GradientTransformation
  margins_and_scalars: optax.GradientTransformation

  def init(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
    """Makes the state of all three; below `head` it is split by class."""
    return {
      "backbone": self.backbone.init(params["backbone"]),
      "head": {
        "weights": self.weights.init(params["head"][WEIGHTS]),
        # The key that checkpoints have.
        "small": self.margins_and_scalars.init(
          margins_and_scalars(params["head"])
        ),
      },
    }


def make_optimizers(
  settings: Settings, schedule: optax.Schedule, head: Head
) -> Optimizers:
  """Builds the optimizers of the backbone and of the head.

  Args:
    settings: those of the run.
    schedule: learning rate by step, of all but margins and scale.
    head: says what is learned of the head.
  """
  chosen = settings.optimizer
  main = _main(chosen, schedule)
  learns_scale = {
    "by_loss": head.loss.length_has_gradient,
    "learned": True,
    "fixed": False,
  }[chosen.last_scale]
  backbone = main
  if chosen.clip_norm:
    backbone = optax.chain(clip_by_norm(chosen.clip_norm), main)
  return Optimizers(
    backbone=optax.partition(
      {"learned": backbone, "frozen": optax.set_to_zero()},
      partial(_groups_of_backbone, learns_scale=learns_scale),
    ),
    weights=main,
    margins_and_scalars=of_margins_and_scalars(
      head,
      lambda step: settings.head.margin_rate * schedule(step),
      margin_momentum=settings.head.margin_momentum,
      bias=optax.sgd(schedule, momentum=chosen.momentum),
    ),
  )


def _main(
  settings: sections.Optimizer, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """The optimizer of backbone and class weights.

  SGD and AdamW act on elements alone. LARS, in Optax's form, scales the step of
  each array by its norm over that of its gradient with the decay; the weights
  of all classes are one array, on whatever devices. Arrays of one axis have no
  such ratio.

  SGD adds the decay to the gradient, as PyTorch's does. AdamW takes it off the
  parameter, times the learning rate (https://arxiv.org/abs/1711.05101); its
  correction of young moments counts the steps of the run, those too in which a
  class was not sampled, as PyTorch's SparseAdam counts.
  """

  def decays(params: PyTree) -> PyTree[bool]:
    return jax.tree.map(lambda p: settings.decay_vectors or p.ndim > 1, params)

  if settings.name == "adamw":
    b1, b2 = settings.betas
    return optax.adamw(
      schedule,
      b1=b1,
      b2=b2,
      eps=settings.eps,
      weight_decay=settings.weight_decay,
      mask=decays,
    )
  if settings.name == "lars":
    return optax.lars(
      schedule,
      weight_decay=settings.weight_decay,
      weight_decay_mask=decays,
      trust_coefficient=settings.trust_coefficient,
      trust_ratio_mask=_is_matrix,
      momentum=settings.momentum,
    )
  return optax.chain(
    optax.add_decayed_weights(settings.weight_decay, mask=decays),
    optax.sgd(schedule, momentum=settings.momentum),
  )


def _is_matrix(params: PyTree) -> PyTree[bool]:
  """Which parameters have more axes than one."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def _groups_of_backbone(params: PyTree, *, learns_scale: bool) -> PyTree[str]:
  """Says of each parameter of a backbone whether it is learned.

  Args:
    params: those of the backbone.
    learns_scale: whether the scale of the last batch normalisation is.
  """

  def group(path: tuple[Any, ...], _: Any) -> str:
    # The field keeps the scale of the last batch normalisation at 1 where the
    # softmax sees directions only. It would pin the lengths that a loss moves.
    is_scale = [entry.key for entry in path][-2:] == ["embedding_bn", "scale"]
    return "frozen" if is_scale and not learns_scale else "learned"

  return jax.tree_util.tree_map_with_path(group, params)
