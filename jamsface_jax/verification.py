"""Metrics from scores: how well a similarity tells same from different.

A threshold t accepts every pair whose score is at least t, so tied scores are
accepted or rejected together and no metric depends on the order of the pairs.
TAR is the share of positive pairs accepted, FAR that of negative pairs. All is
exact, over every threshold that the scores can tell apart: no grid.

`rank_correlation` is here too: Spearman's, with ties.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jamsface_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Roc:
  """The receiver operating characteristic, a point for each distinct score.

  Attributes:
    thresholds: float64 [T + 1], falling; the first is infinity: nothing passes.
    far: false accept rate at each threshold, float64 [T + 1], from 0 up to 1.
    tar: true accept rate at each threshold, float64 [T + 1], from 0 up to 1.
    num_negatives: how many negative pairs `far` was counted on.
  """

  thresholds: np.ndarray
  far: np.ndarray
  tar: np.ndarray
  num_negatives: int

  def tar_at_far(self, fars: Sequence[float]) -> np.ndarray:
    """As the function `tar_at_far`, from a curve at hand."""
    fars = np.asarray(fars, np.float64)
    if not ((fars > 0) & (fars <= 1)).all():
      raise ValueError(f"A FAR lies above 0 and up to 1; got {fars.tolist()}.")
    # Both rates only grow along the curve: the last point allowed is the best.
    last = np.searchsorted(self.far, fars, side="right") - 1
    return np.where(fars < 1 / self.num_negatives, np.nan, self.tar[last])

  def equal_error_rate(self) -> float:
    """As the function `equal_error_rate`, from a curve at hand."""
    far, missed = self.far, 1 - self.tar
    # From -1 to 1, rising at each point, for each accepts at least one pair.
    difference = far - missed
    right = int(np.argmax(difference >= 0))
    left = right - 1
    share = -difference[left] / (difference[right] - difference[left])
    return float(far[left] + share * (far[right] - far[left]))

  def auc(self) -> float:
    """As the function `auc`, from a curve at hand."""
    return float(np.trapezoid(self.tar, self.far))


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
  """The ROC curve at every distinct score.

  Args:
    scores: similarity of each pair, higher is more alike, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.

  Returns:
    The curve, from (0, 0), where nothing is accepted, to (1, 1).
  """
  scores, same = _checked(scores, same)
  order = np.argsort(-scores, kind="stable")
  distinct, positives, negatives = _accepted(scores[order], same[order])
  return Roc(
    thresholds=np.concatenate([[np.inf], distinct]),
    far=negatives / negatives[-1],
    tar=positives / positives[-1],
    num_negatives=int(negatives[-1]),
  )


def tar_at_far(
  scores: np.ndarray, same: np.ndarray, fars: Sequence[float]
) -> np.ndarray:
  """The largest TAR that a threshold reaches with a FAR of at most `fars`.

  Args:
    scores: similarity of each pair, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.
    fars: the false accept rates allowed, [F], each above 0 and up to 1.

  Returns:
    TAR, float64 [F]. NaN where fewer than one of the negative pairs could be
    accepted (a FAR below 1 / negatives): the pairs cannot measure such a rate.
  """
  return roc(scores, same).tar_at_far(fars)


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
  """The rate at which false accepts and false rejects are equally frequent.

  Where no threshold makes them equal, the crossing on the straight line between
  the two neighbouring points of the ROC curve.

  Args:
    scores: similarity of each pair, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.

  Returns:
    The rate, from 0 (the scores separate the two kinds) to 1.
  """
  return roc(scores, same).equal_error_rate()


def auc(scores: np.ndarray, same: np.ndarray) -> float:
  """The area under the ROC curve.

  It is the chance that a random positive pair scores above a random negative
  one, a tie counting half: the Mann-Whitney statistic over its maximum
  (https://doi.org/10.1214/aoms/1177730491).

  Args:
    scores: similarity of each pair, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.

  Returns:
    The area, from 0 to 1; one half for scores that say nothing.
  """
  return roc(scores, same).auc()


def kfold_accuracy(
  scores: np.ndarray, same: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
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


def verify(
  scores: np.ndarray,
  same: np.ndarray,
  folds: np.ndarray,
  fars: Sequence[float],
) -> dict[str, float]:
  """Every metric of a verification protocol, by its name in the logs.

  Args:
    scores: similarity of each pair, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.
    folds: the fold of each pair, integers [P], at least two different ones.
    fars: the false accept rates at which to report TAR.

  Returns:
    "accuracy" and "threshold": means over the folds of `kfold_accuracy`;
    "accuracy_std": standard deviation of the accuracy over the folds (divided
    by K, not K - 1; LFW's standard error of the mean is it over sqrt(K - 1));
    "eer", "auc", and for each FAR a key such as "tar@1e-3", NaN where the pairs
    are too few to measure it.
  """
  accuracies, thresholds = kfold_accuracy(scores, same, folds)
  curve = roc(scores, same)
  tars = curve.tar_at_far(fars)
  return {
    "accuracy": float(accuracies.mean()),
    "accuracy_std": float(accuracies.std()),
    "threshold": float(thresholds.mean()),
    "eer": curve.equal_error_rate(),
    "auc": curve.auc(),
  } | {tar_name(f): float(t) for f, t in zip(fars, tars, strict=True)}


def tar_name(far: float) -> str:
  """The metric's name for TAR at this FAR: 0.001 is "tar@1e-3"."""
  mantissa, exponent = f"{far:e}".split("e")
  return f"tar@{float(mantissa):g}e{int(exponent)}"


def pair_scores(
  embeddings: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
  """The cosine between the two embeddings of each pair.

  Sums run in float64 and each embedding is divided by its own length, so that
  rows normalised in float32 leave no trace of their rounding. Pairs are walked
  in chunks, so `embeddings` may be a memory map larger than the memory.

  Args:
    embeddings: float32 [N, D], a row per image.
    first: index of each pair's first image, integers [P].
    second: index of each pair's second image, integers [P].

  Returns:
    The cosines, float64 [P], within [-1, 1].

  Raises:
    InputError: an embedding is not finite, or is zero and has no direction.
  """
  first, second = np.asarray(first), np.asarray(second)
  if first.shape != second.shape:
    raise ValueError(f"{first.shape} first images, {second.shape} second ones.")
  lengths = np.empty(len(embeddings))
  for rows in _chunks(len(embeddings), embeddings.shape[1]):
    lengths[rows] = np.sqrt(_dot(embeddings[rows], embeddings[rows]))
  # A float64 sum of squared float32 cannot overflow: only bad rows fail here.
  bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
  if len(bad):
    raise InputError(
      f"embeddings: {len(bad)} of {len(lengths)} rows are not finite or are all"
      f" zero, the first of them row {bad[0]}; embed those images again with"
      " parameters that are finite."
    )
  cosines = np.empty(len(first))
  for pairs in _chunks(len(first), embeddings.shape[1]):
    i, j = first[pairs], second[pairs]
    cosines[pairs] = _dot(embeddings[i], embeddings[j])
    cosines[pairs] /= lengths[i] * lengths[j]
  return np.clip(cosines, -1, 1)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Spearman's rank correlation (https://doi.org/10.2307/1412159).

  Args:
    x: [N], finite.
    y: [N], finite.

  Returns:
    Pearson's correlation of the ranks, tied values sharing their mean rank,
    from -1 to 1; NaN where `x` or `y` has fewer than two distinct values.
  """
  x, y = np.asarray(x), np.asarray(y)
  if x.shape != y.shape or x.ndim != 1:
    raise ValueError(f"Expected two vectors [N]; got {x.shape} and {y.shape}.")
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError("Values that are not finite have no rank.")
  x, y = _centred_ranks(x), _centred_ranks(y)
  spread = np.sqrt((x @ x) * (y @ y))
  return float(x @ y / spread) if spread > 0 else float("nan")


def _centred_ranks(values):
  """Ranks less their mean; tied values share the mean of their ranks."""
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  ranks = np.cumsum(counts) - (counts - 1) / 2
  return ranks[inverse] - (len(values) + 1) / 2


def _checked(scores, same):
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


def _accepted(scores, same):
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


def _best_threshold(scores, same):
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


def _chunks(count, size):
  """Slices over `count` rows of `size` numbers, about 4 million at a time."""
  step = max(1, 2**22 // max(1, size))
  return [slice(i, min(i + step, count)) for i in range(0, count, step)]


def _dot(a, b):
  """Inner products of rows in float64, without a float64 copy of the rows."""
  return np.einsum("nd,nd->n", a, b, dtype=np.float64)
