"""What is kept of pairs' scores when there are too many to keep all.

The curve, exact; a histogram of each kind; the pairs that came out worst.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from jamsface_jax.metrics.roc import Roc, RocCounter

EDGES = np.linspace(-1, 1, 201)  # Of the bins of the histograms.
HARDEST = 20  # Pairs of each kind.


@dataclasses.dataclass(frozen=True, eq=False)
class Hardest:
  """The pairs of one kind that came out worst, the worst first.

  Attributes:
    scores: their cosines, float64 [h].
    first: number of each pair's first image, integers [h].
    second: number of each pair's second image, integers [h].
  """

  scores: Float64[np.ndarray, " h"]
  first: Int[np.ndarray, " h"]
  second: Int[np.ndarray, " h"]

  @classmethod
  def of(
    cls,
    scores: Float64[np.ndarray, " n"],
    first: Int[np.ndarray, " n"],
    second: Int[np.ndarray, " n"],
    *,
    falling: bool,
  ) -> "Hardest":
    """Takes those that score lowest, or highest if `falling`."""
    order = np.argsort(-scores if falling else scores, kind="stable")
    worst = order[:HARDEST]
    return cls(scores[worst], first[worst], second[worst])


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreCounts:
  """What is known of the scores of pairs once they were counted.

  Attributes:
    curve: the ROC.
    num_positives: how many pairs show one person.
    positive_counts: how many of them are in each bin of `EDGES`, int64 [200].
    negative_counts: likewise of the pairs that show two people.
    hardest_positives: those that score lowest.
    hardest_negatives: those that score highest.
  """

  curve: Roc
  num_positives: int
  positive_counts: Int64[np.ndarray, " bins"]
  negative_counts: Int64[np.ndarray, " bins"]
  hardest_positives: Hardest
  hardest_negatives: Hardest


class ScoreCounter:
  """Takes positives at once, then negatives in blocks, which it forgets.

  Args:
    positives: cosines of all positive pairs, [P], within [-1, 1].
    first: number of each pair's first image, integers [P].
    second: number of each pair's second image, integers [P].
  """

  def __init__(
    self,
    positives: Float[np.ndarray, " p"],
    first: Int[np.ndarray, " p"],
    second: Int[np.ndarray, " p"],
  ):
    self._counter = RocCounter(positives)
    self._num_positives = len(positives)
    self._positive_counts = np.histogram(np.clip(positives, -1, 1), EDGES)[0]
    self._negative_counts = np.zeros(len(EDGES) - 1, np.int64)
    self._positives = Hardest.of(
      positives.astype(np.float64), first, second, falling=False
    )
    nothing = np.empty(0, np.int64)
    self._negatives = Hardest(np.empty(0), nothing, nothing)

  def add(
    self,
    negatives: Float[np.ndarray, " n"],
    name: Callable[
      [Int64[np.ndarray, " m"]],
      tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]],
    ],
  ) -> None:
    """Counts a block of negative pairs.

    Args:
      negatives: their cosines, [n], of the dtype of the positives.
      name: maps places in the block, int64 [m], to the numbers of both images,
        integers [m] each.
    """
    ordered = self._counter.add(negatives)
    # In float32 a cosine may be rounded past 1: the outer bins take all.
    below = np.searchsorted(ordered, EDGES.astype(ordered.dtype), "left")
    below[0], below[-1] = 0, len(ordered)
    self._negative_counts += np.diff(below)
    held = self._negatives
    if len(held.scores) == HARDEST:
      candidates = np.flatnonzero(negatives > held.scores[-1])
    else:
      candidates = np.arange(len(negatives))
    scores = negatives[candidates].astype(np.float64)
    worst = np.argsort(-scores, kind="stable")[:HARDEST]
    first, second = name(candidates[worst])
    self._negatives = Hardest.of(
      np.concatenate([held.scores, scores[worst]]),
      np.concatenate([held.first, first]),
      np.concatenate([held.second, second]),
      falling=True,
    )

  def counts(self) -> ScoreCounts:
    """What all pairs came to."""
    return ScoreCounts(
      curve=self._counter.roc(),
      num_positives=self._num_positives,
      positive_counts=self._positive_counts,
      negative_counts=self._negative_counts,
      hardest_positives=self._positives,
      hardest_negatives=self._negatives,
    )


def count_scores(
  scores: Float[np.ndarray, " p"],
  same: Bool[np.ndarray, " p"],
  first: Int[np.ndarray, " p"],
  second: Int[np.ndarray, " p"],
) -> ScoreCounts:
  """Counts pairs that are all at hand.

  Args:
    scores: cosine of each pair, [P].
    same: whether the pair shows one person, bool [P], of both kinds.
    first: number of each pair's first image, integers [P].
    second: number of each pair's second image, integers [P].
  """
  counter = ScoreCounter(scores[same], first[same], second[same])
  negatives = np.flatnonzero(~same)

  def name(
    places: Int64[np.ndarray, " m"],
  ) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    return first[negatives[places]], second[negatives[places]]

  counter.add(scores[negatives], name)
  return counter.counts()
