"""A head in one call, with the defaults of the recipes.

What a head may be is in `parameters.Head` and `parameters.Margin`, every field
of which the trainer's settings give. In a loop of one's own most of them are as
they are here.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jamsface_jax.errors import InputError
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.head.losses import Joint, Loss, LossState
from jamsface_jax.head.parameters import Head, Margin, pad_classes


def learned(
  mean: float,
  *,
  upper: float,
  lower: float = 0.0,
  rule: str = "mean",
  strength: float = 5.0,
  **more: Any,
) -> Margin:
  """A margin that every class learns.

  Args:
    mean: first value, and the mean over classes that rule "mean" holds; radians
      for the angular margin.
    upper: margins stay below.
    lower: margins stay above.
    rule: "mean" or "lambda", see `Margin`.
    strength: lambda of rule "lambda".
    **more: further fields of `Margin`: `power`, `slope`, `curve`, `bounds`,
      `rewarded`, `start`.

  Raises:
    InputError: the mean is outside of the bounds, or the rule of another
      kind.
  """
  if rule == "concentration":
    raise InputError(
      "margins of rule 'concentration' follow from embeddings and not from"
      " gradients: make them by fixed(VALUE, rule='concentration')."
    )
  if not lower <= mean <= upper > lower:
    raise InputError(
      f"a learned margin of mean {mean} is outside of its bounds, {lower} to"
      f" {upper}: give lower= and upper= with the mean between them."
    )
  rest: dict[str, Any] = {
    "power": 0.0,
    "slope": 0.0,
    "curve": (),
    "bounds": "box",
    "rewarded": "classes",
    "start": 0,
  }
  return Margin(
    initial=mean,
    learned=True,
    rule=rule,
    lower=lower,
    upper=upper,
    strength=strength,
    **(rest | more),
  )


def fixed(
  value: float,
  *,
  power: float = 0.0,
  slope: float = 0.0,
  curve: tuple[tuple[float, float], ...] = (),
  rule: str = "mean",
) -> Margin:
  """A margin that no gradient moves.

  Args:
    value: the margin of every class, of the smallest if `power` is not 0, or
      the mean if they change otherwise; radians for the angular one.
    power: margins fall as (n_min / n_j)^power, see `Margin`.
    slope: margins rise with each doubling of n_j, see `Margin`.
    curve: margins at some sizes, see `Margin`.
    rule: "mean": it stays as it is; "concentration": it is made anew after
      each pass over the data, by calls of `concentration`.
  """
  return Margin(
    initial=value,
    power=power,
    slope=slope,
    curve=curve,
    learned=False,
    rule=rule,
    lower=0.0,
    upper=max(value, 1.0),
    bounds="box",
    strength=0.0,
    rewarded="classes",
    start=0,
  )


JAMSFACE = Joint(smooth=True, straight_through=False)
ANGULAR_MARGIN = learned(0.3, upper=0.8)
COSINE_MARGIN = learned(0.2, upper=0.6)


def make(
  num_classes: int,
  embedding_size: int,
  *,
  loss: Loss = JAMSFACE,
  scale: float = 64.0,
  angular: Margin = ANGULAR_MARGIN,
  cosine: Margin = COSINE_MARGIN,
  class_multiple: int = 128,
  **more: Any,
) -> Head:
  """Makes a head: JAMsFace, unless told otherwise.

  Args:
    num_classes: N.
    embedding_size: D.
    loss: one of `head.losses`.
    scale: s, which multiplies the cosines.
    angular: the margin in the angle, `learned` or `fixed`.
    cosine: the margin in the cosine, likewise.
    class_multiple: N is padded to a multiple of it, which the `model` axis of
      a mesh must divide.
    **more: further fields of `Head`: `sub_centers`, `sample_rate`,
      `product_dtype`, `keep_bytes`, ...
  """
  if num_classes < 2 or embedding_size < 1:
    raise InputError(
      f"a head of {num_classes} classes and embeddings of {embedding_size}"
      " numbers cannot learn: give at least 2 classes and 1 number."
    )
  rest: dict[str, Any] = {
    "sub_centers": 1,
    "learn_scale": False,
    "count_power": 0.0,
    "held": "classes",
    "gradient_power": 0.0,
    "concentration_temperature": 0.4,
    "concentration_share": 0.7,
    "logit_adjustment": 0.0,
    "ignore_above": 1.0,
    "sample_rate": 1.0,
    "weigh_sample": False,
    "chunk_classes": chunk_classes(jax.default_backend()),
    "keep_bytes": 256 * 2**20,
    "skip_below": 0.0,
    "product_dtype": "float32",
  }
  return Head(
    num_classes=num_classes,
    padded_classes=pad_classes(num_classes, class_multiple),
    embedding_size=embedding_size,
    loss=loss,
    scale=scale,
    angular=angular,
    cosine=cosine,
    **(rest | more),
  )


def first_state(head: Head) -> LossState:
  """What the loss remembers before the first step: float32 scalars by name.

  Empty for losses that remember nothing.
  """
  start = head.loss.start(head.num_classes)
  return {name: jnp.float32(value) for name, value in start.items()}
