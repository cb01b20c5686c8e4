"""Figures of searches, by the names of their metrics."""

import numpy as np

from jamsface_jax.metrics.bootstrap import SEED, SearchResampler, interval
from jamsface_jax.metrics.identification import Identification
from jamsface_jax.metrics.roc import rate_name
from jamsface_jax.protocols.test_set import JudgingSettings

RANKS = (1, 5, 10)
FPIRS = (1e-1, 1e-2)


def rank_name(k: int) -> str:
  """The metric's name: "rank1"."""
  return f"rank{k}"


def search_metrics(found: Identification) -> dict[str, float]:
  """Rates at `RANKS` and at those of `FPIRS` that can be measured."""
  rates = [*found.cmc(RANKS), *found.tpir_at_fpir(FPIRS)]
  return {
    name: float(rate)
    for name, rate in zip(_metric_names(), rates, strict=True)
    if not np.isnan(rate)
  }


def search_intervals(
  found: Identification, settings: JudgingSettings
) -> dict[str, tuple[float, float]]:
  """Intervals of `search_metrics`, see `bootstrap`; {} without replicates."""
  if not settings.replicates:
    return {}
  resampler = SearchResampler(found, RANKS, FPIRS)
  rng = np.random.default_rng(SEED)
  rows = np.array([resampler.draw(rng) for _ in range(settings.replicates)])
  names = search_metrics(found)
  return {
    name: interval(values)
    for name, values in zip(_metric_names(), rows.T, strict=True)
    if name in names
  }


def search_facts(found: Identification) -> dict[str, int]:
  """How many searches there were."""
  return {
    "mated_probes": len(found.ranks),
    "other_probes": len(found.other_scores),
    "gallery": found.gallery_size,
  }


def _metric_names() -> list[str]:
  """Metrics of a search in an open set."""
  return [*map(rank_name, RANKS), *(f"tpir@{rate_name(f)}" for f in FPIRS)]
