"""What a comparison leaves: a table, results and plots."""

import dataclasses
from collections.abc import Mapping, Sequence

from jamsface_jax.ablation.comparison import Comparison, Tuning
from jamsface_jax.ablation.directory import ComparisonDirectory
from jamsface_jax.ablation.plots import plot_comparison, plot_tuning
from jamsface_jax.ablation.statistics import (
  Cell,
  TuningCurve,
  all_metrics,
  by_seed,
  compare_all,
)
from jamsface_jax.ablation.trials import Trial


def write(
  output: ComparisonDirectory,
  comparison: Comparison,
  results: Mapping[Trial, Mapping[str, float]],
  curves: Sequence[TuningCurve],
) -> str:
  """Writes table.md, results.json and plots; returns the table.

  Args:
    output: what they go into.
    comparison: what was compared.
    results: the metrics of its runs.
    curves: how rows were tuned, see `tune`; empty if they were not.
  """
  cells = compare_all(comparison, results)
  tables = []
  if comparison.tuning and curves:
    for recipe in comparison.tuned_recipes:
      tables.append(_tuning_table(comparison.tuning, curves, recipe))
    plot_tuning(output.tuning_figure, comparison, curves)
  tables += [
    _table(comparison, results, cells, recipe) for recipe in comparison.recipes
  ]
  text = "\n\n".join(
    [
      *tables,
      "Means over seeds, with 95 % intervals of the mean by bootstrap;"
      f" in brackets the mean difference from {comparison.reference}"
      " with the same seeds, its 95 % interval by Student's t, and the p of the"
      " paired t-test, by Holm's method for as many rows as there are.\n",
    ]
  )
  output.table.write_text(text)
  output.results.write_json(_as_json(cells, curves), indent=1)
  plot_comparison(output.figure, comparison, cells)
  return text


def _as_json(
  cells: Mapping[tuple[str, str, str], Cell], curves: Sequence[TuningCurve]
) -> dict[str, object]:
  return {
    "format": 1,
    "cells": [
      {"recipe": recipe, "row": row, "metric": metric}
      | dataclasses.asdict(cell)
      for (recipe, metric, row), cell in cells.items()
    ],
    "tuning": [dataclasses.asdict(curve) for curve in curves],
  }


def _table(
  comparison: Comparison,
  results: Mapping[Trial, Mapping[str, float]],
  cells: Mapping[tuple[str, str, str], Cell],
  recipe: str,
) -> str:
  """The rows of a recipe, a column a metric."""
  metrics = all_metrics(comparison, results)
  lines = [
    f"| {recipe} | seeds | {' | '.join(metrics)} |",
    "|---" * (2 + len(metrics)) + "|",
  ]
  for row in comparison.rows:
    seeds = len(by_seed(results, recipe, row))
    shown = [_cell_text(cells[recipe, metric, row]) for metric in metrics]
    lines.append(f"| {row} | {seeds} | {' | '.join(shown)} |")
  return "\n".join(lines)


def _tuning_table(
  tuning: Tuning, curves: Sequence[TuningCurve], recipe: str
) -> str:
  """The rows that were tuned on a recipe, a column a strength."""
  lines = [
    f"| {recipe}, {tuning.metric}, seeds {', '.join(map(str, tuning.seeds))} |"
    + "".join(f" x {factor:g} |" for factor in tuning.factors)
    + " area | chosen |",
    "|---" * (3 + len(tuning.factors)) + "|",
  ]
  for curve in curves:
    if curve.recipe != recipe:
      continue
    means = [f"{mean:.4f}" for mean in curve.means]
    means[curve.chosen] = f"**{means[curve.chosen]}**"
    area = "" if curve.area is None else f"{curve.area:.4f}"
    words = ", ".join(tuning.choices[curve.row][curve.chosen])
    lines.append(f"| {curve.row} | {' | '.join(means)} | {area} | {words} |")
  return "\n".join(lines)


def _cell_text(cell: Cell) -> str:
  if cell.mean is None:
    return "–"
  text = f"{cell.mean:.4f}"
  if cell.interval:
    text += " [{:.4f}, {:.4f}]".format(*cell.interval)
  if cell.difference_interval:
    low, high = cell.difference_interval
    text += (
      f" ({cell.difference:+.4f} [{low:+.4f}, {high:+.4f}],"
      f" p {cell.p_holm:.2g})"
    )
  return text
