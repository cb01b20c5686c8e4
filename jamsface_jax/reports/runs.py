"""What a report reads of a run."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from jamsface_jax import config as config_lib
from jamsface_jax.errors import InputError
from jamsface_jax.run.launches import read_launches
from jamsface_jax.run.metrics_file import read_metrics
from jamsface_jax.storage.run_directory import RunDirectory, RunFile


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A work directory as far as it was written.

  Attributes:
    name: to tell it from the others.
    workdir: its path.
    settings: values by name, "data.threads" say.
    metrics: see `metric_log.read_metrics`.
    sets: what `results.json` says of each test set, by the name to show.
    classes: see `class_profile.describe`; None if not written yet.
    seconds: wall time by kind of work; None if not written yet.
    launches: see `launches.read_launches`.
  """

  name: str
  workdir: str
  settings: dict[str, Any]
  metrics: dict[str, tuple[np.ndarray, np.ndarray]]
  sets: dict[str, dict[str, Any]]
  classes: dict[str, Any] | None
  seconds: dict[str, float] | None
  launches: list[dict[str, Any]]

  @property
  def step(self) -> int:
    """The last step that was logged, 0 if none."""
    return max(
      (int(steps[-1]) for steps, _ in self.metrics.values()), default=0
    )

  @property
  def total_steps(self) -> int | None:
    """Steps of the whole run, if known."""
    return self.launches[-1]["total_steps"] if self.launches else None

  @property
  def command(self) -> list[str]:
    """What it was started with last, as words."""
    return shlex.split(self.launches[-1]["command"]) if self.launches else []

  def last(self, metric: str) -> float | None:
    """The last value of a metric, None if it has none."""
    _, values = self.metrics.get(metric, ((), ()))
    return float(values[-1]) if len(values) else None


def read_run(run: RunDirectory, name: str) -> Run:
  """Reads what a run has written so far.

  Args:
    run: directory of the run.
    name: to show.

  Raises:
    InputError: not a work directory, or a damaged file in it.
  """
  settings = config_lib.flatten(config_lib.read_config(run).to_dict())
  sets = {}
  for file, suffix in (
    (run.results, ""),
    (run.evaluation.results, " (evaluate)"),
  ):
    results = _read_json(file)
    for one in results["sets"] if results else ():
      sets[f"{one['name']}{suffix}"] = one
  return Run(
    name=name,
    workdir=run.path,
    settings=settings,
    metrics=read_metrics(run.metrics) if run.metrics.exists() else {},
    sets=sets,
    classes=_read_json(run.classes),
    seconds=_read_json(run.goodput),
    launches=read_launches(run),
  )


def _read_json(file: RunFile) -> dict[str, Any] | None:
  """The content of a file that is written whole; None if there is none."""
  try:
    return dict(file.read_json())
  except FileNotFoundError:
    return None
  except (ValueError, TypeError) as error:
    raise InputError(
      f"{file.path!r} is damaged ({error}): delete it and run the command that"
      " made it again."
    ) from None


def run_names(runs: Sequence[RunDirectory]) -> list[str]:
  """Short names that tell work directories apart: the ends of their paths."""
  parts = [run.absolute.split(os.sep)[1:] for run in runs]
  for length in range(1, max(map(len, parts), default=1) + 1):
    names = ["/".join(one[-length:]) for one in parts]
    if len(set(names)) == len(names):
      return names
  raise InputError(
    "command line: the same work directory is given twice: give each once."
  )
