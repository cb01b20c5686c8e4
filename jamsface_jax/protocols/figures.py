"""Figures that several protocols share, by their metric names."""

from collections.abc import Sequence

import numpy as np

from jamsface_jax.metrics.bootstrap import SearchResampler, interval
from jamsface_jax.metrics.identification import Identification, identify
from jamsface_jax.metrics.roc import Roc, rate_name, tar_name
from jamsface_jax.metrics.score_counts import ScoreCounts
from jamsface_jax.protocols.template_files import SubjectList
from jamsface_jax.protocols.test_set import SEED, JudgingSettings

RANKS = (1, 5, 10)
FPIRS = (1e-1, 1e-2)


def supported(fars: Sequence[float] | None, num_negatives: int) -> list[float]:
  """The FARs that so many negatives can measure, falling."""
  if fars is None:
    fars = [float(f"1e-{k}") for k in range(1, 16)]
  return [far for far in fars if far >= 1 / num_negatives]


def curve_metrics(curve: Roc, fars: Sequence[float] | None) -> dict[str, float]:
  """EER, AUC, TAR at each FAR that the negatives support and at their least."""
  fars = supported(fars, curve.num_negatives)
  tars = dict(zip(fars, curve.tar_at_far(fars).tolist(), strict=True))
  (smallest,) = curve.tar_at_far([1 / curve.num_negatives])
  return (
    {"eer": curve.equal_error_rate(), "auc": curve.auc()}
    | {tar_name(far): tar for far, tar in tars.items()}
    | {"tar@smallest": float(smallest)}
  )


def search_intervals(
  found: Identification, settings: JudgingSettings
) -> dict[str, tuple[float, float]]:
  """Intervals of the metrics of a search; see `bootstrap`."""
  if not settings.replicates:
    return {}
  resampler = SearchResampler(found, RANKS, FPIRS)
  rng = np.random.default_rng(SEED)
  rows = np.array([resampler.draw(rng) for _ in range(settings.replicates)])
  names = search_metrics(found)
  return {
    name: interval(values)
    for name, values in zip(all_search_names(), rows.T, strict=True)
    if name in names
  }


def all_search_names() -> list[str]:
  """Metrics of a search in an open set."""
  return [*map(rank_name, RANKS), *(f"tpir@{rate_name(f)}" for f in FPIRS)]


def search_metrics(found: Identification) -> dict[str, float]:
  """Rates at `RANKS` and at those of `FPIRS` that can be measured."""
  rates = [*found.cmc(RANKS), *found.tpir_at_fpir(FPIRS)]
  return {
    name: float(rate)
    for name, rate in zip(all_search_names(), rates, strict=True)
    if not np.isnan(rate)
  }


def search(
  units: np.ndarray, probes: SubjectList, gallery: SubjectList
) -> Identification:
  """Searches templates among templates."""
  return identify(
    units[probes.templates],
    probes.subjects,
    units[gallery.templates],
    gallery.subjects,
    same_images=False,
  )


def pair_facts(score_counts: ScoreCounts) -> dict[str, object]:
  """How many pairs there were, and what they can measure."""
  return {
    "pairs": score_counts.num_positives + score_counts.curve.num_negatives,
    "positive_pairs": score_counts.num_positives,
    "negative_pairs": score_counts.curve.num_negatives,
    "smallest_far": 1 / score_counts.curve.num_negatives,
  }


def search_facts(found: Identification) -> dict[str, object]:
  """How many searches there were."""
  return {
    "mated_probes": len(found.ranks),
    "other_probes": len(found.other_scores),
    "gallery": found.gallery_size,
  }


def rank_name(k: int) -> str:
  """The metric's name: "rank1"."""
  return f"rank{k}"
