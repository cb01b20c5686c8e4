"""The cosine from which on two images are taken for one person."""

import dataclasses
import math
from typing import Any

import numpy as np

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.metrics.roc import rate_name
from jamsface_jax.metrics.score_counts import EDGES
from jamsface_jax.protocols.results import FORMAT
from jamsface_jax.storage.run_directory import RunDirectory, RunFile


@dataclasses.dataclass(frozen=True)
class Threshold:
  """Where nobody begins.

  Attributes:
    cosine: what the nearest person must reach.
    far: share of pairs of two people that reach it; None if it was given.
    origin: where it is from, in words.
  """

  cosine: float
  far: float | None
  origin: str

  def wrong_names(self, people: int) -> float | None:
    """How likely a stranger gets a name among so many people, at most.

    Each of them is a comparison with the chance `far`; None if that is unknown.
    """
    if self.far is None:
      return None
    return float(-np.expm1(people * np.log1p(-self.far)))


def given(cosine: float) -> Threshold:
  """One that the user chose.

  Raises:
    InputError: it is no cosine.
  """
  if not -1 <= cosine <= 1:
    raise InputError(
      f"--threshold={cosine} is no cosine: give a number from -1 to 1."
    )
  return Threshold(cosine, None, "--threshold")


def measured(run: RunDirectory, far: float) -> Threshold:
  """The one that an evaluation of the run measured at a false accept rate.

  Of several test sets the one with most pairs of two people is taken. What
  `evaluate` left goes before what the run measured itself.

  Args:
    run: the directory of a training run.
    far: share of pairs of two people that may reach the threshold.

  Raises:
    InputError: no evaluation, or one with too few pairs for this rate.
  """
  if not 0 < far < 1:
    raise InputError(
      f"--far={far} is not a share of pairs: give a number between 0 and 1,"
      " such as 1e-3."
    )
  files = [run.evaluation.results, run.results]
  for file in files:
    sets = _read_sets(file) if file.exists() else []
    if sets:
      return _of_set(max(sets, key=_negatives), far, file.path)
  raise InputError(
    f"--workdir={run.path!r} has no evaluation with pairs, which a threshold is"
    " read from: run jamsface_jax.evaluate on a test set, or give a cosine as"
    " --threshold."
  )


def _read_sets(file: RunFile) -> list[dict[str, Any]]:
  """The test sets of an evaluation that compare pairs."""
  try:
    content = file.read_json()
    if content["format"] != FORMAT:
      raise ValueError(f"format {content['format']}")
    return [
      one
      for one in content["sets"]
      if one.get("negative_counts") and _negatives(one) > 0
    ]
  except (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,  # A count of 1e999.
  ) as error:
    raise InputError(
      f"{file.path!r} is damaged ({one_line(repr(error))}): evaluate again, or"
      " give a cosine as --threshold."
    ) from None


def _negatives(one: dict[str, Any]) -> int:
  return int(np.sum(one["negative_counts"]))


def _rounded_up(rate: float) -> str:
  """A rate of one digit that is at least this one."""
  power = 10.0 ** math.floor(math.log10(rate))
  return rate_name(math.ceil(rate / power) * power)


def _of_set(one: dict[str, Any], far: float, path: str) -> Threshold:
  """Reads the threshold off a test set.

  A file of before thresholds were written has counts in steps of 0.01: the next
  step above is taken.
  """
  try:
    name, count = str(one["name"]), _negatives(one)
    if far * count < 1:
      raise InputError(
        f"--far={rate_name(far)}: {name!r} of {path!r} has {count:,} pairs of"
        f" two people, too few for that: choose --far={_rounded_up(1 / count)}"
        " or more, evaluate on a larger set, or give a cosine as --threshold."
      )
    counts = np.asarray(one["negative_counts"], np.int64)
    reach = np.append(np.cumsum(counts[::-1])[::-1], 0) / count
    cosine = float(EDGES[np.argmax(reach <= far)])
    line = one["roc"]
    if "threshold" in line:
      at = np.searchsorted(line["far"], far * (1 + 1e-9), "right") - 1
      # Null: even the highest score of one person is reached too often.
      cosine = float(line["threshold"][at] or cosine)
  except (ValueError, LookupError, TypeError, OverflowError) as error:
    raise InputError(
      f"{path!r} is damaged ({one_line(repr(error))}): evaluate again, or give"
      " a cosine as --threshold."
    ) from None
  return Threshold(cosine, far, f"FAR {rate_name(far)} on {name}, {path}")
