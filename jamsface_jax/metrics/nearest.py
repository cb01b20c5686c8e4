"""Who is nearest: exact search by products of matrices, tile by tile.

The gallery may be a memory map larger than the memory. Of each tile of cosines
only those above the worst that is kept so far go on: few, once the first tiles
have been seen.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64

_PROBES, _ROWS = 1024, 2048  # Of a tile: 8 MB of float32.


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
  """The owners that are nearest to some probes, each by the best of its rows.

  Attributes:
    owner: int64 [Q, K], the nearest first, each owner once; -1 where there are
      fewer than K.
    row: the row of the gallery that is nearest of this owner's, int64 [Q, K].
    cosine: float32 [Q, K]; -infinity where there is none.

  On the way to them the fields are rows [K] of candidates, of any probes.
  """

  owner: Int64[np.ndarray, "*q k"]
  row: Int64[np.ndarray, "*q k"]
  cosine: Float32[np.ndarray, "*q k"]


def nearest(
  probes: Float32[np.ndarray, "q d"],
  gallery: Float[np.ndarray, "n d"],
  owners: Int[np.ndarray, " n"],
  k: int,
  *,
  lengths: Float64[np.ndarray, " n"] | None = None,
) -> Nearest:
  """Finds the K owners with the rows that are most alike, exactly.

  Of equal cosines the earlier row wins. Takes about 60 MB beside what is given.

  Args:
    probes: float32 [Q, D], rows of length 1; a row that is not finite finds
      nobody.
    gallery: floating-point numbers [N, D], of any kind.
    owners: whose each row is, integers [N], 0 or more; those of one owner need
      not lie together. Negative: nobody's, the row is never found.
    k: how many owners, at least 1.
    lengths: of the rows of the gallery, float64 [N], none of them 0; None: all
      have length 1.
  """
  found = Nearest(
    np.full((len(probes), k), -1, np.int64),
    np.full((len(probes), k), -1, np.int64),
    np.full((len(probes), k), -np.inf, np.float32),
  )
  for left in range(0, len(gallery), _ROWS):
    tile = _Tile.of(gallery, owners, lengths, left)
    for top in range(0, len(probes), _PROBES):
      rows = slice(top, top + _PROBES)
      tile.search(
        probes[rows],
        Nearest(found.owner[rows], found.row[rows], found.cosine[rows]),
      )
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Tile:
  """Some rows of a gallery, those of one owner together.

  Attributes:
    rows: float32 [n, D].
    row: their numbers in the gallery, int64 [n].
    owner: whose they are, int64 [n], rising.
    starts: where another owner begins, int64 [s].
    scale: what takes their lengths out, float32 [n], or None.
  """

  rows: Float32[np.ndarray, "n d"]
  row: Int64[np.ndarray, " n"]
  owner: Int64[np.ndarray, " n"]
  starts: Int64[np.ndarray, " s"]
  scale: Float32[np.ndarray, " n"] | None

  @classmethod
  def of(
    cls,
    gallery: Float[np.ndarray, "n d"],
    owners: Int[np.ndarray, " n"],
    lengths: Float64[np.ndarray, " n"] | None,
    left: int,
  ) -> "_Tile":
    """The rows from `left` on."""
    part = slice(left, left + _ROWS)
    rows, owner = np.asarray(gallery[part], np.float32), owners[part]
    scale = None if lengths is None else (1 / lengths[part]).astype(np.float32)
    order = np.argsort(owner, kind="stable")
    order = order[np.searchsorted(owner[order], 0) :]  # Without nobody's.
    if not np.array_equal(order, np.arange(len(rows))):
      rows, owner = rows[order], owner[order]
      scale = None if scale is None else scale[order]
    owner = owner.astype(np.int64)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    return cls(rows, left + order, owner, starts, scale)

  def search(self, probes: Float32[np.ndarray, "q d"], found: Nearest) -> None:
    """Puts what is nearer than what was found in its place."""
    if not len(self.rows):
      return
    cosines = probes @ self.rows.T
    if self.scale is not None:
      cosines *= self.scale
    probe, column = np.nonzero(self._is_near(cosines, found.cosine))
    if len(probe):
      _merge(
        found,
        probe,
        Nearest(self.owner[column], self.row[column], cosines[probe, column]),
      )

  def _is_near(
    self, cosines: Float32[np.ndarray, "q n"], held: Float32[np.ndarray, "q k"]
  ) -> Bool[np.ndarray, "q n"]:
    """Which cosines may be among the first K owners."""
    worst, k = held[:, -1], held.shape[1]
    lacks = worst == -np.inf
    # Whoever has K owners takes what is better than the last of them. Who has
    # fewer takes what reaches the K-th owner of this tile.
    least = np.nextafter(worst, np.float32(np.inf))
    if lacks.any():
      best = np.fmax.reduceat(cosines[lacks], self.starts, axis=1)
      place = max(0, best.shape[1] - k)
      least[lacks] = np.partition(best, place, axis=1)[:, place]
    return cosines >= least[:, np.newaxis]


def _merge(
  found: Nearest, probe: Int64[np.ndarray, " m"], new: Nearest
) -> None:
  """Keeps of what was found and what is new the K best owners a probe.

  Args:
    found: of some probes, [Q, K]; changed.
    probe: which of them each new one is of, int64 [M], rising.
    new: fields [M].
  """
  probes, place = np.unique(probe, return_inverse=True)
  k = found.owner.shape[1]
  which = np.concatenate([np.repeat(np.arange(len(probes)), k), place])
  owner, row, cosine = (
    np.concatenate([old[probes].ravel(), one])
    for old, one in (
      (found.owner, new.owner),
      (found.row, new.row),
      (found.cosine, new.cosine),
    )
  )
  # The best row of each owner first, then the best owners of each probe.
  order = np.lexsort((row, -cosine, owner, which))
  pair = np.stack([which, owner])[:, order]
  first = np.append(True, np.any(pair[:, 1:] != pair[:, :-1], axis=0))
  order = order[first & (owner[order] >= 0)]
  order = order[np.lexsort((row[order], -cosine[order], which[order]))]
  counts = np.bincount(which[order], minlength=len(probes))
  rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
  order, rank = order[rank < k], rank[rank < k]
  at = probes[which[order]], rank
  found.owner[at], found.row[at] = owner[order], row[order]
  found.cosine[at] = cosine[order]
