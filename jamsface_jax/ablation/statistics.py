"""What a comparison concludes: choices, paired differences, p values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from jamsface_jax.ablation.comparison import Comparison
from jamsface_jax.ablation.runs import Run

LEVEL = 0.95


def tune(
  comparison: Comparison, results: dict[Run, dict[str, float]]
) -> tuple[dict[tuple[str, str], int], list[dict[str, Any]]]:
  """Chooses, for each recipe and row, the best choice by its mean over seeds.

  Args:
    comparison: one with `tuning`, whose metric is better when larger.
    results: last metrics of each run of `plan_tuning`, by their names.

  Returns:
    The number of the choice by recipe and row; and for each that was tuned JSON
    values: `values` of the metric by choice and seed, `chosen`, and `area`: the
    mean of the metric over the logarithm of the factors, which says how much
    depends on the tuning.
  """
  tuning = comparison.tuning
  if tuning is None:
    return {}, []
  metric = tuning.metric
  chosen, curves = {}, []
  for recipe in comparison.tuned_recipes:
    for row in comparison.rows:
      values = [
        {
          run.seed: found[metric]
          for run, found in results.items()
          if (run.recipe, run.row, run.choice) == (recipe, row, choice)
        }
        for choice in range(len(tuning.factors))
      ]
      if not all(values):
        continue
      means = [float(np.mean([*of_choice.values()])) for of_choice in values]
      best = int(np.argmax(means))
      others = comparison.recipes if tuning.recipe else (recipe,)
      chosen |= {(other, row): best for other in others}
      at = np.log(tuning.factors)
      area = np.trapezoid(means, at) / (at[-1] - at[0]) if len(at) > 1 else None
      curves.append(
        {"recipe": recipe, "row": row, "values": values, "means": means}
        | {"chosen": best, "area": area}
      )
  return chosen, curves


def _by_seed(
  results: dict[Run, dict[str, float]], recipe: str, row: str
) -> dict[int, dict[str, float]]:
  return {
    run.seed: found
    for run, found in results.items()
    if (run.recipe, run.row) == (recipe, row)
  }


def compare(
  found: dict[int, dict[str, float]],
  reference: dict[int, dict[str, float]],
  metric: str,
) -> dict[str, Any]:
  """A row's metric over seeds, and beside the reference.

  Args:
    found: metrics by seed.
    reference: those of the reference; empty for the reference itself.
    metric: which.

  Returns:
    JSON values: `values` by seed, `mean`, `interval` of the mean (percentile
    bootstrap over seeds), `difference` (mean, of seeds that both have),
    `difference_interval` (Student's t) and `p` (two-sided paired t-test); None
    where there are too few seeds.
  """
  values = {s: m[metric] for s, m in found.items() if metric in m}
  cell = {
    "values": values,
    "mean": float(np.mean(list(values.values()))) if values else None,
    "interval": None,
    "difference": None,
    "difference_interval": None,
    "p": None,
  }
  if len(values) > 1:
    low, high = scipy.stats.bootstrap(
      (np.array(list(values.values())),),
      np.mean,
      confidence_level=LEVEL,
      method="percentile",
      rng=np.random.default_rng(0),
    ).confidence_interval
    cell["interval"] = [float(low), float(high)]
  pairs = [
    (value, reference[seed][metric])
    for seed, value in values.items()
    if metric in reference.get(seed, {})
  ]
  if pairs:
    ours, theirs = map(np.array, zip(*pairs, strict=True))
    cell["difference"] = float(np.mean(ours - theirs))
    if len(pairs) > 1 and np.any(ours - theirs != (ours - theirs)[0]):
      test = scipy.stats.ttest_rel(ours, theirs)
      low, high = test.confidence_interval(LEVEL)
      cell["difference_interval"] = [float(low), float(high)]
      cell["p"] = float(test.pvalue)
  return cell


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
  """Holm's p of several tests (Scand. J. Statist. 6, 1979, 65); None stays.

  One of many rows is soon better by chance: the smallest p counts as often as
  there are tests, the next as often as are left.
  """
  order = sorted(
    (p, place) for place, p in enumerate(p_values) if p is not None
  )
  found, largest = [None] * len(p_values), 0.0
  for rank, (p, place) in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * p))
    found[place] = largest
  return found
