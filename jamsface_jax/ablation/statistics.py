"""What a comparison concludes: choices, paired differences, p values."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from jamsface_jax.ablation.comparison import Comparison
from jamsface_jax.ablation.trials import MARGIN_RANKS, Trial

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class TuningCurve:
  """A row's metric against the strength of what is tuned.

  Attributes:
    recipe: the recipe that it is tuned on.
    row: its name.
    values: the metric by seed, for each choice.
    means: their means over seeds.
    chosen: number of the best choice.
    area: the mean of the metric over the logarithm of the factors, which says
      how much depends on the tuning; None for one choice.
  """

  recipe: str
  row: str
  values: list[dict[int, float]]
  means: list[float]
  chosen: int
  area: float | None


@dataclasses.dataclass(frozen=True)
class Cell:
  """A row's metric over seeds, and beside the reference.

  None is what cannot be known: there are too few seeds, or the row is the
  reference itself.

  Attributes:
    values: the metric by seed.
    mean: over seeds.
    interval: interval of the mean, a percentile bootstrap over seeds.
    difference: mean difference from the reference, of seeds that both have.
    difference_interval: interval of the difference, by Student's t.
    p: p value of the two-sided paired t-test.
    p_holm: the same, corrected for as many rows as there are.
  """

  values: dict[int, float]
  mean: float | None = None
  interval: tuple[float, float] | None = None
  difference: float | None = None
  difference_interval: tuple[float, float] | None = None
  p: float | None = None
  p_holm: float | None = None


def tune(
  comparison: Comparison, results: Mapping[Trial, Mapping[str, float]]
) -> tuple[dict[tuple[str, str], int], list[TuningCurve]]:
  """Chooses, for each recipe and row, the best choice by its mean over seeds.

  Args:
    comparison: its rows are tuned.
    results: metrics of the runs of `plan_tuning`.

  Returns:
    The number of the choice by recipe and row, and how it was found, for each
    that was tuned.
  """
  tuning = comparison.tuning
  if not tuning:
    return {}, []
  chosen, curves = {}, []
  for recipe in comparison.tuned_recipes:
    for row in comparison.rows:
      values = [
        {
          trial.seed: found[tuning.metric]
          for trial, found in results.items()
          if (trial.recipe, trial.row, trial.choice) == (recipe, row, choice)
        }
        for choice in range(len(tuning.factors))
      ]
      if not all(values):
        continue
      means = [float(np.mean([*of_choice.values()])) for of_choice in values]
      best = int(np.argmax(means))
      others = comparison.recipes if tuning.recipe else (recipe,)
      chosen |= {(other, row): best for other in others}
      area = _mean_over_logarithm(tuning.factors, means)
      curves.append(TuningCurve(recipe, row, values, means, best, area))
  return chosen, curves


def _mean_over_logarithm(
  places: Sequence[float], values: Sequence[float]
) -> float | None:
  if len(places) < 2:
    return None
  at = np.log(places)
  return float(np.trapezoid(values, at) / (at[-1] - at[0]))


def compare_all(
  comparison: Comparison, results: Mapping[Trial, Mapping[str, float]]
) -> dict[tuple[str, str, str], Cell]:
  """Every metric of every row on every recipe, in this order of the key.

  Args:
    comparison: what is compared.
    results: metrics of the runs of `plan_trials`.

  Returns:
    Cells by recipe, metric and row.
  """
  cells = {}
  for recipe in comparison.recipes:
    found = {row: by_seed(results, recipe, row) for row in comparison.rows}
    for metric in all_metrics(comparison, results):
      column = {
        row: compare(
          found[row],
          # It is not compared with itself.
          {} if row == comparison.reference else found[comparison.reference],
          metric,
        )
        for row in comparison.rows
      }
      holm = corrected([cell.p for cell in column.values()])
      for (row, cell), p in zip(column.items(), holm, strict=True):
        cells[recipe, metric, row] = dataclasses.replace(cell, p_holm=p)
  return cells


def all_metrics(
  comparison: Comparison, results: Mapping[Trial, Mapping[str, float]]
) -> list[str]:
  """Names of what is compared, and of margins' ranks where there are some."""
  return [
    *comparison.metrics,
    *(n for n in MARGIN_RANKS if any(n in found for found in results.values())),
  ]


def by_seed(
  results: Mapping[Trial, Mapping[str, float]], recipe: str, row: str
) -> dict[int, Mapping[str, float]]:
  """The metrics of a row on a recipe, by seed."""
  return {
    trial.seed: found
    for trial, found in results.items()
    if (trial.recipe, trial.row) == (recipe, row)
  }


def compare(
  found: Mapping[int, Mapping[str, float]],
  reference: Mapping[int, Mapping[str, float]],
  metric: str,
) -> Cell:
  """Compares a row with the reference, seed by seed.

  Args:
    found: the row's metrics by seed.
    reference: those of the reference; empty for the reference itself.
    metric: the name of the one to compare.
  """
  values = {s: m[metric] for s, m in found.items() if metric in m}
  if not values:
    return Cell(values)
  every = np.array(list(values.values()))
  cell = Cell(values, mean=float(np.mean(every)), interval=_interval(every))
  pairs = [
    (value, reference[seed][metric])
    for seed, value in values.items()
    if metric in reference.get(seed, {})
  ]
  if not pairs:
    return cell
  ours, theirs = np.array(pairs).T
  difference = ours - theirs
  cell = dataclasses.replace(cell, difference=float(np.mean(difference)))
  if len(pairs) < 2 or np.all(difference == difference[0]):
    return cell
  test = scipy.stats.ttest_rel(ours, theirs)
  low, high = test.confidence_interval(LEVEL)
  return dataclasses.replace(
    cell, difference_interval=(float(low), float(high)), p=float(test.pvalue)
  )


def _interval(values: np.ndarray) -> tuple[float, float] | None:
  """The interval of the mean; None for one value."""
  if len(values) < 2:
    return None
  low, high = scipy.stats.bootstrap(
    (values,),
    np.mean,
    confidence_level=LEVEL,
    method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return float(low), float(high)


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
  """Holm's p of several tests (Scand. J. Statist. 6, 1979, 65); None stays.

  One of many rows is soon better by chance: the smallest p counts as often as
  there are tests, the next as often as are left.
  """
  order = sorted(
    (p, place) for place, p in enumerate(p_values) if p is not None
  )
  found: list[float | None] = [None] * len(p_values)
  largest = 0.0
  for rank, (p, place) in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * p))
    found[place] = largest
  return found
