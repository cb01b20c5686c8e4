"""Confidence intervals by resampling people.

Pairs that share a person rise and fall together, so resampling pairs would make
intervals too narrow. Resampled are identities, with replacement: one that is
drawn w times counts w times in each of its positive pairs, and a negative pair
counts the product of its two (the subsets bootstrap of Bolle, Ratha and
Pankanti, 2004, with the weights of Snijders and Borgatti's vertex bootstrap,
1999). The images and pairs of a person stay as they are: an interval says how
the figure would vary with other people, not with other images of these.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from jamsface_jax.metrics.identification import Identification
from jamsface_jax.metrics.roc import Roc

LEVEL = 0.95
SEED = 0  # Of all resampling: the same embeddings give the same intervals.


class PairResampler:
  """Draws ROC curves of one set of pairs over resampled identities.

  Args:
    scores: similarity of each pair, [P], finite.
    same: whether the pair shows one person, bool [P], of both kinds.
    first: the identity of each pair's first image, integers [P] in [0, I).
    second: the identity of each pair's second image, integers [P] in [0, I);
      equal to the first where `same`.
  """

  def __init__(
    self,
    scores: Float[np.ndarray, " p"],
    same: Bool[np.ndarray, " p"],
    first: Int[np.ndarray, " p"],
    second: Int[np.ndarray, " p"],
  ):
    self._first, self._second, self._same = first, second, same
    self._identities = int(max(first.max(), second.max())) + 1
    # Falling; sorted once, since only the weights change.
    positives = np.flatnonzero(same)
    negatives = np.flatnonzero(~same)
    positives = positives[np.argsort(-scores[positives], kind="stable")]
    negatives = negatives[np.argsort(-scores[negatives], kind="stable")]
    self._positives = first[positives]
    self._negatives = first[negatives], second[negatives]
    falling, counts = np.unique(-scores[positives], return_counts=True)
    self._thresholds = -falling.astype(np.float64)
    self._reach = np.cumsum(counts) - 1
    negated = -scores[negatives]
    self._above = np.searchsorted(negated, falling, "left")
    self._accepted = np.searchsorted(negated, falling, "right")

  def draw(
    self, rng: np.random.Generator
  ) -> tuple[Roc, Float64[np.ndarray, " p"]] | None:
    """Resamples the identities once.

    Args:
      rng: what draws them.

    Returns:
      The curve, and the weight of each pair, float64 [P]; None if the sample
      has no positive or no negative pair.
    """
    drawn = rng.integers(0, self._identities, self._identities)
    weights = np.bincount(drawn, minlength=self._identities).astype(np.float64)
    positives = np.cumsum(weights[self._positives])
    first, second = self._negatives
    negatives = np.cumsum(np.append(0.0, weights[first] * weights[second]))
    if positives[-1] == 0 or negatives[-1] == 0:
      return None
    curve = Roc(
      thresholds=self._thresholds,
      tar=positives[self._reach] / positives[-1],
      far_above=negatives[self._above] / negatives[-1],
      far=negatives[self._accepted] / negatives[-1],
      num_negatives=len(first),
    )
    pairs = weights[self._first] * np.where(
      self._same, 1, weights[self._second]
    )
    return curve, pairs


def interval(values: Float[np.ndarray, " r"]) -> tuple[float, float]:
  """The percentile interval of resampled values, at the level `LEVEL`.

  Args:
    values: a figure of each resample, [R]; NaN where it could not be measured.
  """
  tail = 100 * (1 - LEVEL) / 2
  if np.isnan(values).all():
    return np.nan, np.nan
  low, high = np.nanpercentile(values, [tail, 100 - tail])
  return float(low), float(high)


class SearchResampler:
  """Draws rates of identification over resampled probe identities.

  The gallery stays as it is.

  Args:
    found: the search of all probes.
    ranks: the ranks at which to give the share of mated probes.
    fpirs: the FPIRs at which to give TPIR.
  """

  def __init__(
    self, found: Identification, ranks: Sequence[int], fpirs: Sequence[float]
  ):
    self._found, self._ranks, self._fpirs = found, ranks, fpirs
    count = len(found.subjects)
    subjects = np.concatenate([found.subjects, found.other_subjects])
    _, numbers = np.unique(subjects, return_inverse=True)
    self._identities = numbers.max() + 1
    self._order = np.argsort(-found.other_scores, kind="stable")
    self._mated = numbers[:count]
    self._others = numbers[count:][self._order]
    self._falling = found.other_scores[self._order]

  def draw(self, rng: np.random.Generator) -> Float64[np.ndarray, " k"]:
    """Resamples the identities once.

    Args:
      rng: what draws them.

    Returns:
      The shares at the ranks, then TPIR at the FPIRs, float64; NaN where the
      sample has no probe to measure one.
    """
    drawn = rng.integers(0, self._identities, self._identities)
    weights = np.bincount(drawn, minlength=self._identities)
    mated, found = weights[self._mated], self._found
    rates = [mated[found.ranks <= k].sum() for k in self._ranks]
    # Falling, with one answer too many in sight: mates must score above it.
    others = np.cumsum(weights[self._others])
    for fpir in self._fpirs:
      if not len(others) or not others[-1] or fpir < 1 / others[-1]:
        rates.append(np.nan)
        continue
      too_many = np.searchsorted(others / others[-1], fpir, "right")
      floor = np.append(self._falling, -np.inf)[too_many]
      accepted = (found.ranks == 1) & (found.mate_scores > floor)
      rates.append(mated[accepted].sum())
    return np.array(rates, np.float64) / (mated.sum() or np.nan)
