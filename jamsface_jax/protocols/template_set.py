"""Verification and identification of templates, as IJB asks."""

from collections.abc import Iterable, Sequence

import numpy as np

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.cosines import many_pair_cosines
from jamsface_jax.metrics.roc import tar_name
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.protocols.figures import (
  RANKS,
  curve_metrics,
  pair_facts,
  rank_name,
  search,
  search_facts,
  search_intervals,
  search_metrics,
  supported,
)
from jamsface_jax.protocols.pair_list import pair_intervals, people
from jamsface_jax.protocols.pooling import Pooling, TemplatePooler
from jamsface_jax.protocols.template_files import Templates
from jamsface_jax.protocols.test_set import (
  Evaluation,
  JudgingSettings,
  prefixed,
)


class TemplateSet:
  """Templates compared and searched, as IJB-B and IJB-C.

  Args:
    name: of the set.
    templates: which they are.
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
    fars = supported(settings.fars, int((~self._templates.same).sum()))
    names = ["auc", *map(tar_name, fars)]
    if self._templates.galleries:
      for probes in self._templates.probes:
        names += [f"{probes.name}/{rank_name(k)}" for k in RANKS]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self, blocks: Iterable[np.ndarray], settings: JudgingSettings, *, what: str
  ) -> list[Evaluation]:
    """See `TestSet`; an evaluation for each pooling."""
    templates = self._templates
    self.check(settings.poolings)
    pooler = TemplatePooler(
      templates.templates,
      templates.media,
      templates.scores,
      poolings=settings.poolings,
      what=what,
    )
    for block in blocks:
      pooler.add(block)
    return [
      self._judge(units, pooling, settings)
      for pooling, units in pooler.units().items()
    ]

  def _judge(self, units, pooling, settings):
    templates = self._templates
    first, second, same = templates.first, templates.second, templates.same
    scores = many_pair_cosines(units, first, second)
    score_counts = count_scores(scores, same, first, second)
    metrics = curve_metrics(score_counts.curve, settings.fars)
    intervals = {}
    if settings.replicates:
      identities = people(len(units), first, second, same, self._subjects())
      intervals = pair_intervals(
        (scores, same, first, second, identities), settings, None
      )
    searches = {}
    for probes in templates.probes if templates.galleries else ():
      each = [search(units, probes, other) for other in templates.galleries]
      for gallery, found in zip(templates.galleries, each, strict=True):
        name = f"{probes.name}/{gallery.name}"
        searches[name] = found
        metrics |= prefixed(name, search_metrics(found))
        intervals |= prefixed(name, search_intervals(found, settings))
      all_metrics = [search_metrics(found) for found in each]
      metrics |= {
        f"{probes.name}/{name}": float(np.mean([m[name] for m in all_metrics]))
        for name in all_metrics[0]
      }
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
      facts=pair_facts(score_counts)
      | {
        "templates": len(units),
        "images": len(self.ids),
        "flip_sum": settings.flip,
        "detector_score": pooling.detector,
        "feature_norm": pooling.norm,
      }
      | {
        f"{key} {k}": v
        for key, one in searches.items()
        for k, v in search_facts(one).items()
      },
      score_counts=score_counts,
      searches=searches,
    )

  def _subjects(self):
    """The person of each template, from the lists; None if one is missing."""
    subjects = np.full(self._templates.templates.max() + 1, -1)
    for one in self._templates.galleries + self._templates.probes:
      subjects[one.templates] = one.subjects
    compared = np.union1d(self._templates.first, self._templates.second)
    return None if (subjects[compared] < 0).any() else subjects
