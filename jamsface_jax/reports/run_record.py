"""What a report reads of a run."""

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.run.launches import read_launches
from jamsface_jax.run.metrics_file import Series, read_metrics
from jamsface_jax.settings.names import values
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory, RunFile

_Content = TypeVar("_Content")
# What every version has written.
_OF_SET = {
  "name": str,
  "headline": str,
  "facts": dict,
  "metrics": dict,
  "intervals_95": dict,
}
_OF_CLASSES = {
  "classes": int,
  "images": int,
  "tail": dict,
  "top": dict,
  "margins": dict,
}


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
  """A run as far as it has been written down.

  Attributes:
    name: tells it from the others of a page.
    directory: where it lies.
    settings: values by name, "data.threads" say.
    metrics: steps and values by name, see `read_metrics`.
    sets: what `results.json` says of each test set, by the name to show.
    classes: see `class_profile.describe`; None if not written yet.
    seconds: wall time by kind of work; None if not written yet.
    launches: see `read_launches`.
  """

  name: str
  directory: RunDirectory
  settings: dict[str, Any]
  metrics: dict[str, Series]
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
  def last_launch(self) -> dict[str, Any] | None:
    """How and where it was launched last, if known."""
    return self.launches[-1] if self.launches else None

  @property
  def total_steps(self) -> int | None:
    """Steps of the whole run, if known."""
    return self.last_launch["total_steps"] if self.last_launch else None

  @property
  def command(self) -> list[str]:
    """What it was started with last, as words."""
    return shlex.split(self.last_launch["command"]) if self.last_launch else []

  @property
  def wall_time(self) -> float:
    """Seconds of all launches together, 0 if not known."""
    return sum((self.seconds or {}).values())

  def last(self, metric: str) -> float | None:
    """The last value of a metric, None if it has none."""
    _, values = self.metrics.get(metric, ((), ()))
    return float(values[-1]) if len(values) else None


def read_runs(runs: Sequence[RunDirectory]) -> list[RunRecord]:
  """Reads what runs have written so far.

  Raises:
    InputError: one is not a work directory or is given twice, or a file in it
      is damaged.
  """
  return [
    _read_run(run, name) for run, name in zip(runs, _names(runs), strict=True)
  ]


def _read_run(run: RunDirectory, name: str) -> RunRecord:
  settings = values(read_settings(run))
  sets = {}
  for results, suffix in (
    (run.results, ""),
    (run.evaluation.results, " (evaluate)"),
  ):
    for one in _read(results, _sets) or ():
      sets[f"{one['name']}{suffix}"] = one
  return RunRecord(
    name=name,
    directory=run,
    settings=settings,
    metrics=read_metrics(run.metrics) if run.metrics.exists() else {},
    sets=sets,
    classes=_read(run.classes, _classes),
    seconds=_read(run.goodput, _seconds),
    launches=read_launches(run),
  )


def _read(file: RunFile, check: Callable[[Any], _Content]) -> _Content | None:
  """The content of a file that is written whole; None if there is none."""
  try:
    return check(file.read_json())
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, LookupError, OverflowError) as error:
    raise InputError(
      f"{file.path!r} is damaged ({one_line(error)}): move it away and run the"
      " command that made it again."
    ) from None


def _sets(content: Any) -> list[dict[str, Any]]:
  """The test sets of `results.json`, if they are some."""
  return [_checked(one, _OF_SET) for one in content["sets"]]


def _classes(content: Any) -> dict[str, Any]:
  """What `class_profile.describe` gave, if it is that."""
  return _checked(content, _OF_CLASSES)


def _seconds(content: Any) -> dict[str, float]:
  return {kind: float(seconds) for kind, seconds in dict(content).items()}


def _checked(value: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
  """An object that has values of these kinds, at least.

  Raises:
    ValueError: it has not.
  """
  if not isinstance(value, dict):
    raise ValueError("something in it is no object")
  for name, kind in kinds.items():
    if not isinstance(value.get(name), kind):
      raise ValueError(f"{name!r} is missing, or no {kind.__name__}")
  return value


def _names(runs: Sequence[RunDirectory]) -> list[str]:
  """Short names that tell runs apart: the ends of their paths."""
  parts = [run.absolute.split(os.sep)[1:] for run in runs]
  for length in range(1, max(map(len, parts), default=1) + 1):
    names = ["/".join(one[-length:]) for one in parts]
    if len(set(names)) == len(names):
      return names
  raise InputError(
    "command line: the same work directory is given twice: give each once."
  )
