"""Verification on all pairs of a set of images, and search among them."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.cosines import tiles, unit_rows
from jamsface_jax.metrics.identification import identify
from jamsface_jax.metrics.people import people_rates
from jamsface_jax.metrics.roc import tar_name
from jamsface_jax.metrics.score_counts import ScoreCounter, ScoreCounts
from jamsface_jax.protocols.pair_figures import (
  curve_metrics,
  pair_facts,
  supported_fars,
)
from jamsface_jax.protocols.search_figures import (
  RANKS,
  rank_name,
  search_facts,
  search_intervals,
  search_metrics,
)
from jamsface_jax.protocols.test_set import (
  Evaluation,
  JudgingSettings,
  collected,
  prefixed,
  result_name,
)

ALL_PAIRS = "all_pairs"


class AllPairs:
  """Every image compared with every other, and searched among the others.

  Args:
    name: the name of the set.
    labels: the class of every image, int [N].
    ids: the numbers of those images; None: 0 to N - 1.

  Raises:
    InputError: no pair of one person, or none of two.
  """

  def __init__(
    self,
    name: str,
    labels: Int[np.ndarray, " n"],
    ids: Int[np.ndarray, " n"] | None = None,
  ):
    _, sizes = np.unique(labels, return_counts=True)
    if len(sizes) < 2 or sizes.max() < 2:
      raise InputError(
        f"data set {name!r} has no pairs of one person and of two: all_pairs"
        " needs two people, and one of them twice."
      )
    self.name = name
    self.ids = np.arange(len(labels)) if ids is None else ids
    self._labels = labels
    total = len(labels) * (len(labels) - 1) // 2
    self._negatives = total - int((sizes * (sizes - 1) // 2).sum())

  def without(
    self, images: Int[np.ndarray, " k"]
  ) -> tuple["AllPairs", dict[str, int]]:
    """See `Divisible`."""
    kept = ~np.isin(self.ids, images)
    left = AllPairs(self.name, self._labels[kept], self.ids[kept])
    return left, {"images": int((~kept).sum())}

  def rising_metrics(self, settings: JudgingSettings) -> list[str]:
    """See `TestSet`."""
    fars = supported_fars(settings.fars, self._negatives)
    tars = [*map(tar_name, fars)]
    of_people = [f"people_{name}" for name in tars]
    names = ["auc", *tars, *of_people, *map(rank_name, RANKS)]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self,
    blocks: Iterable[Float[np.ndarray, "k d"]],
    settings: JudgingSettings,
    *,
    what: str,
  ) -> list[Evaluation]:
    """See `TestSet`."""
    units = unit_rows(collected(blocks, len(self.ids)), what=what)
    counts, positives, of_person = count_all_pairs(units, self._labels)
    found = identify(units, self._labels, units, self._labels, same_images=True)
    metrics = curve_metrics(counts.curve, settings.fars)
    fars = supported_fars(settings.fars, self._negatives)
    thresholds = counts.curve.threshold_at_far(fars)
    people = people_rates(
      positives,
      of_person,
      dict(zip(map(tar_name, fars), thresholds.tolist(), strict=True)),
    )
    metrics |= people.means() | search_metrics(found)
    name = result_name(self.name, settings)
    return [
      Evaluation(
        name=name,
        headline=f"EER {metrics['eer']:.2%}, rank 1 {metrics['rank1']:.2%} on"
        f" {len(units):,} images",
        metrics=prefixed(name, metrics),
        intervals=prefixed(name, search_intervals(found, settings)),
        facts=pair_facts(counts)
        | search_facts(found)
        | {"flip_sum": settings.flip},
        score_counts=counts,
        people=people,
        searches={name: found},
      )
    ]


def count_all_pairs(
  units: Float32[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> tuple[ScoreCounts, Float32[np.ndarray, " p"], Int[np.ndarray, " p"]]:
  """Counts the cosines of all pairs of rows, a tile in memory at a time.

  Args:
    units: float32 [N, D], rows of length 1.
    labels: the class of each, integers [N].

  Returns:
    What all pairs came to; and of those of one class the cosines, float32 [P],
    and that class, [P].
  """
  # By class, so that positives lie in few tiles, next to the diagonal.
  order = np.argsort(labels, kind="stable")
  units, given, labels = units[order], labels, labels[order]
  all_tiles = [
    _Tile(rows, columns, labels)
    for rows, columns in tiles(units, units)
    if min(columns.stop, len(units)) - 1 > rows.start  # Else all are below.
  ]
  # The same tiles twice: a tie must be a tie both times.
  scores, firsts, seconds = [], [], []
  for tile in all_tiles:
    if tile.may_have_positives():
      places = tile.places(same=True)
      row, column = tile.images(places)
      scores.append(tile.cosines(units)[places])
      firsts.append(order[row])
      seconds.append(order[column])
  positives, first = np.concatenate(scores), np.concatenate(firsts)
  counter = ScoreCounter(positives, first, np.concatenate(seconds))
  for tile in all_tiles:
    cosines = tile.cosines(units)
    places = np.arange(len(cosines))
    if tile.may_have_positives() or tile.meets_diagonal():
      places = tile.places(same=False)
      cosines = cosines[places]

    def name(
      chosen: Int64[np.ndarray, " m"],
      tile: _Tile = tile,
      places: Int64[np.ndarray, " k"] = places,
    ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
      one, other = tile.images(places[chosen])
      return order[one], order[other]

    counter.add(cosines, name)
  return counter.counts(), positives, given[first]


class _Tile:
  """A tile of the product of all rows with all, which lie by class.

  A place in a tile is that in its cosines, row after row. Of two images that
  are compared the first comes before the second: above the diagonal.
  """

  def __init__(
    self, rows: slice, columns: slice, labels: Int[np.ndarray, " n"]
  ):
    self._rows, self._columns = rows, columns
    self._row_labels, self._column_labels = labels[rows], labels[columns]

  def cosines(
    self, units: Float32[np.ndarray, "n d"]
  ) -> Float32[np.ndarray, " k"]:
    return (units[self._rows] @ units[self._columns].T).ravel()

  def may_have_positives(self) -> bool:
    return bool(self._row_labels[-1] >= self._column_labels[0])

  def meets_diagonal(self) -> bool:
    return self._rows.stop > self._columns.start

  def places(self, *, same: bool) -> Int64[np.ndarray, " m"]:
    """Those above the diagonal of one class, or of two."""
    row = self._rows.start + np.arange(len(self._row_labels))
    column = self._columns.start + np.arange(len(self._column_labels))
    above: Bool[np.ndarray, "r c"] = row[:, np.newaxis] < column
    is_same = self._row_labels[:, np.newaxis] == self._column_labels
    return np.flatnonzero(above & (is_same == same))

  def images(
    self, places: Int64[np.ndarray, " m"]
  ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The rows of both images of each place."""
    row, column = np.divmod(places, len(self._column_labels))
    return self._rows.start + row, self._columns.start + column
