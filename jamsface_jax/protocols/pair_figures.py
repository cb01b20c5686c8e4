"""Figures of pairs, by the names of their metrics."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jamsface_jax.metrics.bootstrap import SEED, PairResampler, interval
from jamsface_jax.metrics.roc import Roc, tar_name
from jamsface_jax.metrics.score_counts import ScoreCounts
from jamsface_jax.protocols.test_set import JudgingSettings


def supported_fars(
  fars: Sequence[float] | None, num_negatives: int
) -> list[float]:
  """Those of the FARs that so many negatives can measure.

  Args:
    fars: the rates wanted; None for all powers of ten, falling.
    num_negatives: how many negative pairs there are.
  """
  if fars is None:
    fars = [float(f"1e-{k}") for k in range(1, 16)]
  return [far for far in fars if far >= 1 / num_negatives]


def curve_metrics(curve: Roc, fars: Sequence[float] | None) -> dict[str, float]:
  """EER, AUC, TAR at each FAR that the negatives support and at their least."""
  fars = supported_fars(fars, curve.num_negatives)
  tars = dict(zip(fars, curve.tar_at_far(fars).tolist(), strict=True))
  (smallest,) = curve.tar_at_far([1 / curve.num_negatives])
  return (
    {"eer": curve.equal_error_rate(), "auc": curve.auc()}
    | {tar_name(far): tar for far, tar in tars.items()}
    | {"tar@smallest": float(smallest)}
  )


def pair_intervals(
  scores: Float[np.ndarray, " p"],
  same: Bool[np.ndarray, " p"],
  first: Int[np.ndarray, " p"],
  second: Int[np.ndarray, " p"],
  settings: JudgingSettings,
  *,
  right: Bool[np.ndarray, " p"] | None,
) -> dict[str, tuple[float, float]]:
  """Intervals of `curve_metrics` and of the accuracy, see `bootstrap`.

  Args:
    scores: similarity of each pair, [P].
    same: whether the pair shows one person, bool [P], of both kinds.
    first: the identity of each pair's first image, integers [P] from 0 on.
    second: the identity of each pair's second image, integers [P] from 0 on.
    settings: how to judge; {} without replicates.
    right: whether each decision was right, bool [P], for the accuracy; None for
      no accuracy. The thresholds stay as they are.
  """
  if not settings.replicates:
    return {}
  resampler = PairResampler(scores, same, first, second)
  rng = np.random.default_rng(SEED)
  rows = []
  for _ in range(settings.replicates):
    if drawn := resampler.draw(rng):
      curve, weights = drawn
      row = curve_metrics(curve, settings.fars)
      if right is not None:
        row["accuracy"] = float(weights @ right / weights.sum())
      rows.append(row)
  names = rows[0] if rows else {}
  return {name: interval(np.array([r[name] for r in rows])) for name in names}


def pair_facts(counts: ScoreCounts) -> dict[str, int | float]:
  """How many pairs there were, and what they can measure."""
  return {
    "pairs": counts.num_positives + counts.curve.num_negatives,
    "positive_pairs": counts.num_positives,
    "negative_pairs": counts.curve.num_negatives,
    "smallest_far": 1 / counts.curve.num_negatives,
  }
