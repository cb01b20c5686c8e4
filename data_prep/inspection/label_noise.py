"""Finds images whose label is likely wrong, from their embeddings.

`data_prep.clean` says what is looked for.
"""

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from jamsface_jax.errors import InputError

DUPLICATE_SIMILARITY = 0.95

REASONS = ("duplicate_of", "far_from_class", "nearer_to", "same_person_as")

_ROWS = 4096  # Rows in memory.

_COLUMNS = 8192  # Classes, or images of a class, to compare them with.

_MOST_PAIRS = 10  # Alike classes a class; more tells of a wrong threshold.

_OUTLIER = 3  # Spreads above the median.

_NORMAL = 1.4826  # Standard deviation by median absolute deviation.


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of the list, images and classes by number.

  Attributes:
    image: the image that may be wrong.
    reason: its first word.
    about: the label or the image that the reason names; -1 for none.
    score: a cosine, or a difference of two.
  """

  image: int
  reason: str
  about: int
  score: float

  @property
  def about_class(self) -> bool:
    """Whether the reason is about another class."""
    return self.reason in ("nearer_to", "same_person_as")


class SomeRows:
  """Some rows of an array that stays on the disk.

  Args:
    array: [N, D].
    ids: the rows, int64 [K].
  """

  def __init__(self, array: np.ndarray, ids: np.ndarray):
    self._array, self._ids = array, ids
    self.shape = len(ids), array.shape[1]

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    return self._array[self._ids[rows]]


Rows: TypeAlias = np.ndarray | SomeRows


def find_noise(
  embeddings: Rows,
  labels: np.ndarray,
  *,
  min_similarity: float | None,
  class_similarity: float | None,
  duplicate_similarity: float,
) -> tuple[list[Finding], dict[str, float]]:
  """Finds likely label noise.

  In memory are the class means [C, D], some 50 bytes an image, and blocks; not
  [N, D], [N, C] or [C, C]. Time is that of the products [N, D] x [D, C] and
  [C, D] x [D, C], in NumPy's BLAS on all cores.

  Args:
    embeddings: float [N, D], any length of rows but zero; may be mapped.
    labels: int64 [N], any integers.
    min_similarity: see this command; None follows from the data.
    class_similarity: the same.
    duplicate_similarity: see this command.

  Returns:
    The findings sorted by reason, then worst first, and the thresholds used.

  Raises:
    InputError: a row that is not finite or zero.
  """
  names, classes = np.unique(labels, return_inverse=True)
  means = _Means(embeddings, classes, len(names), np.ones(len(classes), bool))
  own, other = _own_and_random(embeddings, classes, means)
  low = min_similarity
  if low is None:
    low = _threshold(own, other)
  # Once more without what is wrong, which blurs the means: of a class of which
  # half is, nothing might reach the threshold, so half its best is enough.
  best = np.full(len(names), -np.inf, np.float32)
  np.fmax.at(best, classes, own)
  kept = ~(own < np.minimum(low, best[classes] / 2))
  means = _Means(embeddings, classes, len(names), kept)
  own, other = _own_and_random(embeddings, classes, means)
  if min_similarity is None:
    low = _threshold(own, other)
  nearest, nearest_similarity = _nearest_other(embeddings, classes, means)
  high = class_similarity
  if high is None:
    median, spread = _median_and_spread(nearest_similarity)
    high = median + _OUTLIER * spread
  pairs = _alike_classes(means, high)
  findings = [
    Finding(int(image), "far_from_class", -1, float(own[image]))
    for image in np.flatnonzero(own < low)
  ]
  nearer = np.flatnonzero(
    (nearest_similarity > own) & (nearest_similarity >= high)
  )
  findings += [
    Finding(
      int(image),
      "nearer_to",
      int(names[nearest[image]]),
      float(nearest_similarity[image] - own[image]),
    )
    for image in nearer
    # Two classes of one person take each other's images; that is one finding.
    if tuple(sorted((int(classes[image]), int(nearest[image])))) not in pairs
  ]
  findings += _smaller_classes(pairs, classes, means, names)
  findings += _duplicates(
    embeddings, classes, nearest, own, duplicate_similarity
  )
  findings.sort(key=_worst_first)
  return findings, {
    "min_similarity": low,
    "class_similarity": high,
    "duplicate_similarity": duplicate_similarity,
  }


def _worst_first(finding: Finding) -> tuple:
  """The lower an own similarity, the worse; the higher any other score."""
  sign = 1 if finding.reason == "far_from_class" else -1
  return REASONS.index(finding.reason), sign * finding.score, finding.image


def _blocks(
  embeddings: Rows, purpose: str
) -> Iterator[tuple[slice, np.ndarray]]:
  """Yields all rows scaled to length 1, float32, a block at a time."""
  with tqdm(
    total=len(embeddings), desc=purpose, unit="image", disable=None
  ) as bar:
    for start in range(0, len(embeddings), _ROWS):
      rows = slice(start, min(start + _ROWS, len(embeddings)))
      yield rows, _unit(embeddings[rows], start)
      bar.update(rows.stop - start)


def _unit(rows: np.ndarray, start: int = 0) -> np.ndarray:
  rows = np.asarray(rows, np.float32)
  lengths = np.linalg.norm(rows, axis=1)
  bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
  if len(bad):
    raise InputError(
      f"embedding {start + bad[0]} is zero or not finite: embed again with a"
      " sound checkpoint."
    )
  return rows / lengths[:, None]


class _Means:
  """The mean embedding of each class, of the images that count.

  Attributes:
    kept: whether an image counts, bool [N]; all of a class of which none would.
    counts: images that count, int64 [C].
    sizes: images, int64 [C].
    rows: float32 [C, D]; shorter than 1 the more images of a class differ. The
      product of an image and a mean is the mean of their cosines.
  """

  def __init__(
    self,
    embeddings: Rows,
    classes: np.ndarray,
    num_classes: int,
    kept: np.ndarray,
  ):
    self.sizes = np.bincount(classes, minlength=num_classes)
    counts = np.bincount(classes[kept], minlength=num_classes)
    self.kept = kept | (counts == 0)[classes]
    self.counts = np.bincount(classes[self.kept], minlength=num_classes)
    self.rows = np.zeros((num_classes, embeddings.shape[1]), np.float32)
    for rows, units in _blocks(embeddings, "class means"):
      kept_rows = self.kept[rows]
      units, mine = units[kept_rows], classes[rows][kept_rows]
      if len(mine):
        order = np.argsort(mine, kind="stable")
        present, first = np.unique(mine[order], return_index=True)
        self.rows[present] += np.add.reduceat(units[order], first)
    self.rows /= self.counts[:, None]


def _own_and_random(
  embeddings: Rows, classes: np.ndarray, means: _Means
) -> tuple[np.ndarray, np.ndarray]:
  """How like its own class each image is, and how like a random other one.

  Returns:
    Twice float32 [N]. The image itself does not count in its own class; NaN
    where there is no other image, or no other class.
  """
  own, other = np.full((2, len(classes)), np.nan, np.float32)
  num_classes = len(means.rows)
  rng = np.random.default_rng(0)
  for rows, units in _blocks(embeddings, "similarity to the class"):
    mine = classes[rows]
    total = np.vecdot(units, means.rows[mine]) * means.counts[mine]
    count = means.counts[mine] - means.kept[rows]
    # Less the product with itself, which is 1.
    np.divide(total - means.kept[rows], count, out=own[rows], where=count > 0)
    if num_classes > 1:
      chosen = mine + rng.integers(1, num_classes, len(mine))
      other[rows] = np.vecdot(units, means.rows[chosen % num_classes])
  return own, other


def _median_and_spread(values: np.ndarray) -> tuple[float, float]:
  """Median and normal standard deviation of the finite values."""
  values = values[np.isfinite(values)]
  if not len(values):
    raise InputError(
      "the thresholds cannot follow from data without a class of two images and"
      " a second class: give --min_similarity and --class_similarity."
    )
  median = np.median(values)
  return float(median), float(_NORMAL * np.median(np.abs(values - median)))


def _threshold(own: np.ndarray, other: np.ndarray) -> float:
  """The similarity that is equally many spreads away from both medians."""
  own_median, own_spread = _median_and_spread(own)
  other_median, other_spread = _median_and_spread(other)
  spread = own_spread + other_spread
  if not spread:  # All alike, as copies are.
    return (own_median + other_median) / 2
  return (own_median * other_spread + other_median * own_spread) / spread


def _nearest_other(
  embeddings: Rows, classes: np.ndarray, means: _Means
) -> tuple[np.ndarray, np.ndarray]:
  """Each image's most similar class but its own, and how similar.

  Returns:
    int64 [N] and float32 [N]; -1 and -inf where there is no other class.
  """
  nearest = np.full(len(classes), -1)
  similarity = np.full(len(classes), -np.inf, np.float32)
  for rows, units in _blocks(embeddings, "nearest other class"):
    mine = classes[rows]
    for start in range(0, len(means.rows), _COLUMNS):
      products = units @ means.rows[start : start + _COLUMNS].T
      here = np.flatnonzero(
        (mine >= start) & (mine < start + products.shape[1])
      )
      products[here, mine[here] - start] = -np.inf
      best = products.argmax(axis=1)
      value = products[np.arange(len(best)), best]
      better = value > similarity[rows]
      nearest[rows][better] = start + best[better]
      similarity[rows][better] = value[better]
  return nearest, similarity


def _alike_classes(
  means: _Means, threshold: float
) -> dict[tuple[int, int], float]:
  """Pairs a < b of classes at least as similar as this, and how similar."""
  count, pairs = len(means.rows), {}
  for top in range(0, count, _ROWS):
    block = means.rows[top : top + _ROWS]
    for left in range(top, count, _COLUMNS):
      products = block @ means.rows[left : left + _COLUMNS].T
      a, b = np.nonzero(products >= threshold)
      upper = a + top < b + left
      a, b = a[upper], b[upper]
      values = products[a, b].tolist()
      keys = zip((a + top).tolist(), (b + left).tolist(), strict=True)
      pairs.update(zip(keys, values, strict=True))
      if len(pairs) > _MOST_PAIRS * count:
        raise InputError(
          f"--class_similarity {threshold:.3f} takes more than"
          f" {_MOST_PAIRS * count:,} pairs of {count:,} classes for one person:"
          " choose a higher one, or embed with a run that tells people apart."
        )
  return pairs


def _smaller_classes(
  pairs: dict[tuple[int, int], float],
  classes: np.ndarray,
  means: _Means,
  names: np.ndarray,
) -> Iterator[Finding]:
  """Yields the images of the smaller class (or the later) of each pair."""
  best: dict[int, tuple[float, int]] = {}
  for (a, b), similarity in pairs.items():
    small, large = (a, b) if means.sizes[a] < means.sizes[b] else (b, a)
    best[small] = max(best.get(small, (-np.inf, -1)), (similarity, large))
  for image in np.flatnonzero(np.isin(classes, list(best))):
    similarity, large = best[int(classes[image])]
    yield Finding(int(image), "same_person_as", int(names[large]), similarity)


def _duplicates(
  embeddings: Rows,
  classes: np.ndarray,
  nearest: np.ndarray,
  own: np.ndarray,
  threshold: float,
) -> Iterator[Finding]:
  """Yields images that repeat another: each with the most similar one.

  All pairs of N images are too many. Two copies have nearly the same nearest
  class, whatever their labels say, so pairs of each class's own images and of
  those nearest to it are enough.
  """
  # Who goes first keeps its place; a total order, so that one copy remains.
  fit = np.round(np.nan_to_num(own, nan=-2.0), 3)
  rank = np.empty(len(classes), np.int64)
  rank[np.lexsort([np.arange(len(classes)), -fit])] = np.arange(len(classes))

  groups = np.concatenate([classes, nearest])
  order = np.argsort(groups, kind="stable")
  cuts = np.flatnonzero(np.diff(groups[order])) + 1
  cosine = np.full(len(classes), -np.inf, np.float32)
  original = np.full(len(classes), -1)
  members = np.split(order % len(classes), cuts)
  for images in tqdm(members, desc="duplicates", unit="class", disable=None):
    if len(images) > 1:
      images = np.sort(images)
      _find_originals(embeddings, images, rank, threshold, cosine, original)
  for image in np.flatnonzero(original >= 0).tolist():
    yield Finding(
      image, "duplicate_of", int(original[image]), float(cosine[image])
    )


def _find_originals(
  embeddings: Rows,
  images: np.ndarray,
  rank: np.ndarray,
  threshold: float,
  cosine: np.ndarray,
  original: np.ndarray,
) -> None:
  """Notes for each of these images the most similar one that goes before it.

  However many repeat each other, the memory is that of one block.

  Args:
    embeddings: those of all images, [N, D].
    images: some of them, rising.
    rank: who goes first, int64 [N].
    threshold: cosine from which on two are the same.
    cosine: of each image and its original so far, float32 [N]; changed.
    original: that image, of equal ones the last, int64 [N]; changed.
  """
  for top in range(0, len(images), _ROWS):
    mine = images[top : top + _ROWS]
    upper = _unit(embeddings[mine])
    for left in range(0, len(images), _COLUMNS):
      others = images[left : left + _COLUMNS]
      products = upper @ _unit(embeddings[others]).T
      products[products < threshold] = -np.inf
      products[rank[others] >= rank[mine][:, None]] = -np.inf
      place = len(others) - 1 - products[:, ::-1].argmax(axis=1)
      value = products[np.arange(len(mine)), place]
      one = others[place]
      better = (value > cosine[mine]) | (
        (value == cosine[mine]) & (value > -np.inf) & (one > original[mine])
      )
      cosine[mine[better]] = value[better]
      original[mine[better]] = one[better]
