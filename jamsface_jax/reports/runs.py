"""What a report reads of a run."""

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from jamsface_jax.errors import InputError
from jamsface_jax.protocols.results import RESULTS_FILE
from jamsface_jax.reports.class_profile import CLASSES_FILE
from jamsface_jax.run.goodput import GOODPUT_FILE
from jamsface_jax.run.metrics_file import METRICS_FILE, read_metrics
from jamsface_jax.run.starts import read_starts
from jamsface_jax.settings.names import values
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory


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
    starts: see `starts.read_starts`.
  """

  name: str
  workdir: str
  settings: dict[str, Any]
  metrics: dict[str, tuple[np.ndarray, np.ndarray]]
  sets: dict[str, dict[str, Any]]
  classes: dict[str, Any] | None
  seconds: dict[str, float] | None
  starts: list[dict[str, Any]]

  @property
  def step(self) -> int:
    """The last step that was logged, 0 if none."""
    return max(
      (int(steps[-1]) for steps, _ in self.metrics.values()), default=0
    )

  @property
  def total_steps(self) -> int | None:
    """Steps of the whole run, if known."""
    return self.starts[-1]["total_steps"] if self.starts else None

  @property
  def command(self) -> list[str]:
    """What it was started with last, as words."""
    return shlex.split(self.starts[-1]["command"]) if self.starts else []

  def last(self, metric: str) -> float | None:
    """The last value of a metric, None if it has none."""
    _, values = self.metrics.get(metric, ((), ()))
    return float(values[-1]) if len(values) else None


def read_run(workdir: str, name: str) -> Run:
  """Reads what a run has written so far.

  Args:
    workdir: of the run.
    name: to show.

  Raises:
    InputError: not a work directory, or a damaged file in it.
  """
  settings = values(read_settings(RunDirectory(workdir)))
  path = os.path.join(workdir, METRICS_FILE)
  sets = {}
  for folder, suffix in (("", ""), ("evaluation", " (evaluate)")):
    results = _read_json(os.path.join(workdir, folder, RESULTS_FILE))
    for one in results["sets"] if results else ():
      sets[f"{one['name']}{suffix}"] = one
  return Run(
    name=name,
    workdir=workdir,
    settings=settings,
    metrics=read_metrics(path) if os.path.exists(path) else {},
    sets=sets,
    classes=_read_json(os.path.join(workdir, CLASSES_FILE)),
    seconds=_read_json(os.path.join(workdir, GOODPUT_FILE)),
    starts=read_starts(workdir),
  )


def _read_json(path: str) -> dict[str, Any] | None:
  """The content of a file that is written whole; None if there is none."""
  try:
    with open(path, encoding="utf-8") as file:
      return dict(json.load(file))
  except FileNotFoundError:
    return None
  except (ValueError, TypeError) as error:
    raise InputError(
      f"{path!r} is damaged ({error}): delete it and run the command that made"
      " it again."
    ) from None


def run_names(workdirs: Sequence[str]) -> list[str]:
  """Short names that tell work directories apart: the ends of their paths."""
  parts = [os.path.abspath(one).split(os.sep)[1:] for one in workdirs]
  for length in range(1, max(map(len, parts), default=1) + 1):
    names = ["/".join(one[-length:]) for one in parts]
    if len(set(names)) == len(names):
      return names
  raise InputError(
    "command line: the same work directory is given twice: give each once."
  )
