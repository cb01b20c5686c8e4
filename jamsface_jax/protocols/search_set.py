"""Identification of single images, as TinyFace and MegaFace ask."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float32, Int

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.cosines import unit_rows
from jamsface_jax.metrics.identification import (
  identify,
  identify_among_distractors,
)
from jamsface_jax.protocols.search_figures import (
  RANKS,
  rank_name,
  search_facts,
  search_intervals,
  search_metrics,
)
from jamsface_jax.protocols.search_file import Search
from jamsface_jax.protocols.test_set import (
  Evaluation,
  JudgingSettings,
  collected,
  prefixed,
  result_name,
)


class SearchSet:
  """Single images searched in a gallery or among distractors.

  Args:
    name: the name of the set.
    search: who is searched where, by the numbers of the images.
  """

  def __init__(self, name: str, search: Search):
    self.name = name
    parts = search.probes, search.gallery, search.distractors
    self.ids = np.concatenate(parts)
    self._ends = np.cumsum([len(part) for part in parts])[:2]
    self._search = search

  def without(
    self, images: Int[np.ndarray, " k"]
  ) -> tuple["SearchSet", dict[str, int]]:
    """See `Divisible`."""
    old = self._search
    probes, gallery, distractors = (
      ~np.isin(part, images)
      for part in (old.probes, old.gallery, old.distractors)
    )
    left = Search(
      old.probes[probes],
      old.probe_subjects[probes],
      old.gallery[gallery],
      old.gallery_subjects[gallery],
      old.distractors[distractors],
    )
    if len(old.gallery):
      is_search = np.isin(left.probe_subjects, left.gallery_subjects).any()
    else:
      people = np.unique(left.probe_subjects)
      is_search = len(people) < len(left.probes) and len(left.distractors) > 0
    if not is_search:
      raise InputError(
        f"{self.name}: no probe whose image could be read has another image to"
        " be found: mend the images."
      )
    counts = {"images": int(np.isin(self.ids, images).sum())}
    counts["probes"] = int((~probes).sum())
    return SearchSet(self.name, left), counts

  def rising_metrics(self, settings: JudgingSettings) -> list[str]:
    """See `TestSet`."""
    return [f"{self.name}/{rank_name(k)}" for k in RANKS]

  def judge(
    self,
    blocks: Iterable[Float[np.ndarray, "k d"]],
    settings: JudgingSettings,
    *,
    what: str,
  ) -> list[Evaluation]:
    """See `TestSet`."""
    units = unit_rows(collected(blocks, len(self.ids)), what=what)
    probes, gallery, distractors = np.split(units, self._ends)
    if len(gallery):
      return [self._in_gallery(probes, gallery, distractors, settings)]
    return [self._among_distractors(probes, distractors, settings)]

  def _in_gallery(
    self,
    probes: Float32[np.ndarray, "q d"],
    gallery: Float32[np.ndarray, "g d"],
    distractors: Float32[np.ndarray, "f d"],
    settings: JudgingSettings,
  ) -> Evaluation:
    """All probes in one gallery, distractors included, as TinyFace."""
    nobody = np.full(len(distractors), -1)
    found = identify(
      probes,
      self._search.probe_subjects,
      np.concatenate([gallery, distractors]),
      np.concatenate([self._search.gallery_subjects, nobody]),
      same_images=False,
    )
    metrics = search_metrics(found)
    name = result_name(self.name, settings)
    return Evaluation(
      name=name,
      headline=f"rank 1 {metrics['rank1']:.2%} of {len(found.ranks):,} probes"
      f" among {found.gallery_size:,}",
      metrics=prefixed(name, metrics),
      intervals=prefixed(name, search_intervals(found, settings)),
      facts=search_facts(found)
      | {"distractors": len(distractors), "flip_sum": settings.flip},
      searches={name: found},
    )

  def _among_distractors(
    self,
    probes: Float32[np.ndarray, "q d"],
    distractors: Float32[np.ndarray, "f d"],
    settings: JudgingSettings,
  ) -> Evaluation:
    """Each probe for each other of its person, alone there, as MegaFace."""
    powers = 10 ** np.arange(1, 1 + int(np.log10(len(distractors))))
    sizes = np.union1d(powers, len(distractors)).tolist()
    ranks = identify_among_distractors(
      probes, self._search.probe_subjects, distractors, sizes
    )
    rates = [
      {rank_name(k): float(np.mean(row <= k)) for k in RANKS} for row in ranks
    ]
    # The plain name is of all distractors; rank1@1000 of the first 1,000.
    metrics = {
      f"{key}@{size}": rate
      for size, of_size in zip(sizes, rates, strict=True)
      for key, rate in of_size.items()
    } | rates[-1]
    name = result_name(self.name, settings)
    return Evaluation(
      name=name,
      headline=f"rank 1 {metrics['rank1']:.2%} of {ranks.shape[1]:,} searches"
      f" among {len(distractors):,} distractors",
      metrics=prefixed(name, metrics),
      intervals={},
      facts={
        "probes": len(probes),
        "searches": ranks.shape[1],
        "distractors": len(distractors),
        "flip_sum": settings.flip,
      },
    )
