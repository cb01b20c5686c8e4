"""Tables and plots of a comparison."""

import json
import os
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot

from jamsface_jax.ablation.comparison import Comparison, Tuning
from jamsface_jax.ablation.runs import _RANKS, Run
from jamsface_jax.ablation.statistics import _by_seed, compare, corrected
from jamsface_jax.storage.whole_file import written_whole


def write(
  output: str,
  comparison: Comparison,
  results: dict[Run, dict[str, float]],
  curves: Sequence[dict[str, Any]],
) -> str:
  """Writes table.md, results.json and pictures; returns the table.

  Args:
    output: where to.
    comparison: what was compared.
    results: last metrics of each run, by their names.
    curves: what `tune` returned; empty if rows were not tuned.
  """
  tables, cells = [], []
  if curves and comparison.tuning:
    recipes = comparison.tuned_recipes
    tables += [_tuning_table(comparison.tuning, curves, r) for r in recipes]
    path = os.path.join(output, "tuning.png")
    _plot_tuning(path, comparison, comparison.tuning, curves)
  for recipe in comparison.recipes:
    columns = [
      *comparison.metrics,
      *(n for n in _RANKS if any(n in found for found in results.values())),
    ]
    lines = [
      f"| {recipe} | seeds | {' | '.join(columns)} |",
      "|---" * (2 + len(columns)) + "|",
    ]
    found = {row: _by_seed(results, recipe, row) for row in comparison.rows}
    of_column = {}
    for metric in columns:
      column = {
        row: compare(
          found[row],
          # It is not compared with itself.
          {} if row == comparison.reference else found[comparison.reference],
          metric,
        )
        for row in comparison.rows
      }
      holm = corrected([cell["p"] for cell in column.values()])
      for (row, cell), p in zip(column.items(), holm, strict=True):
        cell["p_holm"] = p
        cells.append({"recipe": recipe, "row": row, "metric": metric} | cell)
      of_column[metric] = column
    for row in comparison.rows:
      shown = [_text(of_column[metric][row]) for metric in columns]
      lines.append(f"| {row} | {len(found[row])} | {' | '.join(shown)} |")
    tables.append("\n".join(lines))
  text = (
    "\n\n".join(tables)
    + "\n\nMeans over seeds, with 95 % intervals of the mean by bootstrap;"
    f" in brackets the mean difference from {comparison.reference}"
    " with the same seeds, its 95 % interval by Student's t, and the p of the"
    " paired t-test, by Holm's method for as many rows as there are.\n"
  )
  with written_whole(os.path.join(output, "table.md")) as file:
    file.write(text)
  with written_whole(os.path.join(output, "results.json")) as file:
    json.dump(
      {"format": 1, "cells": cells, "tuning": [*curves]}, file, indent=1
    )
  _plot(os.path.join(output, "ablation.png"), comparison, cells)
  return text


def _tuning_table(
  tuning: Tuning, curves: Sequence[dict[str, Any]], recipe: str
) -> str:
  factors = tuning.factors
  lines = [
    f"| {recipe}, {tuning.metric}, seeds"
    f" {', '.join(map(str, tuning.seeds))} |"
    + "".join(f" x {factor:g} |" for factor in factors)
    + " area | chosen |",
    "|---" * (3 + len(factors)) + "|",
  ]
  for curve in curves:
    if curve["recipe"] != recipe:
      continue
    row, k = curve["row"], curve["chosen"]
    cells = [f"{mean:.4f}" for mean in curve["means"]]
    cells[k] = f"**{cells[k]}**"
    area = "" if curve["area"] is None else f"{curve['area']:.4f}"
    words = ", ".join(tuning.choices[row][k])
    lines.append(f"| {row} | {' | '.join(cells)} | {area} | {words} |")
  return "\n".join(lines)


def _plot_tuning(
  path: str,
  comparison: Comparison,
  tuning: Tuning,
  curves: Sequence[dict[str, Any]],
) -> None:
  """The metric against the strength of each row, a panel a recipe."""
  matplotlib.use("Agg")
  recipes = comparison.tuned_recipes
  figure, axes = pyplot.subplots(
    1,
    len(recipes),
    figsize=(6.5 * len(recipes), 4.5),
    squeeze=False,
    layout="constrained",
  )
  for axis, recipe in zip(axes[0], recipes, strict=True):
    for curve in curves:
      if curve["recipe"] == recipe:
        number = list(comparison.rows).index(curve["row"])
        line = ("-", "--", ":")[number // 10 % 3]
        axis.plot(
          tuning.factors,
          curve["means"],
          line,
          color=f"C{number % 10}",
          marker="o",
          markersize=4,
          label=curve["row"],
        )
    axis.set_xscale("log")
    axis.set_xticks(tuning.factors, [f"{f:g}" for f in tuning.factors])
    axis.minorticks_off()
    axis.set_xlabel("factor on what is tuned")
    axis.set_ylabel(tuning.metric)
    axis.set_title(recipe, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
  figure.savefig(path, dpi=150)
  pyplot.close(figure)


def _text(cell: dict[str, Any]) -> str:
  if cell["mean"] is None:
    return "–"
  text = f"{cell['mean']:.4f}"
  if cell["interval"]:
    text += " [{:.4f}, {:.4f}]".format(*cell["interval"])
  if cell["difference_interval"]:
    low, high = cell["difference_interval"]
    text += (
      f" ({cell['difference']:+.4f} [{low:+.4f}, {high:+.4f}],"
      f" p {cell['p_holm']:.2g})"
    )
  return text


def _plot(
  path: str, comparison: Comparison, cells: list[dict[str, Any]]
) -> None:
  """Every seed as a dot, means and their intervals, a panel a metric."""
  matplotlib.use("Agg")
  rows, metrics = list(comparison.rows), list(comparison.metrics)
  figure, axes = pyplot.subplots(
    len(comparison.recipes),
    len(metrics),
    figsize=(
      1.5 + 3.2 * len(metrics),
      (0.8 + 0.35 * len(rows)) * len(comparison.recipes),
    ),
    squeeze=False,
    sharey=True,
    layout="constrained",
  )
  for cell in cells:
    if cell["metric"] not in metrics or cell["mean"] is None:
      continue
    i = comparison.recipes.index(cell["recipe"])
    axis, y = axes[i][metrics.index(cell["metric"])], rows.index(cell["row"])
    values = list(cell["values"].values())
    axis.plot(values, [y] * len(values), "o", color="0.7", markersize=4)
    axis.plot(cell["mean"], y, "D", color="C0", markersize=5)
    if cell["interval"]:
      axis.plot(cell["interval"], [y, y], color="C0", linewidth=2)
    if cell["row"] == comparison.reference:
      axis.axvline(cell["mean"], color="C1", linewidth=1, linestyle="--")
  for i, recipe in enumerate(comparison.recipes):
    for axis, metric in zip(axes[i], metrics, strict=True):
      axis.set_title(metric.replace("/", "\n"), fontsize=9)  # Set, metric.
      axis.set_yticks(range(len(rows)), rows)
      axis.tick_params(labelsize=8)
      axis.grid(axis="x", alpha=0.3)
    axes[i][0].set_ylabel(recipe, fontsize=8)
    axes[i][0].set_ylim(len(rows) - 0.5, -0.5)
  figure.savefig(path, dpi=150)
  pyplot.close(figure)
