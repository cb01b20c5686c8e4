"""Runs of a comparison, and the table and plot that come of them."""

import concurrent.futures
import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from jamsface_jax.errors import EXIT_PREEMPTED, InputError
from jamsface_jax.run.metrics_file import read_metrics
from jamsface_jax.run.progress import Progress
from jamsface_jax.storage.run_directory import RunDirectory

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

  @property
  def directory(self) -> RunDirectory:
    """What it writes."""
    return RunDirectory(self.workdir)

  def finished(self) -> bool:
    """Whether it has come to its end.

    Raises:
      InputError: the directory is of a run with other settings.
    """
    if self.directory.ablation.exists():
      theirs = self.directory.ablation.read_json()
      if theirs != list(self.settings):
        raise InputError(
          f"{self.workdir!r} holds a run of {' '.join(theirs)} and not of"
          f" {' '.join(self.settings)}: give the row another name or choose"
          " another --output."
        )
    return self.directory.summary.exists()

  def go(self, cores: Sequence[int]) -> str | None:
    """Runs it on some cores; returns what went wrong, or None.

    Raises:
      KeyboardInterrupt: it was told to stop.
    """
    self.directory.create()
    self.directory.ablation.write_json(list(self.settings))
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
    found = read_metrics(self.directory.metrics)
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
