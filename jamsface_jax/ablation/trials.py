"""The runs of a comparison: which there are, and how they are run."""

import concurrent.futures
import dataclasses
import os
import signal
from collections.abc import Sequence

import numpy as np

from jamsface_jax.ablation.children import Children
from jamsface_jax.ablation.comparison import Comparison, Words
from jamsface_jax.ablation.directory import ComparisonDirectory
from jamsface_jax.errors import (
  EXIT_INTERRUPTED,
  EXIT_PREEMPTED,
  InputError,
  one_line,
)
from jamsface_jax.run.metrics_file import read_metrics
from jamsface_jax.run.progress import Progress
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.run_directory import RunDirectory

# Shown where margins are learned.
MARGIN_RANKS = ("train/margin_angular_rank", "train/margin_cosine_rank")


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a comparison.

  Attributes:
    recipe: its file, with ":VARIANT" if it is a variant.
    row: the name of the loss and its settings.
    seed: the seed of the run.
    choice: number of the row's choice, None if it is not tuned.
    directory: where the run lies.
    settings: flags of `jamsface_jax.main`.
  """

  recipe: str
  row: str
  seed: int
  choice: int | None
  directory: RunDirectory
  settings: tuple[str, ...]

  def finished(self) -> bool:
    """Whether it has come to its end.

    Raises:
      InputError: the directory is of a run with other settings.
    """
    noted = self.directory.ablation
    if noted.exists():
      try:
        theirs = plain_json.typed(noted.read_json(), list[str])
      except (OSError, ValueError) as error:
        raise InputError(
          f"{noted.path!r} is damaged ({one_line(error)}): delete"
          f" {self.directory.path!r}, and its run is done again."
        ) from None
      if theirs != list(self.settings):
        raise InputError(
          f"{self.directory.path!r} holds a run of {' '.join(theirs)} and not"
          f" of {' '.join(self.settings)}: give the row another name or choose"
          " another --output."
        )
    return self.directory.summary.exists()

  def run(self, children: Children, cores: Sequence[int]) -> str | None:
    """Runs it on some cores; returns what went wrong, or None.

    Raises:
      KeyboardInterrupt: it was told to stop.
    """
    self.directory.create()
    self.directory.ablation.write_json(list(self.settings))
    flags = [*self.settings, f"--workdir={self.directory.path}"]
    code, errors = children.run(flags, cores)
    if code in (EXIT_PREEMPTED, EXIT_INTERRUPTED, -signal.SIGTERM):
      raise KeyboardInterrupt
    if code:
      return errors.strip().splitlines()[-1] if errors.strip() else "no message"
    return None

  def read(self, metrics: Sequence[str]) -> dict[str, float]:
    """Its last values of some metrics, and of `MARGIN_RANKS` if it has them.

    Raises:
      InputError: there is no such metric.
    """
    found = read_metrics(self.directory.metrics)
    last = {name: float(values[-1]) for name, (_, values) in found.items()}
    missing = [name for name in metrics if np.isnan(last.get(name, np.nan))]
    if missing:
      known = [n for n in last if not n.startswith("goodput/")]
      raise InputError(
        f"metrics: {self.directory.path!r} has no {missing[0]!r}: use some of"
        f" {', '.join(sorted(known))}."
      )
    # There is no rank among margins that are all the same.
    ranked = [n for n in MARGIN_RANKS if not np.isnan(last.get(n, np.nan))]
    return {name: last[name] for name in (*metrics, *ranked)}


def plan_trials(
  comparison: Comparison,
  output: ComparisonDirectory,
  chosen: dict[tuple[str, str], int],
) -> list[Trial]:
  """All runs that are compared, seeds last, so that tables fill evenly.

  Args:
    comparison: what is compared.
    output: work directories go below it.
    chosen: number of the choice by recipe and row, where rows were tuned.
  """
  return [
    _trial(
      comparison, output, recipe, row, seed, choice=chosen.get((recipe, row))
    )
    for seed in comparison.seeds
    for recipe in comparison.recipes
    for row in comparison.rows
  ]


def plan_tuning(
  comparison: Comparison, output: ComparisonDirectory
) -> list[Trial]:
  """All runs that rows are tuned by; none if they are not."""
  tuning = comparison.tuning
  if not tuning:
    return []
  return [
    _trial(
      comparison,
      output,
      recipe,
      row,
      seed,
      choice=choice,
      further=tuning.settings,
    )
    for seed in tuning.seeds
    for recipe in comparison.tuned_recipes
    for choice in range(len(tuning.factors))
    for row in comparison.rows
  ]


def run_missing(
  trials: Sequence[Trial],
  metrics: Sequence[str],
  jobs: int,
  children: Children,
) -> tuple[dict[Trial, dict[str, float]], dict[Trial, str]]:
  """Runs what is not finished yet.

  Args:
    trials: all that there are.
    metrics: what to read of them.
    jobs: runs at a time; each gets its share of the cores.
    children: starts their processes.

  Returns:
    The metrics of what is finished, and why others failed.
  """
  missing = [trial for trial in trials if not trial.finished()]
  failed = _run_all(missing, jobs, children, total=len(trials))
  done = [trial for trial in trials if trial.finished()]
  return {trial: trial.read(metrics) for trial in done}, failed


def _trial(
  comparison: Comparison,
  output: ComparisonDirectory,
  recipe: str,
  row: str,
  seed: int,
  *,
  choice: int | None,
  further: Words = (),
) -> Trial:
  variant, *settings = comparison.rows[row]
  file, _, words = recipe.partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  place = [f"{name}-{words}" if words else name, row]
  if choice is not None and comparison.tuning:
    settings += comparison.tuning.choices[row][choice]
    place.append(f"choice{choice}")
  settings += [*further, f"seed={seed}"]
  # With the same settings, a run that chooses is one that is compared too.
  place.append(f"tuningseed{seed}" if further else f"seed{seed}")
  return Trial(
    recipe=recipe,
    row=row,
    seed=seed,
    choice=choice,
    directory=output.trial(*place),
    settings=(
      f"--config={recipe}{',' if words else ':'}{variant}",
      *(f"--config.{setting}" for setting in settings),
    ),
  )


def _run_all(
  trials: Sequence[Trial], jobs: int, children: Children, *, total: int
) -> dict[Trial, str]:
  """Runs so many at a time; returns those that failed, with why."""
  cores = list(range(os.cpu_count() or 1))
  if hasattr(os, "sched_getaffinity"):
    cores = sorted(os.sched_getaffinity(0))
  free = [cores[k::jobs] or cores for k in range(jobs)]
  failed = {}
  progress = Progress(total, total - len(trials), unit=" runs", quiet=False)
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:

    def run_on_free_cores(trial: Trial) -> str | None:
      share = free.pop()
      try:
        return trial.run(children, share)
      finally:
        free.append(share)

    waiting = {pool.submit(run_on_free_cores, trial): trial for trial in trials}
    try:
      for future in concurrent.futures.as_completed(waiting):
        why = future.result()
        trial = waiting[future]
        if why:
          failed[trial] = why
          progress.note(f"{trial.directory.path}: {why}")
        progress.advance()
    except KeyboardInterrupt:
      children.stop()
      pool.shutdown(cancel_futures=True)
      raise
  progress.close()
  return failed
