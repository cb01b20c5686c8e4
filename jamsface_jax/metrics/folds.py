"""Accuracy of verification in folds.

A threshold t accepts every pair whose score is at least t, so tied scores are
accepted or rejected together and nothing depends on the order of the pairs. All
is exact, over every threshold that the scores can tell apart: no grid.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike


def kfold_accuracy(
  scores: ArrayLike, same: ArrayLike, folds: ArrayLike
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
  """Accuracy on each fold at the threshold that is best on the other folds.

  The protocol of LFW (http://vis-www.cs.umass.edu/lfw/), with every threshold
  tried that tells the training scores apart: the midpoints between neighbouring
  distinct scores, one that accepts all and one that accepts none. Of several
  that are equally good on the training folds the one in the widest gap is
  taken, that is furthest from any training score, and of equally wide gaps the
  highest; one that accepts all or none only if no midpoint is as good.

  Args:
    scores: similarity of each pair, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.
    folds: the fold of each pair, integers [P], at least two different ones.

  Returns:
    accuracies: share of correct decisions on each fold, float64 [K], in rising
      order of the folds' numbers.
    thresholds: the threshold used on each fold, float64 [K].

  Raises:
    ValueError: one fold, none of a kind, a score that is not finite, or other
      shapes.
  """
  scores, same = _checked(scores, same)
  folds = np.asarray(folds)
  if folds.shape != scores.shape:
    raise ValueError(f"{scores.shape} scores but {folds.shape} folds.")
  numbers = np.unique(folds)
  if len(numbers) < 2:
    raise ValueError("All pairs are in one fold: no other to choose on.")
  # Sorted once: what is left after taking a fold out is still sorted.
  order = np.argsort(-scores, kind="stable")
  scores, same, folds = scores[order], same[order], folds[order]
  accuracies, thresholds = [], []
  for number in numbers:
    held = folds == number
    threshold = _best_threshold(scores[~held], same[~held])
    accuracies.append(np.mean((scores[held] >= threshold) == same[held]))
    thresholds.append(threshold)
  return np.array(accuracies), np.array(thresholds)


def _checked(
  scores: ArrayLike, same: ArrayLike
) -> tuple[Float64[np.ndarray, " p"], Bool[np.ndarray, " p"]]:
  """The arguments as float64 [P] and bool [P], or ValueError."""
  scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
  if scores.ndim != 1 or scores.shape != same.shape:
    raise ValueError(
      f"Expected scores [P] and same [P]; got {scores.shape}, {same.shape}."
    )
  if not np.isfinite(scores).all():
    raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are not finite.")
  if same.all() or not same.any():
    raise ValueError(
      f"Need positive and negative pairs; got {same.sum()} positive ones of"
      f" {len(same)}."
    )
  return scores, same


def _accepted(
  scores: Float64[np.ndarray, " p"], same: Bool[np.ndarray, " p"]
) -> tuple[
  Float64[np.ndarray, " t"],
  Int64[np.ndarray, " t+1"],
  Int64[np.ndarray, " t+1"],
]:
  """Counts of accepted pairs at each distinct score; `scores` are falling.

  Returns the distinct scores [T], and the positive and the negative pairs
  accepted, int64 [T + 1], the first entry for a threshold above all scores.
  """
  is_last = np.append(scores[1:] != scores[:-1], True)  # Of its tied scores.
  total = np.flatnonzero(is_last) + 1
  positives = np.cumsum(same)[is_last]
  return (
    scores[is_last],
    np.concatenate([[0], positives]),
    np.concatenate([[0], total - positives]),
  )


def _best_threshold(
  scores: Float64[np.ndarray, " p"], same: Bool[np.ndarray, " p"]
) -> float:
  """The threshold with most correct decisions; `scores` are falling."""
  distinct, positives, negatives = _accepted(scores, same)
  correct = positives - negatives  # Up to a constant: the negatives there are.
  upper, lower = distinct[:-1], distinct[1:]
  middle = lower + (upper - lower) / 2
  # Between neighbouring floats the middle may be rounded to the lower one.
  middle = np.where(middle > lower, middle, upper)
  none, all_ = np.nextafter(distinct[:1], np.inf), distinct[-1:]
  thresholds = np.concatenate([none, middle, all_])
  gaps = np.concatenate([[0], upper - lower, [0]])
  return thresholds[np.argmax(np.where(correct == correct.max(), gaps, -1))]
