"""All pairs, tile by tile, against all cosines at once."""

import numpy as np
import pytest

from jamsface_jax.metrics import cosines
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.protocols.all_pairs import count_all_pairs


@pytest.mark.parametrize("tile", [(1024, 2048), (5, 7), (8, 4)])
def test_all_pairs_are_each_counted_once(monkeypatch, tile):
  monkeypatch.setattr(cosines, "TILE", tile)
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 6, 50)
  units = cosines.unit_rows(
    np.eye(6)[labels] + rng.normal(size=(50, 6)), what="e"
  )
  score_counts, positives, of_person = count_all_pairs(units, labels)
  first, second = np.triu_indices(50, 1)
  scores = (units @ units.T)[first, second]
  same = labels[first] == labels[second]
  for person in range(6):
    np.testing.assert_allclose(
      np.sort(positives[of_person == person]),
      np.sort(scores[same & (labels[first] == person)]),
      atol=1e-6,
    )
  wanted = count_scores(scores, same, first, second)
  # A tile's cosines may differ in the last bit.
  assert score_counts.num_positives == wanted.num_positives
  assert score_counts.curve.num_negatives == wanted.curve.num_negatives
  assert score_counts.curve.auc() == pytest.approx(wanted.curve.auc(), abs=1e-4)
  fars = [0.3, 0.1, 0.02]
  np.testing.assert_allclose(
    score_counts.curve.tar_at_far(fars),
    wanted.curve.tar_at_far(fars),
    atol=0.01,
  )
  for name in ("hardest_positives", "hardest_negatives"):
    got, known = getattr(score_counts, name), getattr(wanted, name)
    np.testing.assert_allclose(got.scores, known.scores, atol=1e-6)
    pairs = {frozenset(p) for p in zip(got.first, got.second, strict=True)}
    assert pairs == {
      frozenset(p) for p in zip(known.first, known.second, strict=True)
    }
