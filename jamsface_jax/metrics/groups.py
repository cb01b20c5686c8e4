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
from jaxtyping import Bool, Float, Float64, Int, Int64

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.bootstrap import PairResampler, interval


@dataclasses.dataclass(frozen=True, eq=False)
class GroupedPairs:
  """Scores of pairs of images whose people belong to groups.

  Attributes:
    scores: similarity of each pair, [P], finite.
    same: whether it shows one person, bool [P], of both kinds.
    first: identity of each pair's first image, integers [P] from 0 on.
    second: identity of each pair's second image, integers [P] from 0 on.
    first_group: group of each pair's first image, integers [P] in [0, G).
    second_group: group of each pair's second image, integers [P] in [0, G).
  """

  scores: Float[np.ndarray, " p"]
  same: Bool[np.ndarray, " p"]
  first: Int[np.ndarray, " p"]
  second: Int[np.ndarray, " p"]
  first_group: Int[np.ndarray, " p"]
  second_group: Int[np.ndarray, " p"]


@dataclasses.dataclass(frozen=True, eq=False)
class GroupResult:
  """What came out for one group.

  Attributes:
    name: what the group is called; None: the pairs of people of two groups.
    identities: how many people its pairs show.
    positive_pairs: how many of its pairs show one person.
    negative_pairs: how many of its pairs show two people.
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
    pairs: all pairs of the set.
    names: what the groups are called, by their numbers.
    threshold: where to give the accuracy.
    thresholds: where to give FMR and FNMR, by the name of the FAR that the
      whole set has there, such as "1e-3".
    replicates: resamples of identities, of the whole set, for intervals; 0 for
      none. Thresholds stay as they are.
    seed: what the resamples are drawn from.

  Returns:
    The groups that have pairs, in their order, then the pairs of two groups, if
    there are any.

  Raises:
    InputError: a pair of one person has two groups.
  """
  groups = _group_of_pairs(pairs, names)
  count = len(names) + 1
  decisions = {
    "accuracy": _codes(pairs, groups, threshold),
    **{name: _codes(pairs, groups, t) for name, t in thresholds.items()},
  }
  measured = _rates(decisions, count, None)
  drawn: list[dict[str, Float64[np.ndarray, " g"]]] = []
  if replicates:
    resampler = PairResampler(
      pairs.scores, pairs.same, pairs.first, pairs.second
    )
    rng = np.random.default_rng(seed)
    draws = (resampler.draw(rng) for _ in range(replicates))
    drawn = [_rates(decisions, count, draw[1]) for draw in draws if draw]
  results = []
  for number, name in enumerate([*names, None]):
    mine = groups == number
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


def _group_of_pairs(
  pairs: GroupedPairs, names: Sequence[str]
) -> Int64[np.ndarray, " p"]:
  """The group of each pair; the pairs of two groups are one more group."""
  apart = pairs.first_group != pairs.second_group
  if (apart & pairs.same).any():
    number = int(np.flatnonzero(apart & pairs.same)[0])
    raise InputError(
      f"groups.csv: pair {number + 1} of the protocol shows one person, but"
      f" its images are of {names[pairs.first_group[number]]!r} and"
      f" {names[pairs.second_group[number]]!r}: give both classes one group."
    )
  return np.where(apart, len(names), pairs.first_group)


def _codes(
  pairs: GroupedPairs, groups: Int64[np.ndarray, " p"], threshold: float
) -> Int64[np.ndarray, " p"]:
  """A number for group, kind and decision of each pair, to be counted."""
  return groups * 4 + pairs.same * 2 + (pairs.scores >= threshold)


def _rates(
  decisions: Mapping[str, Int64[np.ndarray, " p"]],
  groups: int,
  weights: Float64[np.ndarray, " p"] | None,
) -> dict[str, Float64[np.ndarray, " g"]]:
  """Each metric for each group, [G + 1]; NaN where there are no pairs.

  Args:
    decisions: codes of the pairs: "accuracy", and by the name of the FAR.
    groups: how many groups there are.
    weights: how often each pair counts; None for once.
  """
  found = {}
  with np.errstate(invalid="ignore"):  # 0 / 0: not measured.
    for name, codes in decisions.items():
      # By group, kind (two people, one) and decision.
      c = np.bincount(codes, weights, 4 * groups).reshape(-1, 2, 2)
      if name == "accuracy":
        found[name] = (c[:, 0, 0] + c[:, 1, 1]) / c.sum(axis=(1, 2))
      else:
        found[f"fmr@{name}"] = c[:, 0, 1] / c[:, 0].sum(axis=1)
        found[f"fnmr@{name}"] = c[:, 1, 0] / c[:, 1].sum(axis=1)
  return found
