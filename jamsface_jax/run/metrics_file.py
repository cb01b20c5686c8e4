"""The numbers of a run, read back from its `metrics.jsonl`."""

import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from jamsface_jax.errors import InputError

METRICS_FILE = "metrics.jsonl"


def read_metrics(
  path: str | pathlib.Path,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads a run's metrics.

  Args:
    path: the file; each line an object {"step": n, "train/loss": ..., ...}.

  Returns:
    For each metric its steps, int64 [N], rising, and its values, float64 [N].
    A step logged twice, as a resumed run does with the steps since its last
    checkpoint, counts as logged last. A last line that was cut off while it was
    written is left out; null is NaN.

  Raises:
    InputError: the file cannot be read or another line is not such an object.
  """
  try:
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(
      f"{path}: cannot be read ({error}); give the metrics.jsonl of a run."
    ) from error
  metrics = {}
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      step = int(row.pop("step"))
      values = {
        name: float("nan" if value is None else value)
        for name, value in row.items()
      }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      if number == len(lines):  # No newline after it: it was cut off.
        break
      raise InputError(
        f"{path}:{number}: is not an object of numbers with a step; delete the"
        " line."
      ) from error
    for name, value in values.items():
      metrics.setdefault(name, {})[step] = value
  return {name: _series(by_step) for name, by_step in metrics.items()}


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


def _series(by_step):
  steps = sorted(by_step)
  values = [by_step[step] for step in steps]
  return np.array(steps, np.int64), np.array(values, np.float64)
