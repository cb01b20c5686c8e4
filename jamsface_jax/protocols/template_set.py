"""Verification and identification of templates, as IJB asks."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int64

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.cosines import many_pair_cosines
from jamsface_jax.metrics.identification import Identification, identify
from jamsface_jax.metrics.identities import find_identities
from jamsface_jax.metrics.roc import tar_name
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.protocols.pair_figures import (
  curve_metrics,
  pair_facts,
  pair_intervals,
  supported_fars,
)
from jamsface_jax.protocols.pooling import Pooling, TemplatePooler
from jamsface_jax.protocols.search_figures import (
  RANKS,
  rank_name,
  search_facts,
  search_intervals,
  search_metrics,
)
from jamsface_jax.protocols.template_files import Templates
from jamsface_jax.protocols.test_set import (
  Evaluation,
  JudgingSettings,
  prefixed,
)


class TemplateSet:
  """Templates compared in pairs, and searched in galleries if there are any.

  Args:
    name: the name of the set.
    templates: which images make them up, and which are compared.

  Attributes:
    has_scores: whether the detector's scores are known.
  """

  def __init__(self, name: str, templates: Templates):
    self.name = name
    self.ids = np.arange(len(templates.templates))
    self.has_scores = templates.scores is not None
    self._templates = templates

  def check(self, poolings: Sequence[Pooling]) -> None:
    """Refuses poolings that these templates cannot have.

    Raises:
      InputError: no detector's scores, which one needs.
    """
    if not self.has_scores and any(p.detector for p in poolings):
      raise InputError(
        f"data set {self.name!r} has no detector scores, which D1 needs: choose"
        " a pooling with D0, or write the set again with its scores."
      )

  def rising_metrics(self, settings: JudgingSettings) -> list[str]:
    """See `TestSet`."""
    fars = supported_fars(settings.fars, int((~self._templates.same).sum()))
    names = ["auc", *map(tar_name, fars)]
    if self._templates.galleries:
      for probes in self._templates.probes:
        names += [f"{probes.name}/{rank_name(k)}" for k in RANKS]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self,
    blocks: Iterable[Float[np.ndarray, "k d"]],
    settings: JudgingSettings,
    *,
    what: str,
  ) -> list[Evaluation]:
    """See `TestSet`; an evaluation for each pooling."""
    self.check(settings.poolings)
    pooler = TemplatePooler(
      self._templates.templates,
      self._templates.media,
      self._templates.scores,
      poolings=settings.poolings,
      what=what,
    )
    for block in blocks:
      pooler.add(block)
    return [
      self._judge(units, pooling, settings)
      for pooling, units in pooler.units().items()
    ]

  def _judge(
    self,
    units: Float32[np.ndarray, "t d"],
    pooling: Pooling,
    settings: JudgingSettings,
  ) -> Evaluation:
    first, second = self._templates.first, self._templates.second
    same = self._templates.same
    scores = many_pair_cosines(units, first, second)
    counts = count_scores(scores, same, first, second)
    metrics = curve_metrics(counts.curve, settings.fars)
    intervals = {}
    if settings.replicates:
      people = find_identities(
        len(units), first, second, same, self._subjects()
      )
      intervals = pair_intervals(
        scores, same, people[first], people[second], settings, right=None
      )
    searches = self._search(units)
    for probes, found in searches.items():
      for gallery, one in found.items():
        place = f"{probes}/{gallery}"
        metrics |= prefixed(place, search_metrics(one))
        intervals |= prefixed(place, search_intervals(one, settings))
      metrics |= prefixed(probes, _mean_metrics([*found.values()]))
    switches = f"{pooling}"
    if settings.flip is not None:
      switches = f"F{settings.flip:d}{pooling}"
    plain = settings.plain and pooling == settings.poolings[0]
    name = self.name if plain else f"{self.name}/{switches}"
    best = "tar@1e-4" if "tar@1e-4" in metrics else "auc"
    return Evaluation(
      name=name,
      headline=f"{best} {metrics[best]:.2%} on {len(scores):,} pairs of"
      f" {len(units):,} templates ({switches})",
      metrics=prefixed(name, metrics),
      intervals=prefixed(name, intervals),
      facts=pair_facts(counts)
      | {
        "templates": len(units),
        "images": len(self.ids),
        "flip_sum": settings.flip,
        "detector_score": pooling.detector,
        "feature_norm": pooling.norm,
      }
      | {
        f"{probes}/{gallery} {key}": value
        for probes, found in searches.items()
        for gallery, one in found.items()
        for key, value in search_facts(one).items()
      },
      score_counts=counts,
      searches={
        f"{probes}/{gallery}": one
        for probes, found in searches.items()
        for gallery, one in found.items()
      },
    )

  def _search(
    self, units: Float32[np.ndarray, "t d"]
  ) -> dict[str, dict[str, Identification]]:
    """Searches all probes in each gallery: by probes, then by gallery."""
    if not self._templates.galleries:
      return {}
    return {
      probes.name: {
        gallery.name: identify(
          units[probes.templates],
          probes.subjects,
          units[gallery.templates],
          gallery.subjects,
          same_images=False,
        )
        for gallery in self._templates.galleries
      }
      for probes in self._templates.probes
    }

  def _subjects(self) -> Int64[np.ndarray, " t"] | None:
    """The person of each template, from the lists; None if one is missing."""
    subjects = np.full(self._templates.templates.max() + 1, -1)
    for one in self._templates.galleries + self._templates.probes:
      subjects[one.templates] = one.subjects
    compared = np.union1d(self._templates.first, self._templates.second)
    return None if (subjects[compared] < 0).any() else subjects


def _mean_metrics(found: Sequence[Identification]) -> dict[str, float]:
  """The mean over galleries of each metric that all of them can measure."""
  each = [search_metrics(one) for one in found]
  return {
    name: float(np.mean([metrics[name] for metrics in each]))
    for name in each[0]
    if all(name in metrics for metrics in each)
  }
