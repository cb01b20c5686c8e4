"""Verification on a list of pairs, in folds."""

from collections.abc import Iterable

import numpy as np

from jamsface_jax.metrics import folds
from jamsface_jax.metrics.bootstrap import (
  PairResampler,
  connected_people,
  interval,
)
from jamsface_jax.metrics.cosines import pair_cosines
from jamsface_jax.metrics.groups import GroupedPairs, judge_groups
from jamsface_jax.metrics.roc import rate_name, tar_name
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.protocols.figures import curve_metrics, pair_facts, supported
from jamsface_jax.protocols.groups_file import Groups
from jamsface_jax.protocols.pairs_file import Pairs
from jamsface_jax.protocols.test_set import (
  SEED,
  Evaluation,
  JudgingSettings,
  prefixed,
  set_name,
)


class PairList:
  """A list of pairs of images in folds, as LFW's.

  Args:
    name: of the set.
    pairs: by number of the image.
    labels: the class of every image, int [N]; used as identities if they agree
      with the pairs.
    groups: of the classes, to be judged one by one too.
  """

  def __init__(
    self,
    name: str,
    pairs: Pairs,
    labels: np.ndarray | None,
    groups: Groups | None = None,
  ):
    self.name = name
    self._groups = groups
    self._labels = labels
    # Only images that a pair names are needed, each once.
    self.ids, where = np.unique(
      np.concatenate([pairs.first, pairs.second]), return_inverse=True
    )
    self._first, self._second = np.split(where, 2)
    self._pairs = pairs
    self._identities = people(
      len(self.ids),
      self._first,
      self._second,
      pairs.same,
      None if labels is None else labels[self.ids],
    )

  def rising_metrics(self, settings: JudgingSettings) -> list[str]:
    """See `TestSet`."""
    fars = supported(settings.fars, int((~self._pairs.same).sum()))
    names = ["accuracy", "auc", *map(tar_name, fars)]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self, blocks: Iterable[np.ndarray], settings: JudgingSettings, *, what: str
  ) -> list[Evaluation]:
    """See `TestSet`."""
    embeddings = np.concatenate(list(blocks))
    pairs, first, second = self._pairs, self._first, self._second
    scores = pair_cosines(embeddings, first, second, what=what)
    score_counts = count_scores(scores, pairs.same, pairs.first, pairs.second)
    accuracies, thresholds = folds.kfold_accuracy(
      scores, pairs.same, pairs.folds
    )
    metrics = {
      "accuracy": float(accuracies.mean()),
      "accuracy_std": float(accuracies.std()),
      "threshold": float(thresholds.mean()),
    } | curve_metrics(score_counts.curve, settings.fars)
    _, fold = np.unique(pairs.folds, return_inverse=True)
    right = (scores >= thresholds[fold]) == pairs.same
    intervals = pair_intervals(
      (scores, pairs.same, first, second, self._identities), settings, right
    )
    thresholds = self._thresholds(score_counts.curve, settings)
    groups = self._judge_groups(
      scores, metrics["threshold"], thresholds, settings
    )
    name = set_name(self.name, settings)
    return [
      Evaluation(
        name=name,
        headline=f"accuracy {metrics['accuracy']:.2%} +-"
        f" {metrics['accuracy_std']:.2%} on {len(scores):,} pairs",
        metrics=prefixed(name, metrics),
        intervals=prefixed(name, intervals),
        facts=pair_facts(score_counts)
        | {
          "folds": len(accuracies),
          "identities": int(self._identities.max()) + 1,
          "flip_sum": settings.flip,
        }
        | {f"threshold@{far}": t for far, t in thresholds.items()},
        score_counts=score_counts,
        threshold=metrics["threshold"],
        groups=groups,
      )
    ]

  def _thresholds(self, curve, settings):
    """Those at the FARs, by the FAR's name; groups are judged at them."""
    if self._groups is None:
      return {}
    fars = supported(settings.fars, curve.num_negatives)
    found = curve.threshold_at_far(fars).tolist()
    return dict(zip(map(rate_name, fars), found, strict=True))

  def _judge_groups(self, scores, threshold, thresholds, settings):
    """Each group at the thresholds of the whole set; [] without groups."""
    if self._groups is None:
      return []
    pairs = self._pairs
    of_image = self._groups.of_class[self._labels]
    return judge_groups(
      GroupedPairs(
        scores=scores,
        same=pairs.same,
        first=self._identities[self._first],
        second=self._identities[self._second],
        first_group=of_image[pairs.first],
        second_group=of_image[pairs.second],
      ),
      self._groups.names,
      threshold,
      thresholds,
      replicates=settings.replicates,
      seed=SEED,
    )


def people(
  count: int,
  first: np.ndarray,
  second: np.ndarray,
  same: np.ndarray,
  labels: np.ndarray | None,
) -> np.ndarray:
  """Identities for resampling, int64 [count], from 0 on.

  Args:
    count: number of images or templates.
    first: of each pair, integers [P].
    second: of each pair, integers [P].
    same: whether it shows one person, bool [P].
    labels: what may be the identities; used if the pairs agree.
  """
  if labels is not None and np.array_equal(
    labels[first] == labels[second], same
  ):
    return np.unique(labels, return_inverse=True)[1]
  return connected_people(count, first, second, same)


def pair_intervals(pairs, settings, right) -> dict[str, tuple[float, float]]:
  """Intervals of the metrics of pairs; see `bootstrap`.

  Args:
    pairs: scores, kinds, first, second and the identities of all images.
    settings: has the number of replicates.
    right: whether each decision of the folds was right, bool [P], or None.
      Their thresholds stay as they are.
  """
  if not settings.replicates:
    return {}
  scores, same, first, second, identities = pairs
  resampler = PairResampler(scores, same, identities[first], identities[second])
  rng = np.random.default_rng(SEED)
  rows = []
  for _ in range(settings.replicates):
    if drawn := resampler.draw(rng):
      curve, weights = drawn
      row = curve_metrics(curve, settings.fars)
      if right is not None:
        row["accuracy"] = float(weights @ right / weights.sum())
      rows.append(row)
  names = rows[0] if rows else {}
  return {name: interval(np.array([r[name] for r in rows])) for name in names}
