"""Runs of a comparison."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from jamsface_jax.ablation.comparison import Comparison, Words
from jamsface_jax.errors import EXIT_PREEMPTED, InputError
from jamsface_jax.run.metrics_file import METRICS_FILE, read_metrics
from jamsface_jax.run.progress import Progress
from jamsface_jax.storage.whole_file import written_whole
from jamsface_jax.training.summary import SUMMARY_FILE

COMMAND_FILE = "ablation.json"  # In a work directory: what it runs.
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


def plan(
  comparison: Comparison, output: str, chosen: dict[tuple[str, str], int]
) -> list[Run]:
  """All runs of a comparison, seeds last, so that tables fill evenly.

  Args:
    comparison: what is compared.
    output: work directories go below it.
    chosen: number of the choice by recipe and row, where rows were tuned.
  """
  return [
    _run(comparison, output, recipe, row, seed, chosen.get((recipe, row)), ())
    for seed in comparison.seeds
    for recipe in comparison.recipes
    for row in comparison.rows
  ]


def plan_tuning(comparison: Comparison, output: str) -> list[Run]:
  """All runs that rows are tuned by; none if they are not."""
  tuning = comparison.tuning
  if tuning is None:
    return []
  return [
    _run(comparison, output, recipe, row, seed, choice, tuning.settings)
    for seed in tuning.seeds
    for recipe in comparison.tuned_recipes
    for choice in range(len(tuning.factors))
    for row in comparison.rows
  ]


def _run(
  comparison: Comparison,
  output: str,
  recipe: str,
  row: str,
  seed: int,
  choice: int | None,
  further: Words,
) -> Run:
  """One run: its settings, and a directory that says what it is."""
  variant, *settings = comparison.rows[row]
  file, _, words = recipe.partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  place = [output, f"{name}-{words}" if words else name, row]
  if comparison.tuning and choice is not None:
    settings += comparison.tuning.choices[row][choice]
    place.append(f"choice{choice}")
  settings += [*further, f"seed={seed}"]
  return Run(
    recipe=recipe,
    row=row,
    seed=seed,
    choice=choice,
    workdir=os.path.join(*place, ("tuning" if further else "") + f"seed{seed}"),
    settings=(
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
