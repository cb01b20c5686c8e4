"""Settings of the head: its loss, its margins, and how it is computed."""

import dataclasses

from jamsface_jax.errors import InputError
from jamsface_jax.settings.fields import (
  Section,
  not_negative,
  one_of,
  positive,
  setting,
  share,
)

# First the sections of single losses, in the letters of their papers.


@dataclasses.dataclass(frozen=True)
class Combined(Section):
  """Settings of the loss "combined"."""

  PREFIX = "head.combined."

  m: float = setting(1.0, "Multiplies the angle to the true class.")


@dataclasses.dataclass(frozen=True)
class SphereFace(Section):
  """Settings of the loss "sphereface"."""

  PREFIX = "head.sphereface."

  m: float = setting(4.0, "Multiplies the angle to the true class.")
  lambda_max: float = setting(
    1000.0, "Weight of the plain cosine beside the multiplied one, at first."
  )
  lambda_min: float = setting(
    5.0, "Weight of the plain cosine beside the multiplied one, at last."
  )


@dataclasses.dataclass(frozen=True)
class MVSoftmax(Section):
  """Settings of the loss "mv_softmax"."""

  PREFIX = "head.mv_softmax."

  t: float = setting(1.2, "Hard classes count with t cos + t - 1.")
  easy_margin: bool = setting(
    True, "Take no margin where the true cosine is not above it (published)."
  )


@dataclasses.dataclass(frozen=True)
class CurricularFace(Section):
  """Settings of the loss "curricularface"."""

  PREFIX = "head.curricularface."

  momentum: float = setting(
    0.01, "Share of a step in t, the running mean of the true cosines."
  )


@dataclasses.dataclass(frozen=True)
class MagFace(Section):
  """Settings of the loss "magface"."""

  PREFIX = "head.magface."

  l_a: float = setting(10.0, "Smallest length of an embedding.")
  u_a: float = setting(110.0, "Largest length of an embedding.")
  l_m: float = setting(0.45, "Margin at the smallest length, radians.")
  u_m: float = setting(0.8, "Margin at the largest length, radians.")
  lambda_g: float = setting(35.0, "Strength of the penalty on lengths.")
  easy_margin: bool = setting(
    True, "Take no margin where the true cosine is not above 0 (published)."
  )


@dataclasses.dataclass(frozen=True)
class AdaFace(Section):
  """Settings of the loss "adaface"."""

  PREFIX = "head.adaface."

  h: float = setting(0.333, "Multiplies the standardised length.")
  momentum: float = setting(
    0.01, "Share of a step in the mean and deviation of lengths."
  )


@dataclasses.dataclass(frozen=True)
class ElasticFace(Section):
  """Settings of the loss "elasticface"."""

  PREFIX = "head.elasticface."

  deviation: float = setting(0.05, "Standard deviation of the drawn margins.")
  space: str = setting(
    "angular",
    "Which margin is drawn: angular or cosine.",
    one_of("angular", "cosine"),
  )


@dataclasses.dataclass(frozen=True)
class UniFace(Section):
  """Settings of the loss "uniface"."""

  PREFIX = "head.uniface."

  weight: float = setting(1.0, "Weight of the other classes.")


@dataclasses.dataclass(frozen=True)
class Head(Section):
  """Settings of the head: loss, margins, and the computation over classes."""

  PREFIX = "head."

  loss: str = setting("joint", "Name of the loss, see docs/losses.md.")
  scale: float = setting(
    64.0, "Multiplies the cosines in the softmax.", positive
  )
  logit_adjustment: float = setting(
    0.0, "Logits get this times log(class size) more.", not_negative
  )
  angular_margin: float = setting(
    0.3, "Radians: first value, and mean if held.", not_negative
  )
  cosine_margin: float = setting(
    0.2, "In the cosine: first value, and mean if held.", not_negative
  )
  margin_power: float = setting(
    0.0, "First margins fall as (class size)^-this.", not_negative
  )
  margin_slope: float = setting(
    0.0,
    "First margins rise by this share with each doubling of (class size); their"
    " mean stays.",
  )
  margin_curve: str = setting(
    "",
    "CSV file of first margins by class size, such as a run's margins.csv;"
    " their mean becomes that of the settings.",
  )
  learn_angular: bool = setting(
    True, "Learn the angular margins; False: frozen at the first value."
  )
  learn_cosine: bool = setting(
    True, "Learn the cosine margins; False: frozen at the first value."
  )
  margin_rule: str = setting(
    "mean",
    "What keeps learned margins up: their means are held (mean, ours), or"
    " rewarded (lambda). Margins that are not learned stay, or are made anew"
    " after each epoch of how densely the embeddings of their classes lie"
    " (concentration).",
    one_of("mean", "lambda", "concentration"),
  )
  concentration_temperature: float = setting(
    0.4,
    "How much margins differ with the concentration of their classes, for"
    ' margin_rule "concentration".',
    not_negative,
  )
  concentration_share: float = setting(
    0.7,
    "Share of concentration in these margins; the rest is of class size.",
    share,
  )
  angular_lambda: float = setting(
    5.0, 'Strength of the reward of angular margins, for margin_rule "lambda".'
  )
  cosine_lambda: float = setting(
    5.0, 'Strength of the reward of cosine margins, for margin_rule "lambda".'
  )
  lambda_end: float = setting(
    1.0, "Factor on both lambdas at the end; linear from 1.", not_negative
  )
  rewarded: str = setting(
    "classes",
    'Whose mean margin_rule "lambda" rewards: that of all classes, or of the'
    " batch.",
    one_of("classes", "batch"),
  )
  count_power: float = setting(
    0.0, "In both means a class counts as (class size)^this.", not_negative
  )
  held: str = setting(
    "classes",
    "Whose mean is held: of all classes, of all images, of the classes of each"
    ' size (sizes), or no one\'s (none), for margin_rule "concentration".',
    one_of("classes", "images", "sizes", "none"),
  )
  gradient_power: float = setting(
    0.0,
    "The gradient of margins is divided by (class size)^this.",
    not_negative,
  )
  angular_min: float = setting(
    0.0, "Learned angular margins stay above this, radians.", not_negative
  )
  angular_max: float = setting(
    0.8, "Learned angular margins stay below this, radians."
  )
  cosine_min: float = setting(
    0.0, "Learned cosine margins stay above this.", not_negative
  )
  cosine_max: float = setting(0.6, "Learned cosine margins stay below this.")
  margin_bounds: str = setting(
    "box",
    "At these bounds learned margins are cut off (box), or slow down before"
    " them (sigmoid).",
    one_of("box", "sigmoid"),
  )
  margin_start: float = setting(
    0.0, "Until then margins rest; counted in schedule.unit.", not_negative
  )
  margin_rate: float = setting(
    0.02, "Margin learning rate over the main one.", not_negative
  )
  margin_momentum: float = setting(
    0.0, "Momentum of learned margins.", not_negative
  )
  continuation: str = setting(
    "smooth",
    "How the similarity goes on beyond an angle of pi - margin: smooth, or as"
    " published.",
    one_of("smooth", "published"),
  )
  straight_through: bool = setting(
    False, "Take the slope in the true cosine as 1, not as it is."
  )
  sub_centers: int = setting(
    1, "Weight rows of a class; the nearest counts.", positive
  )
  learn_scale: bool = setting(False, "Move the scale as margins are moved.")
  ignore_above: float = setting(
    1.0, "Other classes of a larger cosine are left out; 1: none is."
  )
  sample_rate: float = setting(
    1.0, "Share of the other classes that a step sees.", positive
  )
  weigh_sample: bool = setting(
    False, "Let the classes that are drawn stand for the rest."
  )
  skip_below: float = setting(
    0.0,
    "Gradients of smaller probabilities are left out; 0: none.",
    not_negative,
  )
  fused_update: bool = setting(
    True, "Update the class weights as their gradients come."
  )
  clip_norm: float = setting(
    0.0,
    "Largest norm of the class weights' gradient; 0: no limit.",
    not_negative,
  )
  class_multiple: int = setting(
    1024, "Classes are padded to a multiple of it.", positive
  )
  chunk_classes: int = setting(
    0, "Classes walked at once; 0: as suits the devices.", not_negative
  )
  keep_mib: int = setting(
    256, "MiB for cosines that are kept for the backward pass.", not_negative
  )
  product_dtype: str = setting(
    "float32",
    "Embeddings times class weights are computed in it: float32 or bfloat16.",
    one_of("float32", "bfloat16"),
  )
  combined: Combined = Combined()
  sphereface: SphereFace = SphereFace()
  mv_softmax: MVSoftmax = MVSoftmax()
  curricularface: CurricularFace = CurricularFace()
  magface: MagFace = MagFace()
  adaface: AdaFace = AdaFace()
  elasticface: ElasticFace = ElasticFace()
  uniface: UniFace = UniFace()

  def check(self) -> None:
    """Refuses settings that do not go together."""
    self._check_margins()
    self._check_sample()
    if self.loss == "uniface":
      self._check_no_weights("weigh_sample", False)
      self._check_no_weights("logit_adjustment", 0)

  def _check_margins(self) -> None:
    """Learned margins need room, fixed ones a meaning."""
    for kind in ("angular", "cosine"):
      first = getattr(self, f"{kind}_margin")
      lower = getattr(self, f"{kind}_min")
      upper = getattr(self, f"{kind}_max")
      learned = getattr(self, f"learn_{kind}")
      if learned and not lower <= first <= upper > lower:
        raise InputError(
          f"head.{kind}_margin={first} is outside of head.{kind}_min={lower} to"
          f" head.{kind}_max={upper}: learned margins need their mean inside"
          " their bounds, and room between these."
        )
    if not self.angular_margin < 3.14:
      raise InputError(
        f"head.angular_margin={self.angular_margin} is in radians and must be"
        " below pi."
      )
    self._check_concentration()
    self._check_curves()
    if self.count_power and self.rewarded == "batch":
      raise InputError(
        f"head.count_power={self.count_power} weighs all classes, but"
        " head.rewarded='batch' counts those of the batch by their images: set"
        " head.count_power=0 or head.rewarded=classes."
      )

  def _check_concentration(self) -> None:
    """Margins follow from embeddings or from gradients; some mean is held."""
    made_anew = self.margin_rule == "concentration"
    for kind in ("angular", "cosine"):
      if made_anew and getattr(self, f"learn_{kind}"):
        raise InputError(
          "head.margin_rule='concentration' makes margins of embeddings, but"
          f" head.learn_{kind}=True moves them by gradients: set"
          f" head.learn_{kind}=False."
        )
    if self.held == "none" and not made_anew:
      raise InputError(
        f"head.held='none' holds no mean, but head.margin_rule="
        f"{self.margin_rule!r} is not 'concentration', which alone has margins"
        " without: set head.held=classes."
      )

  def _check_curves(self) -> None:
    """First margins have one form, and a mean that it can have."""
    made_anew = self.margin_rule == "concentration"
    forms = {
      "margin_power": self.margin_power,
      "margin_slope": self.margin_slope,
      "margin_curve": self.margin_curve,
    }
    chosen = [name for name, value in forms.items() if value]
    if len(chosen) > 1:
      raise InputError(
        f"head.{chosen[0]}={forms[chosen[0]]} and head.{chosen[1]}="
        f"{forms[chosen[1]]!r} both say what first margins are: set one."
      )
    if chosen and made_anew:
      raise InputError(
        f"head.{chosen[0]}={forms[chosen[0]]} and head.margin_rule="
        "'concentration' both say what margins are: set one."
      )
    if chosen and self.held == "sizes":
      raise InputError(
        f"head.{chosen[0]}={forms[chosen[0]]} gives each size of class margins"
        " of its own, but head.held='sizes' the same mean to all: set"
        " head.held to classes or images."
      )
    made_anew = made_anew and self.held != "none"
    if not (self.margin_slope or self.margin_curve or made_anew):
      return
    for kind in ("angular", "cosine"):
      mean = getattr(self, f"{kind}_margin")
      lower, upper = (getattr(self, f"{kind}_{end}") for end in ("min", "max"))
      if not lower <= mean <= upper:
        raise InputError(
          f"head.{kind}_margin={mean} is outside of head.{kind}_min={lower} to"
          f" head.{kind}_max={upper}: margins that differ from class to class"
          " (margin_slope, margin_curve, margin_rule='concentration') need"
          " their mean inside their bounds."
        )

  def _check_sample(self) -> None:
    """A sample is a part of all classes, updated by itself."""
    if self.sample_rate > 1:
      raise InputError(
        f"head.sample_rate={self.sample_rate} must be at most 1, which is all"
        " classes."
      )
    if self.sample_rate < 1 and not self.fused_update:
      raise InputError(
        f"head.sample_rate={self.sample_rate} updates the sampled classes"
        " alone, which needs head.fused_update=True: set it, or sample all."
      )

  def _check_no_weights(self, name: str, off: float) -> None:
    """Refuses a setting that weighs classes against each other."""
    value = getattr(self, name)
    if value:
      raise InputError(
        f"head.{name}={value} weighs classes in one sum, but"
        " head.loss='uniface' counts each on its own: set"
        f" head.{name}={off}."
      )
