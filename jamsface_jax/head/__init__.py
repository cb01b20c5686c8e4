"""The method: losses, margins, and a softmax over classes split across devices.

    from jamsface_jax import head

    softmax = head.make(num_classes=100_000, embedding_size=512)
    params = head.init(jax.random.key(0), softmax)
    loss, measured = head.mean_loss(params, embeddings, labels, head=softmax)
    optimizer = head.optimizer(optax.sgd(0.1), softmax, margin_rate=0.002)

for a loop of one's own, see docs/head.md; `loss`, `update_weights` and
`fused_optimizer` for one that never makes the gradient of the weights.

It stands alone: of other packages it imports jax, optax and jaxtyping, and no
more comes with it than with these (optax imports absl).

Files, from the ground up: `margins`, `losses`, `layout`, `parameters`,
`margin_rules`, `class_sampling`, `chunks`, `making`, `logits`,
`online_softmax`, `forward`, `update`, `differentiable`, `optimizer`,
`concentration`, `memory`.
All collectives of the head are here.
"""

from jamsface_jax.head import (
  class_sampling,
  concentration,
  losses,
  margins,
  memory,
)
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.differentiable import Measured, mean_loss
from jamsface_jax.head.forward import LossResult, Residuals, loss
from jamsface_jax.head.losses import Loss, LossInputs, LossState, make_loss
from jamsface_jax.head.making import first_state, fixed, learned, make
from jamsface_jax.head.margin_rules import (
  constrain,
  hold_mean,
  margin_reward,
  margin_statistics,
)
from jamsface_jax.head.optimizer import (
  FusedOptimizer,
  fused_optimizer,
  optimizer,
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
  "FusedOptimizer",
  "Head",
  "HeadParams",
  "Loss",
  "LossInputs",
  "LossResult",
  "LossState",
  "Margin",
  "Measured",
  "Residuals",
  "Sample",
  "WeightUpdate",
  "check_mesh",
  "chunk_classes",
  "class_sampling",
  "clip_factor",
  "concentration",
  "constrain",
  "first_state",
  "fixed",
  "fused_optimizer",
  "hold_mean",
  "init",
  "learned",
  "loss",
  "losses",
  "make",
  "make_loss",
  "margin_reward",
  "margin_statistics",
  "margins",
  "margins_and_scalars",
  "mean_loss",
  "memory",
  "optimizer",
  "pad_classes",
  "update_weights",
  "weight_gradient",
]
