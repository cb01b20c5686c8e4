"""The numbers of a run in its file of metrics: read back, cut, looked up."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from jamsface_jax.errors import InputError
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.run_directory import RunFile

Series = tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]

# Of a line that need not be whole.
_STEP = re.compile(r'\{"step": (\d{1,16}),')
_MOST_STEPS = 2**53  # Beyond it numbers are not told apart.


def read_metrics(file: RunFile) -> dict[str, Series]:
  """Reads a run's metrics.

  Args:
    file: the file of metrics; each line an object
      {"step": n, "train/loss": ..., ...}.

  Returns:
    For each metric its steps, int64 [N], rising, and its values, float64 [N].
    A step logged twice, as a resumed run does with the steps since its last
    checkpoint, counts as logged last. A last line that was cut off while it was
    written is left out; null is NaN.

  Raises:
    InputError: the file cannot be read or another line is not such an object,
      which a run sets aside when it goes on.
  """
  try:
    lines = file.read_lines()
  except OSError as error:
    raise InputError(
      f"{file.path}: cannot be read ({error}); give the metrics.jsonl of a run."
    ) from error
  metrics: dict[str, dict[int, float]] = {}
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    row = _parse(line)
    if row is None:
      if not line.endswith("\n"):  # It was cut off.
        break
      raise InputError(
        f"{file.path}:{number}: is not an object of numbers with a step; delete"
        " the line."
      )
    step, values = row
    for name, value in values.items():
      metrics.setdefault(name, {})[step] = value
  return {name: _series(by_step) for name, by_step in metrics.items()}


def _parse(line: str) -> tuple[int, dict[str, float]] | None:
  """The step and the numbers of a line, null as NaN; None if it is broken."""
  try:
    line.encode()  # Not UTF-8, as it was read, does not become it either.
    row = plain_json.parse(line)
    step = row.pop("step")
    if type(step) is not int or not 0 <= step < _MOST_STEPS:
      return None
    return step, {
      name: float("nan" if value is None else value)
      for name, value in row.items()
    }
  except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
    return None


def matching(metrics: Iterable[str], patterns: Sequence[str]) -> list[str]:
  """Names of metrics that a chart asks for, pattern by pattern.

  Args:
    metrics: names.
    patterns: names too; one that begins with "/" stands for those of all test
      sets that end in it.
  """
  return [
    name
    for pattern in patterns
    for name in metrics
    if name == pattern
    or (
      pattern.startswith("/")
      and name.endswith(pattern)
      and not name.startswith("train/")
    )
  ]


def drop_after(file: RunFile, finished: int) -> set[str]:
  """Keeps the whole lines of steps up to a step, which a run goes on from.

  Lines that are none of a run are set aside, with a warning.

  Args:
    file: the file of metrics, which need not be there.
    finished: the last step to keep.

  Returns:
    Names of the metrics that step `finished` has.
  """
  if not file.exists():
    if finished and file.writes:
      _warn(f"{file.path!r} is missing: curves begin at step {finished + 1}.")
    return set()
  lines = file.read_lines()
  kept, broken, last = [], [], set()
  for line in lines:
    row = _parse(line)
    if row is None:
      # One without an end is torn by a kill, in the middle of writing. That is
      # of a step to come again: those of a checkpoint are on the disk before.
      torn = _STEP.match(line)
      if line.endswith("\n"):
        broken += [line] if line.strip() else []
      elif torn and int(torn[1]) <= finished and file.writes:
        _warn(
          f"{file.path!r} is cut off at step {int(torn[1])}: curves lack what"
          f" followed, up to step {finished}."
        )
    elif row[0] <= finished and line.endswith("\n"):
      kept.append(line)
      if row[0] == finished:
        last.update(("step", *row[1]))
  if broken and file.writes:
    aside = file.beside(".set_aside")
    for line in broken:
      aside.append_line(line.rstrip("\n"))
    aside.sync()  # Before they leave the other file.
    _warn(
      f"{file.path!r} had {len(broken)} lines that are no metrics: they are in"
      f" {aside.path!r} now."
    )
  if kept != lines:
    file.write_text("".join(kept))
  return last


def read_scores(file: RunFile, name: str) -> dict[int, float]:
  """Values of one metric by step, as far as they were measured.

  Args:
    file: the file of metrics, which need not be there.
    name: the metric.
  """
  if not file.exists():
    return {}
  scores = {}
  for line in file.read_lines():
    row = _parse(line) if line.endswith("\n") else None
    if row and not np.isnan(row[1].get(name, np.nan)):
      scores[row[0]] = row[1][name]
  return scores


def _warn(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr, flush=True)


def _series(by_step: Mapping[int, float]) -> Series:
  steps = sorted(by_step)
  values = [by_step[step] for step in steps]
  return np.array(steps, np.int64), np.array(values, np.float64)
