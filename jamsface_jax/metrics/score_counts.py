"""What is kept of pairs' scores when there are too many to keep all.

The curve, exact; a histogram of each kind; the pairs that came out worst.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jamsface_jax.metrics.roc import Roc, RocCounter

EDGES = np.linspace(-1, 1, 201)  # Of the bins of the histograms.
HARDEST = 20  # Pairs of each kind.


@dataclasses.dataclass(frozen=True, eq=False)
class Hardest:
  """The pairs of one kind that came out worst, the worst first.

  Attributes:
    scores: float64 [h].
    first: number of each pair's first image, int64 [h].
    second: number of each pair's second image, int64 [h].
  """

  scores: np.ndarray
  first: np.ndarray
  second: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreCounts:
  """What pairs' scores came to.

  Attributes:
    curve: the ROC.
    num_positives: positive pairs.
    positive_counts: of them in each bin of `EDGES`, int64 [200].
    negative_counts: likewise.
    hardest_positives: those that score lowest.
    hardest_negatives: those that score highest.
  """

  curve: Roc
  num_positives: int
  positive_counts: np.ndarray
  negative_counts: np.ndarray
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
    self, positives: np.ndarray, first: np.ndarray, second: np.ndarray
  ):
    self._counter = RocCounter(positives)
    self._num_positives = len(positives)
    self._positive_counts = np.histogram(np.clip(positives, -1, 1), EDGES)[0]
    self._negative_counts = np.zeros(len(EDGES) - 1, np.int64)
    worst = np.argsort(positives, kind="stable")[:HARDEST]
    self._positives = Hardest(
      positives[worst].astype(np.float64), first[worst], second[worst]
    )
    nothing = np.empty(0, np.int64)
    self._negatives = Hardest(np.empty(0), nothing, nothing)

  def add(
    self,
    negatives: np.ndarray,
    name: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
  ) -> None:
    """Takes a block of negative pairs.

    Args:
      negatives: their cosines, [n], of the dtype of the positives.
      name: maps places in the block, int64 [m], to the numbers of both images,
        int64 [m] each.
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
    scores = np.concatenate([held.scores, scores[worst]])
    worst = np.argsort(-scores, kind="stable")[:HARDEST]
    self._negatives = Hardest(
      scores[worst],
      np.concatenate([held.first, first])[worst],
      np.concatenate([held.second, second])[worst],
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
  scores: np.ndarray, same: np.ndarray, first: np.ndarray, second: np.ndarray
) -> ScoreCounts:
  """The score_counts of pairs that are all at hand.

  Args:
    scores: cosine of each pair, [P].
    same: whether the pair shows one person, bool [P], of both kinds.
    first: number of each pair's first image, integers [P].
    second: number of each pair's second image, integers [P].
  """
  pairs = ScoreCounter(scores[same], first[same], second[same])
  negatives = np.flatnonzero(~same)

  def name(places):
    return first[negatives[places]], second[negatives[places]]

  pairs.add(scores[negatives], name)
  return pairs.counts()
