"""Identification: a probe is searched in a gallery (1:N).

A probe is mated if the gallery has its person. Of a mated probe the rank of its
best mate counts: one more than the gallery entries of other people that score
at least as much, so a tie is lost. In an open set a search may end without an
answer: a threshold on the best score decides. TPIR is the share of mated probes
whose mate is first and reaches the threshold; FPIR is the share of probes
without a mate whose best score does (ISO/IEC 19795-1; NIST's FNIR is 1 - TPIR).

A gallery is walked in tiles: it may have millions of entries.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64

from jamsface_jax.metrics.cosines import tiles
from jamsface_jax.metrics.roc import Rates


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
  """What came out of searching all probes in one gallery.

  Attributes:
    ranks: the rank of the best mate of each mated probe, int64 [M], from 1 on.
    mate_scores: cosine of that mate, float [M].
    subjects: the person of each mated probe, integers [M].
    other_scores: highest cosine of each probe without a mate, float [U].
    other_subjects: the person of each, integers [U].
    gallery_size: how many entries the gallery has.
  """

  ranks: Int64[np.ndarray, " m"]
  mate_scores: Float[np.ndarray, " m"]
  subjects: Int[np.ndarray, " m"]
  other_scores: Float[np.ndarray, " u"]
  other_subjects: Int[np.ndarray, " u"]
  gallery_size: int

  def rank(self, k: int) -> float:
    """Share of mated probes with a mate among the first `k`."""
    return float(np.mean(self.ranks <= k))

  def cmc(self, ks: Sequence[int]) -> Float64[np.ndarray, " k"]:
    """The cumulative match characteristic: `rank` of each k, float64 [K]."""
    return np.searchsorted(np.sort(self.ranks), ks, "right") / len(self.ranks)

  def tpir_at_fpir(self, fpirs: Rates) -> Float64[np.ndarray, " f"]:
    """The largest TPIR that a threshold reaches with an FPIR of at most these.

    Args:
      fpirs: the false positive identification rates allowed, [F], each above 0
        and up to 1.

    Returns:
      float64 [F]; NaN where fewer than one of the probes without a mate could
      be found (an FPIR below 1 / U, or no such probe).
    """
    rates = np.asarray(fpirs, np.float64)
    if not ((rates > 0) & (rates <= 1)).all():
      raise ValueError(f"An FPIR lies above 0 and up to 1: {rates.tolist()}.")
    count = len(self.other_scores)
    if not count:
      return np.full(len(rates), np.nan)
    allowed = np.searchsorted(np.arange(count + 1) / count, rates, "right") - 1
    # A mate must score above the first answer that is one too many.
    falling = np.append(np.sort(self.other_scores)[::-1], -np.inf)
    found = np.sort(self.mate_scores[self.ranks == 1])
    missed = np.searchsorted(found, falling[allowed], "right")
    tpirs = (len(found) - missed) / len(self.ranks)
    return np.where(allowed > 0, tpirs, np.nan)


def identify(
  probes: Float32[np.ndarray, "q d"],
  probe_subjects: Int[np.ndarray, " q"],
  gallery: Float32[np.ndarray, "g d"],
  gallery_subjects: Int[np.ndarray, " g"],
  *,
  same_images: bool,
) -> Identification:
  """Searches every probe in a gallery.

  Args:
    probes: float32 [Q, D], rows of length 1.
    probe_subjects: the person of each, integers [Q], 0 or more.
    gallery: float32 [G, D], rows of length 1.
    gallery_subjects: the person of each, integers [G]; -1 for a distractor, an
      entry that is nobody's mate. A person may have several entries.
    same_images: probes and gallery are the same images in the same order; none
      is found by itself.

  Raises:
    ValueError: no probe has a mate, or a row is not finite.
  """
  _check_finite(probes, "probes")
  _check_finite(gallery, "entries of the gallery")
  # By person, so that mates meet in few tiles; distractors come first.
  probe_order = np.argsort(probe_subjects, kind="stable")
  gallery_order = np.argsort(gallery_subjects, kind="stable")
  probe_subjects = probe_subjects[probe_order]
  gallery_subjects = gallery_subjects[gallery_order]
  mate = np.full(len(probes), -np.inf, np.float32)
  other = np.full(len(probes), -np.inf, np.float32)
  above = np.zeros(len(probes), np.int64)

  def product(rows: slice, columns: slice) -> Float32[np.ndarray, "r c"]:
    left, right = probe_order[rows], gallery_order[columns]
    cosines = probes[left] @ gallery[right].T
    if same_images:
      cosines[left[:, np.newaxis] == right] = -np.inf
    return cosines

  # The same tiles twice: a score must be the same number both times.
  all_tiles = list(tiles(probes, gallery))
  for rows, columns in all_tiles:
    mates = _mates(probe_subjects[rows], gallery_subjects[columns])
    if mates is not None:
      best = np.where(mates, product(rows, columns), -np.inf).max(axis=1)
      mate[rows] = np.maximum(mate[rows], best)
  mated = mate > -np.inf
  if not mated.any():
    raise ValueError("No probe has a mate in the gallery.")
  for rows, columns in all_tiles:
    cosines = product(rows, columns)
    mates = _mates(probe_subjects[rows], gallery_subjects[columns])
    if mates is not None:
      cosines[mates] = -np.inf
    above[rows] += (cosines >= mate[rows, np.newaxis]).sum(axis=1)
    other[rows] = np.maximum(other[rows], cosines.max(axis=1))
  return Identification(
    ranks=1 + above[mated],
    mate_scores=mate[mated],
    subjects=probe_subjects[mated],
    other_scores=other[~mated],
    other_subjects=probe_subjects[~mated],
    gallery_size=len(gallery),
  )


def _check_finite(rows: Float32[np.ndarray, "n d"], what: str) -> None:
  """Refuses rows without a cosine, which no rank could be true of."""
  broken = np.count_nonzero(~np.isfinite(rows).all(axis=1))
  if broken:
    raise ValueError(f"{broken} of {len(rows)} {what} are not finite.")


def _mates(
  probe_subjects: Int[np.ndarray, " r"],
  gallery_subjects: Int[np.ndarray, " c"],
) -> Bool[np.ndarray, "r c"] | None:
  """Who is whose mate in a tile; None if, both rising, nobody can be."""
  if (
    probe_subjects[-1] < gallery_subjects[0]
    or gallery_subjects[-1] < probe_subjects[0]
  ):
    return None
  return probe_subjects[:, np.newaxis] == gallery_subjects


def identify_among_distractors(
  probes: Float32[np.ndarray, "q d"],
  subjects: Int[np.ndarray, " q"],
  distractors: Float32[np.ndarray, "g d"],
  sizes: Sequence[int],
) -> Int64[np.ndarray, "s p"]:
  """Ranks of each mate alone among distractors, as MegaFace asks for them.

  Each image of a person is searched for each other image of that person, in a
  gallery of this one and the distractors (https://arxiv.org/abs/1512.00596).

  Args:
    probes: float32 [Q, D], rows of length 1.
    subjects: the person of each, integers [Q].
    distractors: float32 [G, D], rows of length 1, of nobody among the probes.
    sizes: numbers of distractors, [S], rising, up to G; the first so many are
      the gallery.

  Returns:
    int64 [S, P], the rank of each ordered pair of images of one person.

  Raises:
    ValueError: no person has two images, or a row is not finite.
  """
  _check_finite(probes, "probes")
  _check_finite(distractors, "distractors")
  order = np.argsort(subjects, kind="stable")
  probes, subjects = probes[order], subjects[order]
  # The images of one person lie together now: those but oneself are mates.
  same = np.searchsorted(subjects, subjects, "left")
  end = np.searchsorted(subjects, subjects, "right")
  scores = [
    np.delete(probes[i] @ probes[same[i] : end[i]].T, i - same[i])
    for i in range(len(probes))
  ]
  spans = np.cumsum([0, *map(len, scores)])
  if not spans[-1]:
    raise ValueError("No person has two images.")
  ranks = np.ones((len(sizes), spans[-1]), np.int64)
  for number, (start, stop) in enumerate(itertools.pairwise([0, *sizes])):
    part = distractors[start:stop]
    for rows, columns in tiles(probes, part):
      cosines = np.sort(probes[rows] @ part[columns].T, axis=1)
      for i, row in enumerate(cosines, start=rows.start):
        above = len(row) - np.searchsorted(row, scores[i], "left")
        ranks[number:, spans[i] : spans[i + 1]] += above
  return ranks
