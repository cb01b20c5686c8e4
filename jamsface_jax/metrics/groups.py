"""Verification per group of people, at thresholds that hold for all.

One threshold serves everybody, so a group may be falsely accepted or rejected
more often than others. For each group: its pairs of one person, and the pairs
of two people who are both of it; pairs of people of two groups, which are told
apart more easily, are on their own. The terms are those of ISO/IEC 19795-1:
FMR, the false match rate, is the share of pairs of two people that are
accepted; FNMR, the false non-match rate, that of pairs of one person that are
not.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.bootstrap import PairResampler, interval


@dataclasses.dataclass(frozen=True, eq=False)
class GroupedPairs:
  """Scores of pairs of images whose people belong to groups.

  Attributes:
    scores: similarity of each pair, [P], finite.
    same: whether it shows one person, bool [P], of both kinds.
    first: identity of each pair's first image, integers [P] from 0 on.
    second: identity of each pair's second image, likewise.
    first_group: group of each pair's first image, integers [P] in [0, G).
    second_group: group of each pair's second image, likewise.
  """

  scores: np.ndarray
  same: np.ndarray
  first: np.ndarray
  second: np.ndarray
  first_group: np.ndarray
  second_group: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class GroupResult:
  """What came out for one group.

  Attributes:
    name: of the group; None: the pairs of people of two groups.
    identities: people in its pairs.
    positive_pairs: of one person.
    negative_pairs: of two people.
    metrics: "accuracy", "fmr@1e-3", "fnmr@1e-3", ...; those that its pairs can
      measure.
    intervals: 95 % intervals of them, if asked for.
  """

  name: str | None
  identities: int
  positive_pairs: int
  negative_pairs: int
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]


def judge_groups(
  pairs: GroupedPairs,
  names: Sequence[str],
  threshold: float,
  thresholds: Mapping[str, float],
  *,
  replicates: int,
  seed: int,
) -> list[GroupResult]:
  """Judges each group at the thresholds of the whole set.

  Args:
    pairs: of the whole set.
    names: of the groups.
    threshold: at which to give the accuracy.
    thresholds: at which to give FMR and FNMR, by the name of the FAR that the
      whole set has there, such as "1e-3".
    replicates: resamples of identities, of the whole set, for intervals; 0 for
      none. Thresholds stay as they are.
    seed: of the resamples.

  Returns:
    The groups that have pairs, in their order, then the pairs of two groups, if
    there are any.

  Raises:
    InputError: a pair of one person has two groups.
  """
  apart = pairs.first_group != pairs.second_group
  if (apart & pairs.same).any():
    number = int(np.flatnonzero(apart & pairs.same)[0])
    raise InputError(
      f"groups.csv: pair {number + 1} of the protocol shows one person, but"
      f" its images are of {names[pairs.first_group[number]]!r} and"
      f" {names[pairs.second_group[number]]!r}: give both classes one group."
    )
  # The pairs of two groups are the last group.
  group = np.where(apart, len(names), pairs.first_group)
  kinds = group * 4 + pairs.same * 2
  codes = [kinds + (pairs.scores >= t) for t in thresholds.values()]
  code = kinds + (pairs.scores >= threshold)

  def rates(weights: np.ndarray | None) -> dict[str, np.ndarray]:
    """Each metric for each group, [G + 1]; NaN where there are no pairs."""

    def counts(code: np.ndarray) -> np.ndarray:
      """Pairs by group, kind (two people, one) and decision, [G + 1, 2, 2]."""
      size = 4 * (len(names) + 1)
      return np.bincount(code, weights, size).reshape(-1, 2, 2)

    with np.errstate(invalid="ignore"):  # 0 / 0: not measured.
      c = counts(code)
      found = {
        "accuracy": (c[:, 0, 0] + c[:, 1, 1]) / c.sum(axis=(1, 2)),
      }
      for far, one in zip(thresholds, codes, strict=True):
        c = counts(one)
        found[f"fmr@{far}"] = c[:, 0, 1] / c[:, 0].sum(axis=1)
        found[f"fnmr@{far}"] = c[:, 1, 0] / c[:, 1].sum(axis=1)
    return found

  measured = rates(None)
  drawn: list[dict[str, np.ndarray]] = []
  if replicates:
    resampler = PairResampler(
      pairs.scores, pairs.same, pairs.first, pairs.second
    )
    rng = np.random.default_rng(seed)
    draws = (resampler.draw(rng) for _ in range(replicates))
    drawn = [rates(draw[1]) for draw in draws if draw]
  results = []
  for number, name in enumerate([*names, None]):
    mine = group == number
    if not mine.any():
      continue
    metrics = {
      metric: float(values[number])
      for metric, values in measured.items()
      if not np.isnan(values[number])
    }
    results.append(
      GroupResult(
        name=name,
        identities=len(np.union1d(pairs.first[mine], pairs.second[mine])),
        positive_pairs=int((mine & pairs.same).sum()),
        negative_pairs=int((mine & ~pairs.same).sum()),
        metrics=metrics,
        intervals={
          metric: interval(np.array([one[metric][number] for one in drawn]))
          for metric in (metrics if drawn else ())
        },
      )
    )
  return results
