"""Rates of people, against a loop over people."""

import numpy as np
import pytest

from jamsface_jax.metrics.people import people_rates


def test_everybody_counts_the_same():
  rng = np.random.default_rng(0)
  labels = rng.choice([3, 5, 8, 90], 200, p=[0.7, 0.2, 0.05, 0.05])
  scores = rng.normal(labels / 30, 1.0)
  found = people_rates(scores, labels, {"a": 0.5, "b": np.inf, "c": -np.inf})
  assert found.labels.tolist() == [3, 5, 8, 90]
  want = [np.mean(scores[labels == one] >= 0.5) for one in (3, 5, 8, 90)]
  np.testing.assert_allclose(found.tars["a"], want)
  assert found.pairs.tolist() == [
    np.sum(labels == one) for one in (3, 5, 8, 90)
  ]
  assert found.means() == {
    "people_a": pytest.approx(np.mean(want)),
    "people_b": 0.0,
    "people_c": 1.0,
  }
  assert np.mean(scores >= 0.5) != pytest.approx(np.mean(want), abs=0.05)


def test_a_score_at_the_threshold_is_accepted():
  found = people_rates(np.array([0.5, 0.4]), np.array([1, 1]), {"a": 0.5})
  assert found.tars["a"].tolist() == [0.5]
