"""What is compared: rows of losses on recipes, over seeds, perhaps tuned."""

import dataclasses
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from jamsface_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How rows are tuned before they are compared.

  Attributes:
    seeds: the seeds of the runs that choose.
    metric: what they choose by; better when larger.
    settings: flags of all these runs, such as another test set.
    factors: the strength of each choice, for tables and plots.
    choices: by row, the flags of each choice.
    recipe: the one whose choices are those of all recipes; None if each recipe
      is tuned by itself.
  """

  seeds: tuple[int, ...]
  metric: str
  settings: tuple[str, ...]
  factors: tuple[float, ...]
  choices: dict[str, tuple[tuple[str, ...], ...]]
  recipe: str | None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Rows that are compared, each on every recipe with every seed.

  Attributes:
    recipes: files, with ":VARIANT" if it is a variant.
    seeds: the seeds of the runs.
    metrics: what is compared.
    reference: the row that others are compared with.
    rows: by name, a variant of the recipe and flags.
    tuning: None if rows are run as they are.
  """

  recipes: tuple[str, ...]
  seeds: tuple[int, ...]
  metrics: tuple[str, ...]
  reference: str
  rows: dict[str, tuple[str, ...]]
  tuning: Tuning | None

  @property
  def tuned_recipes(self) -> tuple[str, ...]:
    """The recipes that rows are tuned on."""
    if not self.tuning:
      return ()
    return (self.tuning.recipe,) if self.tuning.recipe else self.recipes


def read_comparison(config: ConfigDict) -> Comparison:
  """Takes a comparison from the settings of `jamsface_jax.ablate`.

  Args:
    config: what a file such as configs/ablation.py returns.

  Raises:
    InputError: a setting is missing, or rows are not tuned alike.
  """
  for name in ("recipes", "seeds", "metrics", "rows", "reference"):
    if name not in config:
      raise InputError(f"--config: {name} is missing: see configs/ablation.py.")
  if config.reference not in config.rows:
    raise InputError(
      f"reference={config.reference!r} is not a row: use one of"
      f" {', '.join(config.rows)}."
    )
  rows = {row: tuple(config.rows[row]) for row in config.rows}
  return Comparison(
    recipes=tuple(config.recipes),
    seeds=tuple(config.seeds),
    metrics=tuple(config.metrics),
    reference=config.reference,
    rows=rows,
    tuning=_read_tuning(config.tuning, rows) if "tuning" in config else None,
  )


def _read_tuning(config: ConfigDict, rows: Mapping[str, object]) -> Tuning:
  for name in ("seeds", "metric", "settings", "factors", "choices"):
    if name not in config:
      raise InputError(
        f"--config: tuning.{name} is missing: see configs/ablation_tail.py."
      )
  for row in rows:
    choices = config.choices.get(row, ())
    if len(choices) != len(config.factors):
      raise InputError(
        f"tuning.choices: row {row!r} has {len(choices)} choices and"
        f" tuning.factors {len(config.factors)}: a comparison is fair"
        " where all rows have the same budget, give each as many."
      )
  return Tuning(
    seeds=tuple(config.seeds),
    metric=config.metric,
    settings=tuple(config.settings),
    factors=tuple(config.factors),
    choices={
      row: tuple(tuple(choice) for choice in config.choices[row])
      for row in rows
    },
    recipe=config.get("recipe"),
  )


def strengths(
  middles: Mapping[str, Mapping[str, float]], factors: Sequence[float]
) -> ConfigDict:
  """The `tuning.choices` of rows that are tuned by the same factors.

  Args:
    middles: by row, what is tuned and its middle.
    factors: what all that is tuned of a row is multiplied by, choice by choice;
      `tuning.factors`.
  """
  return ConfigDict(
    {
      row: tuple(
        tuple(f"{name}={middle * factor:g}" for name, middle in values.items())
        for factor in factors
      )
      for row, values in middles.items()
    }
  )
