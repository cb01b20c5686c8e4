"""Verification on all pairs of a set of images."""

from collections.abc import Iterable

import numpy as np

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.cosines import tiles, unit_rows
from jamsface_jax.metrics.identification import identify
from jamsface_jax.metrics.roc import tar_name
from jamsface_jax.metrics.score_counts import ScoreCounter, ScoreCounts
from jamsface_jax.protocols.figures import (
  RANKS,
  curve_metrics,
  pair_facts,
  rank_name,
  search_facts,
  search_intervals,
  search_metrics,
  supported,
)
from jamsface_jax.protocols.test_set import (
  Evaluation,
  JudgingSettings,
  prefixed,
  set_name,
)

ALL_PAIRS = "all_pairs"


class AllPairs:
  """Every image compared with every other, and searched among the others.

  Args:
    name: of the set.
    labels: the class of every image, int [N].
  """

  def __init__(self, name: str, labels: np.ndarray):
    _, sizes = np.unique(labels, return_counts=True)
    if len(sizes) < 2 or sizes.max() < 2:
      raise InputError(
        f"data set {name!r} has no pairs of one person and of two: all_pairs"
        " needs two people, and one of them twice."
      )
    self.name = name
    self.ids = np.arange(len(labels))
    self._labels = labels
    total = len(labels) * (len(labels) - 1) // 2
    self._negatives = total - int((sizes * (sizes - 1) // 2).sum())

  def rising_metrics(self, settings: JudgingSettings) -> list[str]:
    """See `TestSet`."""
    fars = supported(settings.fars, self._negatives)
    names = ["auc", *map(tar_name, fars), *map(rank_name, RANKS)]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self, blocks: Iterable[np.ndarray], settings: JudgingSettings, *, what: str
  ) -> list[Evaluation]:
    """See `TestSet`."""
    units = unit_rows(np.concatenate(list(blocks)), what=what)
    score_counts = count_all_pairs(units, self._labels)
    found = identify(units, self._labels, units, self._labels, same_images=True)
    metrics = curve_metrics(score_counts.curve, settings.fars)
    metrics |= search_metrics(found)
    intervals = search_intervals(found, settings)
    name = set_name(self.name, settings)
    return [
      Evaluation(
        name=name,
        headline=f"EER {metrics['eer']:.2%}, rank 1 {metrics['rank1']:.2%} on"
        f" {len(units):,} images",
        metrics=prefixed(name, metrics),
        intervals=prefixed(name, intervals),
        facts=pair_facts(score_counts)
        | search_facts(found)
        | {"flip_sum": settings.flip},
        score_counts=score_counts,
        searches={name: found},
      )
    ]


def count_all_pairs(units: np.ndarray, labels: np.ndarray) -> ScoreCounts:
  """Counts the cosines of all pairs of rows, a tile in memory at a time.

  Args:
    units: float32 [N, D], rows of length 1.
    labels: the class of each, integers [N].
  """
  # By class, so that positives lie in few tiles, next to the diagonal.
  order = np.argsort(labels, kind="stable")
  units, labels = units[order], np.asarray(labels)[order]
  upper = [
    (rows, columns)
    for rows, columns in tiles(units, units)
    if min(columns.stop, len(units)) - 1 > rows.start
  ]

  def kinds(rows, columns):
    """Of a tile, what is above the diagonal, and what of it is positive."""
    number = np.arange(len(units))
    above = number[rows, np.newaxis] < number[columns]
    return above, above & (labels[rows, np.newaxis] == labels[columns])

  def names(rows, columns, places):
    width = len(units[columns])
    row, column = np.divmod(places, width)
    return order[rows.start + row], order[columns.start + column]

  # The same tiles twice: a tie must be a tie both times.
  found = []
  for rows, columns in upper:
    if labels[rows][-1] >= labels[columns.start]:
      _, positive = kinds(rows, columns)
      places = np.flatnonzero(positive)
      cosines = units[rows] @ units[columns].T
      found.append((cosines.ravel()[places], *names(rows, columns, places)))
  score_counts = ScoreCounter(*map(np.concatenate, zip(*found, strict=True)))
  for rows, columns in upper:
    cosines = (units[rows] @ units[columns].T).ravel()
    if labels[rows][-1] >= labels[columns.start] or rows.stop > columns.start:
      above, positive = kinds(rows, columns)
      places = np.flatnonzero(above & ~positive)
      cosines = cosines[places]
    else:
      places = np.arange(len(cosines))
    score_counts.add(
      cosines,
      lambda chosen, rows=rows, columns=columns, places=places: names(
        rows, columns, places[chosen]
      ),
    )
  return score_counts.counts()
