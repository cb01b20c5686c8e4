"""Runs of a comparison, and the table and plot that come of them."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import scipy.stats
from matplotlib import pyplot
from ml_collections import ConfigDict

from jamsface_jax.data.whole_file import written_whole
from jamsface_jax.errors import EXIT_PREEMPTED, InputError
from jamsface_jax.metric_log import METRICS_FILE, read_metrics
from jamsface_jax.progress import Progress
from jamsface_jax.summary import SUMMARY_FILE

COMMAND_FILE = "ablation.json"  # In a work directory: what it runs.
LEVEL = 0.95
# Shown where margins are learned.
_RANKS = ("train/margin_angular_rank", "train/margin_cosine_rank")


@dataclasses.dataclass(frozen=True)
class Run:
  """One cell of the comparison.

  Attributes:
    recipe: file of it, with ":VARIANT" if it is a variant.
    row: name of the loss and its settings.
    seed: of the run.
    choice: number of the row's choice, None if it is not tuned.
    workdir: its work directory.
    settings: flags of `jamsface_jax.main`.
  """

  recipe: str
  row: str
  seed: int
  choice: int | None
  workdir: str
  settings: tuple[str, ...]

  def finished(self) -> bool:
    """Whether it has come to its end.

    Raises:
      InputError: the directory is of a run with other settings.
    """
    path = os.path.join(self.workdir, COMMAND_FILE)
    if os.path.exists(path):
      with open(path, encoding="utf-8") as file:
        theirs = json.load(file)
      if theirs != list(self.settings):
        raise InputError(
          f"{self.workdir!r} holds a run of {' '.join(theirs)} and not of"
          f" {' '.join(self.settings)}: give the row another name or choose"
          " another --output."
        )
    return os.path.exists(os.path.join(self.workdir, SUMMARY_FILE))

  def go(self, cores: Sequence[int]) -> str | None:
    """Runs it on some cores; returns what went wrong, or None.

    Raises:
      KeyboardInterrupt: it was told to stop.
    """
    os.makedirs(self.workdir, exist_ok=True)
    with written_whole(os.path.join(self.workdir, COMMAND_FILE)) as file:
      json.dump(list(self.settings), file)
    process = subprocess.Popen(
      [
        *(sys.executable, "-m", "jamsface_jax.main"),
        *(*self.settings, f"--workdir={self.workdir}"),
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    if hasattr(os, "sched_setaffinity"):  # Before it has made its threads.
      os.sched_setaffinity(process.pid, cores)
    _, errors = process.communicate()
    if process.returncode == EXIT_PREEMPTED:
      raise KeyboardInterrupt
    if process.returncode:
      return errors.strip().splitlines()[-1] if errors.strip() else "no message"
    return None

  def read(self, metrics: Sequence[str]) -> dict[str, float]:
    """Its last values of some metrics.

    Raises:
      InputError: there is no such metric.
    """
    found = read_metrics(os.path.join(self.workdir, METRICS_FILE))
    last = {name: float(values[-1]) for name, (_, values) in found.items()}
    missing = [name for name in metrics if np.isnan(last.get(name, np.nan))]
    if missing:
      known = [n for n in last if not n.startswith("goodput/")]
      raise InputError(
        f"metrics: {self.workdir!r} has no {missing[0]!r}: use some of"
        f" {', '.join(sorted(known))}."
      )
    # There is no rank among margins that are all the same.
    ranked = [name for name in _RANKS if not np.isnan(last.get(name, np.nan))]
    return {name: last[name] for name in (*metrics, *ranked)}


def check(config: ConfigDict) -> None:
  """Refuses a comparison that cannot be meant.

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
  if "tuning" not in config:
    return
  for name in ("seeds", "metric", "settings", "factors", "choices"):
    if name not in config.tuning:
      raise InputError(
        f"--config: tuning.{name} is missing: see configs/ablation_tail.py."
      )
  for row in config.rows:
    choices = config.tuning.choices.get(row, ())
    if len(choices) != len(config.tuning.factors):
      raise InputError(
        f"tuning.choices: row {row!r} has {len(choices)} choices and"
        f" tuning.factors {len(config.tuning.factors)}: a comparison is fair"
        " where all rows have the same budget, give each as many."
      )


def plan(
  config: ConfigDict, output: str, chosen: dict[tuple[str, str], int]
) -> list[Run]:
  """All runs of a comparison, seeds last, so that tables fill evenly.

  Args:
    config: see `check`.
    output: work directories go below it.
    chosen: number of the choice by recipe and row, where rows were tuned.
  """
  return [
    _run(config, output, recipe, row, seed, chosen.get((recipe, row)), ())
    for seed in config.seeds
    for recipe in config.recipes
    for row in config.rows
  ]


def plan_tuning(config: ConfigDict, output: str) -> list[Run]:
  """All runs that rows are tuned by; none if they are not."""
  if "tuning" not in config:
    return []
  return [
    _run(config, output, recipe, row, seed, choice, config.tuning.settings)
    for seed in config.tuning.seeds
    for recipe in _tuned_recipes(config)
    for choice in range(len(config.tuning.factors))
    for row in config.rows
  ]


def strengths(
  middles: Mapping[str, Mapping[str, float]], factors: Sequence[float]
) -> ConfigDict:
  """The `tuning.choices` of rows that are tuned by the same factors.

  Args:
    middles: by row, what is tuned and its middle.
    factors: on all that is tuned of a row; `tuning.factors`.
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


def _tuned_recipes(config) -> tuple[str, ...]:
  """The one whose choices are those of all recipes; or each by itself."""
  recipe = config.tuning.get("recipe")
  return (recipe,) if recipe else tuple(config.recipes)


def _run(config, output, recipe, row, seed, choice, further) -> Run:
  variant, *settings = config.rows[row]
  file, _, words = recipe.partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  place = [output, f"{name}-{words}" if words else name, row]
  if choice is not None:
    settings += config.tuning.choices[row][choice]
    place.append(f"choice{choice}")
  settings += [*further, f"seed={seed}"]
  return Run(
    *(recipe, row, seed, choice),
    os.path.join(*place, ("tuning" if further else "") + f"seed{seed}"),
    (
      f"--config={recipe}{',' if words else ':'}{variant}",
      *(f"--config.{setting}" for setting in settings),
    ),
  )


def tune(
  config: ConfigDict, results: dict[Run, dict[str, float]]
) -> tuple[dict[tuple[str, str], int], list[dict[str, object]]]:
  """Chooses, for each recipe and row, the best choice by its mean over seeds.

  Args:
    config: of a comparison with `tuning`, whose metric is better when larger.
    results: of the runs of `plan_tuning`.

  Returns:
    The number of the choice by recipe and row; and for each that was tuned JSON
    values: `values` of the metric by choice and seed, `chosen`, and `area`: the
    mean of the metric over the logarithm of the factors, which says how much
    depends on the tuning.
  """
  metric = config.tuning.metric
  chosen, curves = {}, []
  for recipe in _tuned_recipes(config):
    for row in config.rows:
      values = [
        {
          run.seed: found[metric]
          for run, found in results.items()
          if (run.recipe, run.row, run.choice) == (recipe, row, choice)
        }
        for choice in range(len(config.tuning.factors))
      ]
      if not all(values):
        continue
      means = [float(np.mean([*of_choice.values()])) for of_choice in values]
      best = int(np.argmax(means))
      others = config.recipes if config.tuning.get("recipe") else (recipe,)
      chosen |= {(other, row): best for other in others}
      at = np.log(config.tuning.factors)
      area = np.trapezoid(means, at) / (at[-1] - at[0]) if len(at) > 1 else None
      curves.append(
        {"recipe": recipe, "row": row, "values": values, "means": means}
        | {"chosen": best, "area": area}
      )
  return chosen, curves


def run_all(runs: Sequence[Run], jobs: int, *, total: int) -> dict[Run, str]:
  """Runs so many at a time; returns those that failed, with why."""
  cores = list(range(os.cpu_count() or 1))
  if hasattr(os, "sched_getaffinity"):
    cores = sorted(os.sched_getaffinity(0))
  free = [cores[k::jobs] or cores for k in range(jobs)]
  failed = {}
  progress = Progress(total, total - len(runs), quiet=False)
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:

    def go(run):
      share = free.pop()
      try:
        return run.go(share)
      finally:
        free.append(share)

    waiting = {pool.submit(go, run): run for run in runs}
    try:
      for future in concurrent.futures.as_completed(waiting):
        why = future.result()
        run = waiting[future]
        if why:
          failed[run] = why
          progress.note(f"{run.workdir}: {why}")
        progress.step()
    except KeyboardInterrupt:
      pool.shutdown(cancel_futures=True)
      raise
  progress.close()
  return failed


def write(
  output: str,
  config: ConfigDict,
  results: dict[Run, dict[str, float]],
  curves: Sequence[dict[str, object]],
) -> str:
  """Writes table.md, results.json and pictures; returns the table.

  Args:
    output: where to.
    config: of the comparison.
    results: of its runs.
    curves: of its tuning, see `tune`; empty if there was none.
  """
  tables, cells = [], []
  if curves:
    tables += [_tuning_table(config, curves, r) for r in _tuned_recipes(config)]
    _plot_tuning(os.path.join(output, "tuning.png"), config, curves)
  for recipe in config.recipes:
    columns = [
      *config.metrics,
      *(n for n in _RANKS if any(n in found for found in results.values())),
    ]
    lines = [
      f"| {recipe} | seeds | {' | '.join(columns)} |",
      "|---" * (2 + len(columns)) + "|",
    ]
    found = {row: _by_seed(results, recipe, row) for row in config.rows}
    of_column = {}
    for metric in columns:
      column = {
        row: compare(
          found[row],
          # It is not compared with itself.
          {} if row == config.reference else found[config.reference],
          metric,
        )
        for row in config.rows
      }
      holm = corrected([cell["p"] for cell in column.values()])
      for (row, cell), p in zip(column.items(), holm, strict=True):
        cell["p_holm"] = p
        cells.append({"recipe": recipe, "row": row, "metric": metric} | cell)
      of_column[metric] = column
    for row in config.rows:
      shown = [_text(of_column[metric][row]) for metric in columns]
      lines.append(f"| {row} | {len(found[row])} | {' | '.join(shown)} |")
    tables.append("\n".join(lines))
  text = (
    "\n\n".join(tables)
    + "\n\nMeans over seeds, with 95 % intervals of the mean by bootstrap;"
    f" in brackets the mean difference from {config.reference}"
    " with the same seeds, its 95 % interval by Student's t, and the p of the"
    " paired t-test, by Holm's method for as many rows as there are.\n"
  )
  with written_whole(os.path.join(output, "table.md")) as file:
    file.write(text)
  with written_whole(os.path.join(output, "results.json")) as file:
    json.dump(
      {"format": 1, "cells": cells, "tuning": [*curves]}, file, indent=1
    )
  _plot(os.path.join(output, "ablation.png"), config, cells)
  return text


def _tuning_table(config, curves, recipe) -> str:
  factors = config.tuning.factors
  lines = [
    f"| {recipe}, {config.tuning.metric}, seeds"
    f" {', '.join(map(str, config.tuning.seeds))} |"
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
    words = ", ".join(config.tuning.choices[row][k])
    lines.append(f"| {row} | {' | '.join(cells)} | {area} | {words} |")
  return "\n".join(lines)


def _plot_tuning(path: str, config: ConfigDict, curves) -> None:
  """The metric against the strength of each row, a panel a recipe."""
  matplotlib.use("Agg")
  recipes = _tuned_recipes(config)
  figure, axes = pyplot.subplots(
    *(1, len(recipes)),
    figsize=(6.5 * len(recipes), 4.5),
    squeeze=False,
    layout="constrained",
  )
  for axis, recipe in zip(axes[0], recipes, strict=True):
    for curve in curves:
      if curve["recipe"] == recipe:
        number = list(config.rows).index(curve["row"])
        line = ("-", "--", ":")[number // 10 % 3]
        axis.plot(
          *(config.tuning.factors, curve["means"], line),
          color=f"C{number % 10}",
          marker="o",
          markersize=4,
          label=curve["row"],
        )
    axis.set_xscale("log")
    axis.set_xticks(
      config.tuning.factors, [f"{f:g}" for f in config.tuning.factors]
    )
    axis.minorticks_off()
    axis.set_xlabel("factor on what is tuned")
    axis.set_ylabel(config.tuning.metric)
    axis.set_title(recipe, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
  figure.savefig(path, dpi=150)
  pyplot.close(figure)


def _by_seed(results, recipe, row) -> dict[int, dict[str, float]]:
  return {
    run.seed: found
    for run, found in results.items()
    if (run.recipe, run.row) == (recipe, row)
  }


def compare(
  found: dict[int, dict[str, float]],
  reference: dict[int, dict[str, float]],
  metric: str,
) -> dict[str, object]:
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


def _text(cell) -> str:
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


def _plot(path: str, config: ConfigDict, cells: list[dict]) -> None:
  """Every seed as a dot, means and their intervals, a panel a metric."""
  matplotlib.use("Agg")
  rows, metrics = list(config.rows), list(config.metrics)
  figure, axes = pyplot.subplots(
    len(config.recipes),
    len(metrics),
    figsize=(
      1.5 + 3.2 * len(metrics),
      (0.8 + 0.35 * len(rows)) * len(config.recipes),
    ),
    squeeze=False,
    sharey=True,
    layout="constrained",
  )
  for cell in cells:
    if cell["metric"] not in metrics or cell["mean"] is None:
      continue
    i = config.recipes.index(cell["recipe"])
    axis, y = axes[i][metrics.index(cell["metric"])], rows.index(cell["row"])
    values = list(cell["values"].values())
    axis.plot(values, [y] * len(values), "o", color="0.7", markersize=4)
    axis.plot(cell["mean"], y, "D", color="C0", markersize=5)
    if cell["interval"]:
      axis.plot(cell["interval"], [y, y], color="C0", linewidth=2)
    if cell["row"] == config.reference:
      axis.axvline(cell["mean"], color="C1", linewidth=1, linestyle="--")
  for i, recipe in enumerate(config.recipes):
    for axis, metric in zip(axes[i], metrics, strict=True):
      axis.set_title(metric.replace("/", "\n"), fontsize=9)  # Set, metric.
      axis.set_yticks(range(len(rows)), rows)
      axis.tick_params(labelsize=8)
      axis.grid(axis="x", alpha=0.3)
    axes[i][0].set_ylabel(recipe, fontsize=8)
    axes[i][0].set_ylim(len(rows) - 0.5, -0.5)
  figure.savefig(path, dpi=150)
  pyplot.close(figure)
