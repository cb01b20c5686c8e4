"""What is compared: rows over recipes and seeds, and how rows are tuned."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jamsface_jax.errors import InputError

# What is set, as after --config: ("head.scale=30", ...).
Words = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How each row is tuned before it is compared.

  Attributes:
    seeds: seeds of the runs that tune, others than those compared.
    metric: metric that is largest for the best choice.
    settings: what is set in these runs besides, such as another test set.
    factors: strengths of the choices, of a plot's axis and of the area below.
    choices: by row, what is set for each factor.
    recipe: the recipe whose choices are those of all; None: each by itself.
  """

  seeds: tuple[int, ...]
  metric: str
  settings: Words
  factors: tuple[float, ...]
  choices: Mapping[str, tuple[Words, ...]]
  recipe: str | None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What `ablate` is asked to compare.

  Attributes:
    recipes: files of recipes, with ":VARIANT" if they are variants.
    seeds: seeds that every row is run with.
    metrics: names of the metrics that the table has, of the last evaluation.
    reference: the row that others are compared with.
    rows: by its name, the variant of a recipe and what is set besides.
    tuning: how rows are tuned first; None if they are not.
  """

  recipes: tuple[str, ...]
  seeds: tuple[int, ...]
  metrics: tuple[str, ...]
  reference: str
  rows: Mapping[str, Words]
  tuning: Tuning | None

  @property
  def tuned_recipes(self) -> tuple[str, ...]:
    """The one whose choices are those of all recipes; or each by itself."""
    if self.tuning and self.tuning.recipe:
      return (self.tuning.recipe,)
    return self.recipes


def make_comparison(given: Mapping[str, Any]) -> Comparison:
  """What a file such as configs/ablation.py asks for.

  Args:
    given: values by the names of `Comparison`, those of `tuning` within it.

  Raises:
    InputError: a setting is missing, or rows are not tuned alike.
  """
  for name in ("recipes", "seeds", "metrics", "rows", "reference"):
    if name not in given:
      raise InputError(f"--config: {name} is missing: see configs/ablation.py.")
  if given["reference"] not in given["rows"]:
    raise InputError(
      f"reference={given['reference']!r} is not a row: use one of"
      f" {', '.join(given['rows'])}."
    )
  tuning = None
  if "tuning" in given:
    tuning = _make_tuning(given["tuning"], list(given["rows"]))
  return Comparison(
    recipes=tuple(given["recipes"]),
    seeds=tuple(given["seeds"]),
    metrics=tuple(given["metrics"]),
    reference=given["reference"],
    rows=given["rows"],
    tuning=tuning,
  )


def _make_tuning(given: Mapping[str, Any], rows: Sequence[str]) -> Tuning:
  for name in ("seeds", "metric", "settings", "factors", "choices"):
    if name not in given:
      raise InputError(
        f"--config: tuning.{name} is missing: see configs/ablation_tail.py."
      )
  for row in rows:
    choices = given["choices"].get(row, ())
    if len(choices) != len(given["factors"]):
      raise InputError(
        f"tuning.choices: row {row!r} has {len(choices)} choices and"
        f" tuning.factors {len(given['factors'])}: a comparison is fair where"
        " all rows have the same budget, give each as many."
      )
  return Tuning(
    seeds=tuple(given["seeds"]),
    metric=given["metric"],
    settings=tuple(given["settings"]),
    factors=tuple(given["factors"]),
    choices=given["choices"],
    recipe=given.get("recipe"),
  )


def strengths(
  middles: Mapping[str, Mapping[str, float]], factors: Sequence[float]
) -> dict[str, tuple[Words, ...]]:
  """The `tuning.choices` of rows that are tuned by the same factors.

  Args:
    middles: by row, what is tuned and its middle.
    factors: factors on all that is tuned of a row; `tuning.factors`.
  """
  return {
    row: tuple(
      tuple(f"{name}={middle * factor:g}" for name, middle in values.items())
      for factor in factors
    )
    for row, values in middles.items()
  }
