"""What an evaluation leaves: a table to read and `results.json`."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.groups import GroupResult
from jamsface_jax.metrics.identification import Identification
from jamsface_jax.metrics.roc import RocLine
from jamsface_jax.metrics.score_counts import Hardest
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.run_directory import RunFile

FORMAT = 1
_MOST_PEOPLE = 100_000  # Written one by one: some megabytes.


def table(evaluations: Sequence[Evaluation]) -> str:
  """A line for each metric: its name, its value, its 95 % interval."""
  lines = []
  for one in evaluations:
    lines.append(f"{one.name}: {one.headline}")
    lines += _metric_lines(one.metrics, one.intervals)
    for group in one.groups:
      lines.append(
        f"{one.name}, {group_label(group.name)}: {group.identities:,} people,"
        f" {group.positive_pairs:,} pairs of one and"
        f" {group.negative_pairs:,} of two"
      )
      lines += _metric_lines(group.metrics, group.intervals)
  return "\n".join(lines)


def group_label(name: str | None) -> str:
  """What a group of people is called where it is shown."""
  return "people of two groups" if name is None else f"group {name}"


def _metric_lines(
  metrics: Mapping[str, float],
  intervals: Mapping[str, tuple[float, float]],
) -> list[str]:
  lines = []
  for name, value in metrics.items():
    line = f"{name:40} {value:.6f}"
    if name in intervals:
      low, high = intervals[name]
      line += f"   [{low:.4f}, {high:.4f}]"
    lines.append(line)
  return lines


def write_results(
  file: RunFile,
  evaluations: Sequence[Evaluation],
  origin: Mapping[str, Any],
) -> None:
  """Writes `results.json`, whole or not at all.

  JSON has no NaN: what could not be measured is null.

  Args:
    file: the file to write.
    evaluations: what came out, of all sets.
    origin: JSON values that say what the embeddings are.
  """
  content = {
    "format": FORMAT,
    "embeddings": dict(origin),
    "sets": [as_json(one) for one in evaluations],
  }
  file.write_json(_finite(content), indent=1)


def as_json(one: Evaluation) -> dict[str, Any]:
  """An evaluation as JSON values; `metrics` have the names of the logs."""
  fields = {
    "name": one.name,
    "headline": one.headline,
    "facts": one.facts,
    "metrics": one.metrics,
    "intervals_95": {k: list(v) for k, v in one.intervals.items()},
    "threshold": one.threshold,
    "cmc": {name: cmc(found).tolist() for name, found in one.searches.items()},
    "groups": [_group(group) for group in one.groups],
  }
  if one.people and len(one.people.labels) <= _MOST_PEOPLE:
    fields["people"] = {
      "label": one.people.labels.tolist(),
      "pairs": one.people.pairs.tolist(),
      **{name: tar.tolist() for name, tar in one.people.tars.items()},
    }
  if counts := one.score_counts:
    line = RocLine.of(counts.curve)
    fields |= {
      "roc": {
        "far": line.fars.tolist(),
        "tar": line.tars.tolist(),
        "threshold": counts.curve.threshold_at_far(line.fars).tolist(),
        "auc": line.auc,
      },
      "positive_counts": counts.positive_counts.tolist(),
      "negative_counts": counts.negative_counts.tolist(),
      "hardest_positives": _pairs(counts.hardest_positives),
      "hardest_negatives": _pairs(counts.hardest_negatives),
    }
  return fields


def read_roc_lines(path: str) -> dict[str, RocLine]:
  """The ROC curves of another evaluation, by its directory and the set's name.

  Args:
    path: the `results.json` of that evaluation.

  Raises:
    InputError: not such a file.
  """
  run = os.path.basename(os.path.dirname(os.path.abspath(path)))
  try:
    with open(path, encoding="utf-8", opener=plain) as file:
      content = plain_json.parse(file.read())
    if content["format"] != FORMAT:
      raise ValueError(f"format {content['format']}")
    return {
      f"{run}: {one['name']}": RocLine(
        np.array(one["roc"]["far"], np.float64),
        np.array(one["roc"]["tar"], np.float64),
        float(one["roc"]["auc"]),
      )
      for one in content["sets"]
      if "roc" in one
    }
  except OSError as error:
    raise InputError(
      f"--against {path!r} cannot be read ({error.strerror}): give the"
      " results.json of another evaluation."
    ) from None
  except (ValueError, KeyError, TypeError, OverflowError) as error:
    raise InputError(
      f"--against {path!r} is not the results.json of an evaluation"
      f" ({error!r}): give one."
    ) from None


def cmc(found: Identification) -> Float64[np.ndarray, " k"]:
  """Shares found up to rank 1, 2, ... 100, or as many as the gallery has."""
  return found.cmc(range(1, min(found.gallery_size, 100) + 1))


def _group(group: GroupResult) -> dict[str, Any]:
  return {
    "name": group.name,
    "identities": group.identities,
    "positive_pairs": group.positive_pairs,
    "negative_pairs": group.negative_pairs,
    "metrics": group.metrics,
    "intervals_95": {k: list(v) for k, v in group.intervals.items()},
  }


def _pairs(pairs: Hardest) -> list[dict[str, Any]]:
  return [
    {"first": int(i), "second": int(j), "cosine": float(score)}
    for i, j, score in zip(pairs.first, pairs.second, pairs.scores, strict=True)
  ]


def _finite(value: Any) -> Any:
  """The same JSON value with null for numbers that are not finite."""
  if isinstance(value, dict):
    return {name: _finite(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
