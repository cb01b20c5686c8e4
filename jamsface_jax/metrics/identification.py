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

from jamsface_jax.metrics.cosines import tiles


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
  """What came out of searching all probes in one gallery.

  Attributes:
    ranks: of the best mate of each mated probe, int64 [M], from 1 on.
    mate_scores: cosine of that mate, float32 [M].
    subjects: the person of each mated probe, integers [M].
    other_scores: highest cosine of each probe without a mate, float32 [U].
    other_subjects: the person of each, integers [U].
    gallery_size: entries of the gallery.
  """

  ranks: np.ndarray
  mate_scores: np.ndarray
  subjects: np.ndarray
  other_scores: np.ndarray
  other_subjects: np.ndarray
  gallery_size: int

  def rank(self, k: int) -> float:
    """Share of mated probes with a mate among the first `k`."""
    return float(np.mean(self.ranks <= k))

  def cmc(self, ks: Sequence[int]) -> np.ndarray:
    """The cumulative match characteristic: `rank` of each k, float64 [K]."""
    return np.searchsorted(np.sort(self.ranks), ks, "right") / len(self.ranks)

  def tpir_at_fpir(self, fpirs: Sequence[float]) -> np.ndarray:
    """The largest TPIR that a threshold reaches with an FPIR of at most these.

    Args:
      fpirs: the false positive identification rates allowed, [F], each above 0
        and up to 1.

    Returns:
      float64 [F]; NaN where fewer than one of the probes without a mate could
      be found (an FPIR below 1 / U, or no such probe).
    """
    fpirs = np.asarray(fpirs, np.float64)
    if not ((fpirs > 0) & (fpirs <= 1)).all():
      raise ValueError(f"An FPIR lies above 0 and up to 1: {fpirs.tolist()}.")
    count = len(self.other_scores)
    if not count:
      return np.full(len(fpirs), np.nan)
    allowed = np.searchsorted(np.arange(count + 1) / count, fpirs, "right") - 1
    # A mate must score above the first answer that is one too many.
    falling = np.append(np.sort(self.other_scores)[::-1], -np.inf)
    found = np.sort(self.mate_scores[self.ranks == 1])
    missed = np.searchsorted(found, falling[allowed], "right")
    tpirs = (len(found) - missed) / len(self.ranks)
    return np.where(allowed > 0, tpirs, np.nan)


def identify(
  probes: np.ndarray,
  probe_subjects: np.ndarray,
  gallery: np.ndarray,
  gallery_subjects: np.ndarray,
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
    ValueError: no probe has a mate.
  """
  probe_subjects = np.asarray(probe_subjects)
  gallery_subjects = np.asarray(gallery_subjects)
  # By person, so that mates meet in few tiles; distractors come first.
  probe_order = np.argsort(probe_subjects, kind="stable")
  gallery_order = np.argsort(gallery_subjects, kind="stable")
  probe_subjects = probe_subjects[probe_order]
  gallery_subjects = gallery_subjects[gallery_order]
  mate = np.full(len(probes), -np.inf, np.float32)
  other = np.full(len(probes), -np.inf, np.float32)
  above = np.zeros(len(probes), np.int64)

  def product(rows, columns):
    """A tile, and which of it are mates, or None if none can be."""
    left, right = probe_order[rows], gallery_order[columns]
    cosines = probes[left] @ gallery[right].T
    if same_images:
      cosines[left[:, np.newaxis] == right] = -np.inf
    return cosines, are_mates(rows, columns)

  def are_mates(rows, columns):
    a, b = probe_subjects[rows], gallery_subjects[columns]
    if a[-1] < b[0] or b[-1] < a[0]:
      return None
    return a[:, np.newaxis] == b

  # The same tiles twice: a score must be the same number both times.
  all_tiles = list(tiles(probes, gallery))
  for rows, columns in all_tiles:
    if are_mates(rows, columns) is not None:
      cosines, mates = product(rows, columns)
      best = np.where(mates, cosines, -np.inf).max(axis=1)
      mate[rows] = np.maximum(mate[rows], best)
  mated = mate > -np.inf
  if not mated.any():
    raise ValueError("No probe has a mate in the gallery.")
  for rows, columns in all_tiles:
    cosines, mates = product(rows, columns)
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


def identify_among_distractors(
  probes: np.ndarray,
  subjects: np.ndarray,
  distractors: np.ndarray,
  sizes: Sequence[int],
) -> np.ndarray:
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
    ValueError: no person has two images.
  """
  order = np.argsort(subjects, kind="stable")
  probes, subjects = probes[order], np.asarray(subjects)[order]
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
