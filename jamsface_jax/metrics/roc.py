"""The ROC curve, exact, of as many scores as there are.

A threshold t accepts every pair whose score is at least t, so tied scores are
accepted or rejected together and nothing depends on the order of the pairs. TAR
is the share of positive pairs accepted, FAR that of negative pairs.

TAR changes only at the score of a positive pair. So the curve is known, without
loss, from two counts for each distinct positive score: the negatives above it
and the negatives that reach it. Negatives can therefore come in blocks and be
forgotten: the memory is that of the positives and of one block.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Real
from numpy.typing import ArrayLike

Rates: TypeAlias = Sequence[float] | Float[np.ndarray, " f"]


@dataclasses.dataclass(frozen=True, eq=False)
class Roc:
  """The receiver operating characteristic at each distinct positive score.

  Attributes:
    thresholds: distinct scores of positive pairs, float64 [T], falling.
    tar: share of positives that reach each threshold, float64 [T], up to 1.
    far_above: share of negatives above each threshold, float64 [T].
    far: share of negatives that reach each threshold, float64 [T].
    num_negatives: how many negative pairs these shares are of.
  """

  thresholds: Float64[np.ndarray, " t"]
  tar: Float64[np.ndarray, " t"]
  far_above: Float64[np.ndarray, " t"]
  far: Float64[np.ndarray, " t"]
  num_negatives: int

  def tar_at_far(self, fars: Rates) -> Float64[np.ndarray, " f"]:
    """The largest TAR that a threshold reaches with a FAR of at most `fars`.

    Args:
      fars: the false accept rates allowed, [F], each above 0 and up to 1.

    Returns:
      TAR, float64 [F]. NaN where fewer than one of the negative pairs could be
      accepted (a FAR below 1 / negatives): they cannot measure such a rate.
    """
    return self._at_far(fars, np.append(0.0, self.tar))

  def threshold_at_far(self, fars: Rates) -> Float64[np.ndarray, " f"]:
    """The smallest of `thresholds` with a FAR of at most `fars`.

    Args:
      fars: as in `tar_at_far`.

    Returns:
      float64 [F]; infinity where even the highest accepts too many, and NaN
      where the negatives cannot measure the rate.
    """
    return self._at_far(fars, np.append(np.inf, self.thresholds))

  def _at_far(
    self, fars: Rates, values: Float64[np.ndarray, " k"]
  ) -> Float64[np.ndarray, " f"]:
    """The value at each FAR, of none accepted and of each threshold's."""
    allowed = np.asarray(fars, np.float64)
    if not ((allowed > 0) & (allowed <= 1)).all():
      raise ValueError(
        f"A FAR lies above 0 and up to 1; got {allowed.tolist()}."
      )
    # Both rates only grow along the curve: the last point allowed is the best.
    last = np.searchsorted(self.far, allowed, side="right")
    return np.where(allowed < 1 / self.num_negatives, np.nan, values[last])

  def corners(
    self,
  ) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """The curve's corners from (0, 0) to (1, 1).

    Straight lines join them: along FAR between two positive scores, and aslant
    where a positive and a negative score are equal.

    Returns:
      FAR and TAR, float64 [2 T + 2] each.
    """
    far = np.column_stack([self.far_above, self.far]).ravel()
    tar = np.column_stack([np.append(0.0, self.tar[:-1]), self.tar]).ravel()
    return np.concatenate([[0], far, [1]]), np.concatenate([[0], tar, [1]])

  def equal_error_rate(self) -> float:
    """The rate at which false accepts and false rejects are equally frequent.

    Where no threshold makes them equal, the crossing on the straight line
    between the two neighbouring corners of the curve.

    Returns:
      The rate, from 0 (the scores separate the two kinds) to 1.
    """
    far, tar = self.corners()
    # From -1 to 1 and never falling: each threshold accepts all that went
    # before.
    difference = far - (1 - tar)
    right = int(np.argmax(difference >= 0))
    left = right - 1
    share = -difference[left] / (difference[right] - difference[left])
    return float(far[left] + share * (far[right] - far[left]))

  def auc(self) -> float:
    """The area under the curve.

    It is the chance that a random positive pair scores above a random negative
    one, a tie counting half: the Mann-Whitney statistic over its maximum
    (https://doi.org/10.1214/aoms/1177730491).

    Returns:
      The area, from 0 to 1; one half for scores that say nothing.
    """
    far, tar = self.corners()
    return float(np.trapezoid(tar, far))


@dataclasses.dataclass(frozen=True, eq=False)
class RocLine:
  """A ROC curve as it is drawn and stored, at some of its points.

  Attributes:
    fars: float64 [F], rising; the first is the smallest that can be measured.
    tars: the TAR that `Roc.tar_at_far` gives there, float64 [F].
    auc: the area under the whole curve.
  """

  fars: Float64[np.ndarray, " f"]
  tars: Float64[np.ndarray, " f"]
  auc: float

  @classmethod
  def of(cls, curve: Roc) -> "RocLine":
    """Takes 1,000 of what may be millions of points: what a picture shows."""
    fars = np.geomspace(1 / curve.num_negatives, 1, 1000)
    # Round powers of ten too, so that a reader finds the usual figures.
    powers = 10.0 ** np.arange(np.ceil(np.log10(fars[0]) - 1e-9), 0)
    fars = np.union1d(np.clip(fars, fars[0], 1), powers)
    return cls(fars, curve.tar_at_far(fars), curve.auc())


class RocCounter:
  """Counts negatives, block by block, against positives that are known.

  Args:
    positives: scores of all positive pairs, [P], finite, at least one. Counting
      takes T log n steps for a block of n scores beside sorting it, so make
      blocks as large as the T distinct positives or larger.

  Raises:
    ValueError: no positive pair, or a score that is not finite.
  """

  def __init__(self, positives: Real[np.ndarray, " p"]):
    positives = _finite(positives)
    if not len(positives):
      raise ValueError("Need positive pairs; got none.")
    self._scores, counts = np.unique(positives, return_counts=True)
    # How many positives reach each distinct score, from the lowest one on.
    self._reach = np.cumsum(counts[::-1])[::-1]
    self._below = np.zeros(len(self._scores), np.int64)
    self._up_to = np.zeros(len(self._scores), np.int64)
    self._negatives = 0

  def add(self, negatives: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Counts negatives.

    Args:
      negatives: scores, [n], finite, of the dtype of the positives: a rounded
        score would be counted on the wrong side of its neighbour.

    Returns:
      The negatives in rising order, for who counts them otherwise too.

    Raises:
      ValueError: another dtype, or a score that is not finite.
    """
    negatives = _finite(negatives)
    if negatives.dtype != self._scores.dtype:
      raise ValueError(
        f"Positives are {self._scores.dtype}, negatives {negatives.dtype}."
      )
    # Sorting and then finding the few in the many beats the other way round.
    negatives = np.sort(negatives)
    self._below += np.searchsorted(negatives, self._scores, side="left")
    self._up_to += np.searchsorted(negatives, self._scores, side="right")
    self._negatives += len(negatives)
    return negatives

  def roc(self) -> Roc:
    """The curve of all that was counted; ValueError without a negative."""
    if not self._negatives:
      raise ValueError("Need negative pairs; got none.")
    falling = slice(None, None, -1)
    return Roc(
      thresholds=self._scores[falling].astype(np.float64),
      tar=self._reach[falling] / self._reach[0],
      far_above=(self._negatives - self._up_to[falling]) / self._negatives,
      far=(self._negatives - self._below[falling]) / self._negatives,
      num_negatives=self._negatives,
    )


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
  """The ROC curve of pairs that are all at hand.

  Args:
    scores: similarity of each pair, higher is more alike, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.

  Raises:
    ValueError: none of a kind, a score that is not finite, or other shapes.
  """
  scores, same = np.asarray(scores), np.asarray(same, bool)
  if scores.ndim != 1 or scores.shape != same.shape:
    raise ValueError(
      f"Expected scores [P] and same [P]; got {scores.shape}, {same.shape}."
    )
  counter = RocCounter(scores[same])
  counter.add(scores[~same])
  return counter.roc()


def tar_name(far: float) -> str:
  """The metric's name for TAR at this FAR: 0.001 is "tar@1e-3"."""
  return "tar@" + rate_name(far)


def rate_name(rate: float) -> str:
  """A short name of a rate: 0.001 is "1e-3"."""
  mantissa, exponent = f"{rate:e}".split("e")
  return f"{float(mantissa):g}e{int(exponent)}"


def _finite(scores: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
  """Scores as floating-point numbers, or ValueError."""
  if not np.issubdtype(scores.dtype, np.floating):
    scores = scores.astype(np.float64)
  if not np.isfinite(scores).all():
    raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are not finite.")
  return scores
