"""The figures of a comparison."""

from collections.abc import Mapping, Sequence

import numpy as np

from jamsface_jax.ablation.comparison import Comparison
from jamsface_jax.ablation.statistics import Cell, TuningCurve
from jamsface_jax.reports import png
from jamsface_jax.reports.figure import (
  Axis,
  Cloud,
  Figure,
  Line,
  distinct_dash,
)
from jamsface_jax.storage.run_directory import RunFile


def plot_tuning(
  file: RunFile, comparison: Comparison, curves: Sequence[TuningCurve]
) -> None:
  """Draws the metric against the strength of each row, a panel a recipe.

  Args:
    file: the PNG file to write.
    comparison: its rows are tuned.
    curves: see `statistics.tune`.
  """
  tuning = comparison.tuning
  if not tuning:
    return
  numbers = {row: number for number, row in enumerate(comparison.rows)}
  panels = [
    Figure(
      recipe,
      Axis("factor on what is tuned", log=True),
      Axis(tuning.metric),
      [
        Line(
          curve.row,
          np.array(tuning.factors),
          np.array(curve.means),
          numbers[curve.row],
          distinct_dash(numbers[curve.row]),
        )
        for curve in curves
        if curve.recipe == recipe
      ],
    )
    for recipe in comparison.tuned_recipes
  ]
  png.draw(file, panels, columns=len(panels), size=(6.5, 4.5))


def plot_comparison(
  file: RunFile,
  comparison: Comparison,
  cells: Mapping[tuple[str, str, str], Cell],
) -> None:
  """Draws every seed as a dot, means and their intervals, a panel a metric.

  The line is the mean of the reference.

  Args:
    file: the PNG file to write.
    comparison: what is compared.
    cells: see `statistics.compare_all`.
  """
  rows = tuple(comparison.rows)
  panels = []
  for recipe in comparison.recipes:
    for place, metric in enumerate(comparison.metrics):
      column = [cells[recipe, metric, row] for row in rows]
      # What stands at the left of all panels is said once.
      names, label = (rows, recipe) if place == 0 else (("",) * len(rows), "")
      reference = cells[recipe, metric, comparison.reference].mean
      panels.append(
        Figure(
          metric.replace("/", "\n"),  # Set, metric.
          Axis(""),
          Axis(label, names=names),
          clouds=_clouds(column),
          marks={} if reference is None else {"": reference},
        )
      )
  columns = len(comparison.metrics)
  png.draw(
    file,
    panels,
    columns=columns,
    size=(3.2 + 1.5 / columns, 0.8 + 0.35 * len(rows)),
  )


def _clouds(column: Sequence[Cell]) -> list[Cloud]:
  """Seeds, and over them means with their intervals; a row each."""
  seeds = [
    (value, row)
    for row, cell in enumerate(column)
    for value in cell.values.values()
  ]
  means = [
    (cell.mean, row, *(cell.interval or (cell.mean, cell.mean)))
    for row, cell in enumerate(column)
    if cell.mean is not None
  ]
  if not means:
    return []
  seed_x, seed_y = np.array(seeds, np.float64).T
  x, y, low, high = np.array(means, np.float64).T
  ends = np.stack([low, high], axis=1)
  return [Cloud("", seed_x, seed_y, 5), Cloud("", x, y, 0, ends)]
