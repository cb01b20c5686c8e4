"""The method: losses, margins, and a softmax over classes split across devices.

    head = Head(num_classes=..., loss=Joint(smooth=True, ...), ...)
    params = init(key, head, mesh)
    result = loss(params, embeddings, labels, head=head, mesh=mesh, ...)
    new = update_weights(params, opt_state, result.residuals, accept, ...)

It stands alone: of other packages it imports jax, optax and jaxtyping, and no
more comes with it than with these (optax imports absl).

Files, from the ground up: `margins`, `losses`, `layout`, `parameters`,
`margin_rules`, `class_sampling`, `chunks`, `logits`, `online_softmax`,
`forward`, `update`, `memory`. All collectives of the head are here.
"""

from jamsface_jax.head import class_sampling, losses, margins, memory
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.forward import LossResult, Residuals, loss
from jamsface_jax.head.losses import Loss, LossInputs, LossState, make_loss
from jamsface_jax.head.margin_rules import (
  constrain,
  hold_mean,
  margin_reward,
  margin_statistics,
)
from jamsface_jax.head.parameters import (
  ANGULAR,
  BIAS,
  CLASS_SIZES,
  COSINE,
  LOG_SCALE,
  WEIGHTS,
  Head,
  HeadParams,
  Margin,
  check_mesh,
  init,
  margins_and_scalars,
  pad_classes,
)
from jamsface_jax.head.update import (
  WeightUpdate,
  clip_factor,
  update_weights,
  weight_gradient,
)

__all__ = [
  "ANGULAR",
  "BIAS",
  "CLASS_SIZES",
  "COSINE",
  "LOG_SCALE",
  "WEIGHTS",
  "Head",
  "HeadParams",
  "Loss",
  "LossInputs",
  "LossResult",
  "LossState",
  "Margin",
  "Residuals",
  "Sample",
  "WeightUpdate",
  "check_mesh",
  "chunk_classes",
  "class_sampling",
  "clip_factor",
  "constrain",
  "hold_mean",
  "init",
  "loss",
  "losses",
  "make_loss",
  "margin_reward",
  "margin_statistics",
  "margins",
  "margins_and_scalars",
  "memory",
  "pad_classes",
  "update_weights",
  "weight_gradient",
]
