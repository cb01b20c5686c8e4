"""Verification on a list of pairs in folds, as LFW asks."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.bootstrap import SEED
from jamsface_jax.metrics.cosines import pair_cosines
from jamsface_jax.metrics.folds import kfold_accuracy
from jamsface_jax.metrics.groups import GroupedPairs, GroupResult, judge_groups
from jamsface_jax.metrics.identities import find_identities
from jamsface_jax.metrics.roc import Roc, rate_name, tar_name
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.protocols.groups_file import Groups
from jamsface_jax.protocols.pair_figures import (
  curve_metrics,
  pair_facts,
  pair_intervals,
  supported_fars,
)
from jamsface_jax.protocols.pairs_file import Pairs
from jamsface_jax.protocols.test_set import (
  Evaluation,
  JudgingSettings,
  collected,
  prefixed,
  result_name,
)


class PairList:
  """A list of pairs of images in folds.

  Args:
    name: the name of the set.
    pairs: the pairs, by the numbers of their images.
    labels: the class of every image, int [N]; used as identities if they agree
      with the pairs. None if nobody knows.
    groups: the groups of the classes, to be judged one by one too; they need
      labels.
  """

  def __init__(
    self,
    name: str,
    pairs: Pairs,
    labels: Int[np.ndarray, " n"] | None,
    groups: Groups | None = None,
  ):
    self.name = name
    self._pairs = pairs
    self._labels, self._groups = labels, groups
    self._group_names: tuple[str, ...] = ()
    if groups is not None and labels is not None:
      self._group_names = groups.names
      self._group_of_image = groups.of_class[labels]
    # Only images that a pair names are needed, each once.
    self.ids, where = np.unique(
      np.concatenate([pairs.first, pairs.second]), return_inverse=True
    )
    self._first, self._second = np.split(where, 2)
    self._identities = find_identities(
      len(self.ids),
      self._first,
      self._second,
      pairs.same,
      None if labels is None else labels[self.ids],
    )

  def without(
    self, images: Int[np.ndarray, " k"]
  ) -> tuple["PairList", dict[str, int]]:
    """See `Divisible`."""
    pairs = self._pairs
    gone = np.isin(pairs.first, images) | np.isin(pairs.second, images)
    kept = ~gone
    same, folds = pairs.same[kept], pairs.folds[kept]
    if same.all() or not same.any() or len(np.unique(folds)) < 2:
      raise InputError(
        f"{self.name}: the {len(same)} pairs whose images could be read are of"
        " one kind or in one fold: mend the images."
      )
    left = Pairs(pairs.first[kept], pairs.second[kept], same, folds)
    counts = {
      "images": int(np.isin(images, self.ids).sum()),
      "pairs": int(gone.sum()),
    }
    return PairList(self.name, left, self._labels, self._groups), counts

  def rising_metrics(self, settings: JudgingSettings) -> list[str]:
    """See `TestSet`."""
    fars = supported_fars(settings.fars, int((~self._pairs.same).sum()))
    names = ["accuracy", "auc", *map(tar_name, fars)]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self,
    blocks: Iterable[Float[np.ndarray, "k d"]],
    settings: JudgingSettings,
    *,
    what: str,
  ) -> list[Evaluation]:
    """See `TestSet`."""
    embeddings = collected(blocks, len(self.ids))
    pairs = self._pairs
    scores = pair_cosines(embeddings, self._first, self._second, what=what)
    counts = count_scores(scores, pairs.same, pairs.first, pairs.second)
    accuracies, thresholds = kfold_accuracy(scores, pairs.same, pairs.folds)
    metrics = {
      "accuracy": float(accuracies.mean()),
      "accuracy_std": float(accuracies.std()),
      "threshold": float(thresholds.mean()),
    } | curve_metrics(counts.curve, settings.fars)
    _, fold = np.unique(pairs.folds, return_inverse=True)
    intervals = pair_intervals(
      scores,
      pairs.same,
      self._identities[self._first],
      self._identities[self._second],
      settings,
      right=(scores >= thresholds[fold]) == pairs.same,
    )
    far_thresholds = self._far_thresholds(counts.curve, settings)
    name = result_name(self.name, settings)
    return [
      Evaluation(
        name=name,
        headline=f"accuracy {metrics['accuracy']:.2%} +-"
        f" {metrics['accuracy_std']:.2%} on {len(scores):,} pairs",
        metrics=prefixed(name, metrics),
        intervals=prefixed(name, intervals),
        facts=pair_facts(counts)
        | {
          "folds": len(accuracies),
          "identities": int(self._identities.max()) + 1,
          "flip_sum": settings.flip,
        }
        | {f"threshold@{far}": t for far, t in far_thresholds.items()},
        score_counts=counts,
        threshold=metrics["threshold"],
        groups=self._judge_groups(
          scores, metrics["threshold"], far_thresholds, settings
        ),
      )
    ]

  def _far_thresholds(
    self, curve: Roc, settings: JudgingSettings
  ) -> dict[str, float]:
    """Those at the FARs, by the FAR's name; groups are judged at them."""
    if not self._group_names:
      return {}
    fars = supported_fars(settings.fars, curve.num_negatives)
    found = curve.threshold_at_far(fars).tolist()
    return dict(zip(map(rate_name, fars), found, strict=True))

  def _judge_groups(
    self,
    scores: Float[np.ndarray, " p"],
    threshold: float,
    far_thresholds: dict[str, float],
    settings: JudgingSettings,
  ) -> list[GroupResult]:
    """Each group at the thresholds of the whole set; [] without groups."""
    if not self._group_names:
      return []
    pairs = self._pairs
    return judge_groups(
      GroupedPairs(
        scores=scores,
        same=pairs.same,
        first=self._identities[self._first],
        second=self._identities[self._second],
        first_group=self._group_of_image[pairs.first],
        second_group=self._group_of_image[pairs.second],
      ),
      self._group_names,
      threshold,
      far_thresholds,
      replicates=settings.replicates,
      seed=SEED,
    )
