"""The margin softmaxes of the field, each a small class of what is its own.

All share one sharded, chunked, sampled softmax (`forward`, `update`), which
asks a loss

* what stands in the place of the true class's cosine (`similarity`),
* what multiplies the cosines of an example (`scale`),
* whether the other classes are changed (`reweight_others`) or counted each on
  its own (`one_by_one`), and
* what it remembers from step to step (`start`, `update_before`,
  `update_after`).

A new loss is a class that answers what it answers otherwise than the normalised
softmax, and a line in `make_loss`. Margins a (radians) and c of the classes are
the head's parameters, fixed or learned, so that every loss that adds them may
learn them. Names and letters are those of the papers.
"""

# Methods are documented where `Loss` declares them.
# ruff: noqa: D102

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jamsface_jax.errors import InputError
from jamsface_jax.head import margins
from jamsface_jax.head.margins import PerExample

LossState = dict[str, jax.Array]  # float32 scalars, kept from step to step.
Scalar = Float[Array, ""]


class LossInputs(NamedTuple):
  """What a loss sees of the examples of a batch; float32 [B] each.

  Attributes:
    cosine: to the true class.
    angular: its margin a, radians.
    cosine_margin: its margin c.
    length: length of the embedding before it was scaled to 1.
    noise: standard normal numbers, or zeros for losses that draw none.
    state: what the loss remembers, scalars by name.
  """

  cosine: jax.Array
  angular: jax.Array
  cosine_margin: jax.Array
  length: jax.Array
  noise: jax.Array
  state: LossState


@dataclasses.dataclass(frozen=True)
class Loss:
  """The normalised softmax (NormFace, https://arxiv.org/abs/1704.06369).

  What the softmax asks of a loss is all here. A loss overrides what it answers
  otherwise, and sets the flag of what it overrides, where there is one: Python
  branches on these, so that a loss pays for what it uses alone.

  Attributes:
    reweights_others: `threshold` and `reweight_others` are used.
    scale_has_gradient: `scale` depends on the length of the embedding.
    draws: `LossInputs.noise` is used.
    remembers: `start`, `update_before`, `update_after` and `LossInputs.state`
      are used.
    unit_weights: class weights count as if of length 1.
    one_by_one: other classes are not in one sum of exponentials, but each is
      told apart on its own, log(1 + exp(s cos t_j - b)), by a threshold b that
      is learned; `first_bias` and `others_weight` are used. See `UniFace`.
  """

  reweights_others: ClassVar[bool] = False
  scale_has_gradient: ClassVar[bool] = False
  draws: ClassVar[bool] = False
  remembers: ClassVar[bool] = False
  unit_weights: ClassVar[bool] = True
  one_by_one: ClassVar[bool] = False

  @property
  def length_has_gradient(self) -> bool:
    """Whether the loss moves the lengths of embeddings."""
    return self.scale_has_gradient

  def similarity(self, x: LossInputs) -> PerExample:
    """What the softmax sees in the place of the true cosine, [B]."""
    return x.cosine

  def scale(self, x: LossInputs, s: Scalar) -> PerExample:
    """What multiplies all cosines of an example, [B]; s is the head's."""
    return jnp.broadcast_to(s, x.cosine.shape)

  def penalty(self, x: LossInputs) -> PerExample:
    """What is added to the cross-entropy of an example, [B]."""
    return jnp.zeros_like(x.cosine)

  def threshold(self, x: LossInputs) -> PerExample:
    """Cosine of an example above which another class is hard, [B].

    `reweight_others` gets it back; by default that of the true class.
    """
    return self.similarity(x)

  def reweight_others(
    self,
    cosine_nb: Float[Array, "n b"],
    threshold_b: PerExample,
    state: LossState,
  ) -> tuple[Float[Array, "n b"], Float[Array, "n b"]]:
    """Cosines to other classes as the softmax sees them.

    Args:
      cosine_nb: cosines of n other classes with all examples of a device.
      threshold_b: what `threshold` said of these.
      state: what the loss remembers.

    Returns:
      What stands in the place of the cosines, and its derivative in them.
    """
    del threshold_b, state
    return cosine_nb, jnp.ones_like(cosine_nb)

  def first_bias(self, num_classes: int) -> float:
    """The first b of a loss that counts other classes one by one.

    By default log N, where all cosines 0 cost what they cost a softmax.
    """
    return math.log(num_classes)

  def others_weight(self) -> float:
    """What multiplies the sum over other classes counted one by one."""
    return 1.0

  def start(self, num_classes: int) -> dict[str, float]:
    """What it remembers before the first step."""
    del num_classes
    return {}

  def update_before(self, batch: LossInputs) -> LossState:
    """What it remembers once it has seen the whole batch, before the loss."""
    return batch.state

  def update_after(self, batch: LossInputs, rest: PerExample) -> LossState:
    """The same after the loss; `rest`: log-sum-exp of the other classes."""
    del rest
    return batch.state


@dataclasses.dataclass(frozen=True)
class Joint(Loss):
  """cos(t + a) - c: JAMsFace, ArcFace, CosFace, AdaptiveFace, LDAM.

  See `margins.joint`. Which of them it is, is a matter of the margins: fixed or
  learned, and with which first values.

  Attributes:
    smooth: continuation beyond pi - a.
    straight_through: let the derivative in the cosine be 1, as in
      arcface_torch, whose margin is added without a gradient; margins keep
      their true one.
  """

  smooth: bool
  straight_through: bool

  def similarity(self, x: LossInputs) -> PerExample:
    def joint(cosine: PerExample) -> PerExample:
      return margins.joint(
        cosine, x.angular, x.cosine_margin, smooth=self.smooth
      )

    if not self.straight_through:
      return joint(x.cosine)
    fixed = lax.stop_gradient(x.cosine)
    return joint(fixed) + x.cosine - fixed


@dataclasses.dataclass(frozen=True)
class Softmax(Loss):
  """The softmax of w_j x, without bias: neither w nor x is normalised."""

  unit_weights = False
  scale_has_gradient = True

  def scale(self, x: LossInputs, s: Scalar) -> PerExample:
    return x.length


@dataclasses.dataclass(frozen=True)
class Combined(Loss):
  """cos(m t + a) - c, the combined margin of ArcFace, section 3.2, eq. 4.

  Of https://arxiv.org/abs/1801.07698 (m1 = m, m2 = a, m3 = c there). Beyond pi
  it goes on as SphereFace's psi does, see `margins.combined`.

  Attributes:
    m: multiplies the angle.
    straight_through: as of `Joint`; with a = c = 0 SphereFace-R with its
      characteristic gradient detachment (https://arxiv.org/abs/2109.05565).
  """

  m: float
  straight_through: bool

  def similarity(self, x: LossInputs) -> PerExample:
    def combined(cosine: PerExample) -> PerExample:
      return margins.combined(cosine, self.m, x.angular, x.cosine_margin)

    if not self.straight_through:
      return combined(x.cosine)
    fixed = lax.stop_gradient(x.cosine)
    return combined(fixed) + x.cosine - fixed


@dataclasses.dataclass(frozen=True)
class SphereFace(Loss):
  """A-Softmax: |x| (psi(t) + lambda cos t) / (1 + lambda), psi = "cos m t".

  https://arxiv.org/abs/1704.08063, eq. 7; lambda falls as in its public code,
  from `lambda_max` as lambda_max / (1 + 0.12 k) in step k to `lambda_min`.

  Attributes:
    m: multiplies the angle; whole numbers in the paper.
    lambda_min: last lambda.
    lambda_max: first lambda.
  """

  m: float
  lambda_min: float
  lambda_max: float

  remembers = True
  scale_has_gradient = True

  def scale(self, x: LossInputs, s: Scalar) -> PerExample:
    return x.length

  def start(self, num_classes: int) -> dict[str, float]:
    return {"steps": 0.0}

  def update_before(self, batch: LossInputs) -> LossState:
    return {"steps": batch.state["steps"] + 1.0}

  def similarity(self, x: LossInputs) -> PerExample:
    falling = self.lambda_max / (1 + 0.12 * x.state["steps"])
    weight = jnp.maximum(self.lambda_min, falling)
    zero = jnp.zeros_like(x.cosine)
    psi = margins.combined(x.cosine, self.m, zero, zero)
    return (psi + weight * x.cosine) / (1 + weight)


@dataclasses.dataclass(frozen=True)
class AdaCos(Loss):
  """No margin; the scale follows the batch (https://arxiv.org/abs/1905.00292).

  s = log(B) / cos(min(pi/4, median t)), B the mean over the batch of the sum of
  exp(s cos t_j) over other classes, from the scale before; its first value is
  sqrt(2) log(N - 1) (eq. 15, algorithm 1). A step uses the scale that the step
  before has found: with its own, all classes would be walked once more.
  """

  remembers = True

  def start(self, num_classes: int) -> dict[str, float]:
    return {"scale": math.sqrt(2) * math.log(max(num_classes - 1, 2))}

  def scale(self, x: LossInputs, s: Scalar) -> PerExample:
    return jnp.broadcast_to(x.state["scale"], x.cosine.shape)

  def update_after(self, batch: LossInputs, rest: PerExample) -> LossState:
    angle = jnp.median(jnp.arccos(jnp.clip(batch.cosine, -1.0, 1.0)))
    log_mean = jax.nn.logsumexp(rest) - math.log(len(rest))
    return {"scale": log_mean / jnp.cos(jnp.minimum(math.pi / 4, angle))}


@dataclasses.dataclass(frozen=True)
class MVSoftmax(Joint):
  """Other classes above the margined target count more.

  https://arxiv.org/abs/1912.00833, eq. 8 (adaptive form): cos t_j becomes
  t cos t_j + t - 1 where it is above the similarity of the true class.

  Attributes:
    t: at least 1; 1 changes nothing.
    easy_margin: as in its public code (FaceX-Zoo's) no margin is taken where
      cos t is not above c, which is 0 for the angular margin; and other classes
      are compared with cos(t + a) - c there too.
  """

  t: float
  easy_margin: bool

  reweights_others = True

  def similarity(self, x: LossInputs) -> PerExample:
    phi = super().similarity(x)
    if not self.easy_margin:
      return phi
    return jnp.where(x.cosine > x.cosine_margin, phi, x.cosine)

  def threshold(self, x: LossInputs) -> PerExample:
    if not self.easy_margin:
      return self.similarity(x)
    return margins.shift(x.cosine, x.angular) - x.cosine_margin

  def reweight_others(
    self,
    cosine_nb: Float[Array, "n b"],
    threshold_b: PerExample,
    state: LossState,
  ) -> tuple[Float[Array, "n b"], Float[Array, "n b"]]:
    hard_nb = cosine_nb > threshold_b[None]
    changed_nb = self.t * cosine_nb + self.t - 1
    return (
      jnp.where(hard_nb, changed_nb, cosine_nb),
      jnp.where(hard_nb, self.t, 1.0),
    )


@dataclasses.dataclass(frozen=True)
class CurricularFace(Joint):
  """Hard classes count little at first, and more and more.

  https://arxiv.org/abs/2004.00288, eq. 4 to 6: cos t_j becomes
  cos t_j (t + cos t_j) where it is above cos(t_y + a), and t is a running mean
  of the true cosine, from 0.

  Attributes:
    momentum: share of a step in t.
  """

  momentum: float

  reweights_others = True
  remembers = True

  def start(self, num_classes: int) -> dict[str, float]:
    return {"t": 0.0}

  def update_before(self, batch: LossInputs) -> LossState:
    t = batch.state["t"]
    return {"t": t + self.momentum * (batch.cosine.mean() - t)}

  def threshold(self, x: LossInputs) -> PerExample:
    return margins.shift(x.cosine, x.angular)

  def reweight_others(
    self,
    cosine_nb: Float[Array, "n b"],
    threshold_b: PerExample,
    state: LossState,
  ) -> tuple[Float[Array, "n b"], Float[Array, "n b"]]:
    hard_nb = cosine_nb > threshold_b[None]
    t = state["t"]
    return (
      jnp.where(hard_nb, cosine_nb * (t + cosine_nb), cosine_nb),
      jnp.where(hard_nb, t + 2 * cosine_nb, 1.0),
    )


@dataclasses.dataclass(frozen=True)
class MagFace(Loss):
  """The angular margin grows with the length of the embedding.

  https://arxiv.org/abs/2103.06627, eq. 2 and section 3.2: m(l) is linear from
  (l_a, l_m) to (u_a, u_m), and lambda_g (1 / l + l / u_a^2) is added to the
  loss; l is kept in [l_a, u_a].

  Attributes:
    l_a: smallest length.
    u_a: largest length.
    l_m: margin of the smallest, radians.
    u_m: margin of the largest, radians.
    lambda_g: strength of the penalty.
    easy_margin: as in its public code no margin is taken where cos t is not
      above 0; else ArcFace's continuation follows beyond pi - m.
  """

  l_a: float
  u_a: float
  l_m: float
  u_m: float
  lambda_g: float
  easy_margin: bool

  @property
  def length_has_gradient(self) -> bool:
    return True

  def similarity(self, x: LossInputs) -> PerExample:
    length = jnp.clip(x.length, self.l_a, self.u_a)
    per_length = (self.u_m - self.l_m) / (self.u_a - self.l_a)
    m = self.l_m + per_length * (length - self.l_a)
    phi = margins.joint(x.cosine, m, jnp.zeros_like(m), smooth=False)
    if not self.easy_margin:
      return phi
    return jnp.where(x.cosine > 0, phi, x.cosine)

  def penalty(self, x: LossInputs) -> PerExample:
    length = jnp.clip(x.length, self.l_a, self.u_a)
    return self.lambda_g * (1 / length + length / self.u_a**2)


@dataclasses.dataclass(frozen=True)
class AdaFace(Loss):
  """Margins by image quality, for which the length of an embedding stands.

  https://arxiv.org/abs/2204.00964, eq. 12 to 16: with z the length by running
  mean and deviation, times h, cut to [-1, 1]: cos(t - m z) - (m + m z), where
  the angle is kept in [eps, pi - eps]. m is the cosine margin of the class. The
  statistics are those of the global batch, on any number of devices; they begin
  at 20 and 100 as in its public code.

  Attributes:
    h: multiplies the standardised length.
    momentum: share of a step in mean and deviation.
  """

  h: float
  momentum: float

  remembers = True

  def start(self, num_classes: int) -> dict[str, float]:
    return {"mean": 20.0, "deviation": 100.0}

  def update_before(self, batch: LossInputs) -> LossState:
    length = jnp.clip(batch.length, 1e-3, 100.0)
    new = {"mean": length.mean(), "deviation": jnp.std(length, ddof=1)}
    old = batch.state
    return {
      name: old[name] + self.momentum * (new[name] - old[name]) for name in new
    }

  def similarity(self, x: LossInputs) -> PerExample:
    length = lax.stop_gradient(jnp.clip(x.length, 1e-3, 100.0))
    standard = (length - x.state["mean"]) / (x.state["deviation"] + 1e-3)
    z = jnp.clip(self.h * standard, -1.0, 1.0)
    m = x.cosine_margin
    angle = margins.angle(x.cosine) - m * z
    return jnp.cos(jnp.clip(angle, 1e-3, math.pi - 1e-3)) - (m + m * z)


@dataclasses.dataclass(frozen=True)
class ElasticFace(Joint):
  """Margins drawn anew for every example, https://arxiv.org/abs/2109.09416.

  Eq. 6 (ElasticFace-Arc) and 7 (-Cos): a or c plus `deviation` times a standard
  normal number.

  Attributes:
    deviation: standard deviation of the margin.
    space: "angular" or "cosine": which margin.
  """

  deviation: float
  space: str

  draws = True

  def similarity(self, x: LossInputs) -> PerExample:
    more = self.deviation * x.noise
    if self.space == "angular":
      x = x._replace(angular=x.angular + more)
    else:
      x = x._replace(cosine_margin=x.cosine_margin + more)
    return super().similarity(x)


@dataclasses.dataclass(frozen=True)
class UniFace(Joint):
  """One threshold b parts true from other classes, for all examples.

  Zhou et al., UniFace (ICCV 2023), in the form of its public code: log(1 +
  exp(b - s phi)) + w sum_j log(1 + exp(s cos t_j - b)) with b learned, at first
  log(10 r N).

  Attributes:
    weight: w, of the other classes.
    rate: r, the share of them that a step sees.
  """

  weight: float
  rate: float

  one_by_one = True

  def first_bias(self, num_classes: int) -> float:
    return math.log(10 * self.rate * num_classes)

  def others_weight(self) -> float:
    return self.weight


NAMES = (
  "joint",
  "softmax",
  "combined",
  "sphereface",
  "adacos",
  "mv_softmax",
  "curricularface",
  "magface",
  "adaface",
  "elasticface",
  "uniface",
)


def make_loss(settings: Any) -> Loss:
  """Builds the loss that `settings.loss` names.

  Args:
    settings: those of the head, as attributes: `loss`, `continuation`,
      `straight_through`, `sample_rate`, and a section by the name of each loss
      that has settings of its own, with the fields of its class here.

  Raises:
    InputError: there is no loss of that name.
  """
  joint: Mapping[str, bool] = {
    "smooth": settings.continuation == "smooth",
    "straight_through": settings.straight_through,
  }
  match settings.loss:
    case "joint":
      return Joint(**joint)
    case "softmax":
      return Softmax()
    case "combined":
      return Combined(
        m=settings.combined.m, straight_through=settings.straight_through
      )
    case "sphereface":
      return SphereFace(
        m=settings.sphereface.m,
        lambda_min=settings.sphereface.lambda_min,
        lambda_max=settings.sphereface.lambda_max,
      )
    case "adacos":
      return AdaCos()
    case "mv_softmax":
      return MVSoftmax(
        **joint,
        t=settings.mv_softmax.t,
        easy_margin=settings.mv_softmax.easy_margin,
      )
    case "curricularface":
      return CurricularFace(**joint, momentum=settings.curricularface.momentum)
    case "magface":
      return MagFace(
        l_a=settings.magface.l_a,
        u_a=settings.magface.u_a,
        l_m=settings.magface.l_m,
        u_m=settings.magface.u_m,
        lambda_g=settings.magface.lambda_g,
        easy_margin=settings.magface.easy_margin,
      )
    case "adaface":
      return AdaFace(h=settings.adaface.h, momentum=settings.adaface.momentum)
    case "elasticface":
      return ElasticFace(
        **joint,
        deviation=settings.elasticface.deviation,
        space=settings.elasticface.space,
      )
    case "uniface":
      return UniFace(
        **joint, weight=settings.uniface.weight, rate=settings.sample_rate
      )
  raise InputError(
    f"head.loss={settings.loss!r} is unknown: use one of {', '.join(NAMES)}."
  )
