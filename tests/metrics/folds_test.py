"""Accuracy in folds against slow definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tied_pairs import tied_pairs

from jamsface_jax.metrics import folds as folds_lib


def slow_kfold(scores, same, folds):
  """Every candidate threshold on every pair: (accuracies, thresholds)."""
  accuracies, thresholds = [], []
  for fold in sorted(set(folds)):
    train = folds != fold
    values = sorted(set(scores[train]))
    # Each candidate with the width of the gap that it stands in.
    candidates = [(values[0], 0.0), (np.nextafter(values[-1], np.inf), 0.0)]
    candidates += [
      ((low + high) / 2, high - low)
      for low, high in zip(values[:-1], values[1:], strict=True)
    ]
    best = max(
      (np.mean((scores[train] >= t) == same[train]), width, t)
      for t, width in candidates
    )[2]
    test = folds == fold
    accuracies.append(np.mean((scores[test] >= best) == same[test]))
    thresholds.append(best)
  return accuracies, thresholds


@settings(deadline=None)
@given(tied_pairs(), st.integers(2, 5), st.randoms(use_true_random=False))
def test_kfold_matches_trying_every_threshold(pairs, num_folds, random):
  scores, same = pairs  # Eighths: midpoints and gaps are exact floats.
  folds = [i % num_folds * 3 - 1 for i in range(len(scores))]
  random.shuffle(folds)
  got = folds_lib.kfold_accuracy(scores, same, np.array(folds))
  wanted = slow_kfold(scores, same, np.array(folds))
  np.testing.assert_array_equal(got[0], wanted[0])
  np.testing.assert_array_equal(got[1], wanted[1])


def test_kfold_by_hand():
  scores = np.array([0.9, 0.1, 0.8, 0.3, 0.2, 0.7])
  same = np.array([1, 0, 1, 0, 1, 0], bool)
  folds = np.array([0, 0, 1, 1, 2, 2])
  accuracies, thresholds = folds_lib.kfold_accuracy(scores, same, folds)
  # Without fold 0 one cut makes a single mistake, between 0.8 and 0.7; without
  # fold 1 two do, 0.9 to 0.7 and 0.2 to 0.1, and the first is the wider gap;
  # without fold 2 the kinds are parted from 0.8 to 0.3.
  np.testing.assert_allclose(thresholds, [0.75, 0.8, 0.55])
  np.testing.assert_array_equal(accuracies, [1.0, 1.0, 0.0])


def test_kfold_never_sees_the_fold_that_it_scores():
  rng = np.random.default_rng(0)
  scores, same = rng.normal(size=60), rng.random(60) < 0.5
  folds = np.arange(60) % 3
  _, before = folds_lib.kfold_accuracy(scores, same, folds)
  scores[folds == 1] = rng.normal(size=20)
  _, after = folds_lib.kfold_accuracy(scores, same, folds)
  assert before[1] == after[1]
  assert before[0] != after[0]


def test_midpoint_of_neighbouring_floats_still_parts_them():
  low = np.float64(0.1)
  high = np.nextafter(low, 1)
  scores = np.array([low, high, low, high])
  same = np.array([0, 1, 0, 1], bool)
  got = folds_lib.kfold_accuracy(scores, same, np.array([0, 0, 1, 1]))
  np.testing.assert_array_equal(got[0], [1, 1])


@pytest.mark.parametrize(
  ("scores", "same", "folds", "message"),
  [
    ([1, 2], [0, 1], [4, 4], "one fold"),
    ([1, 2], [0, 1], [4], r"\(1,\) folds"),
    ([1, 2], [1, 1], [1, 2], "2 positive ones of 2"),
    ([1, np.nan], [0, 1], [1, 2], "1 scores are not finite"),
    ([1, 2, 3], [0, 1], [1, 2], "Expected scores"),
  ],
)
def test_what_cannot_be_measured_is_refused(scores, same, folds, message):
  with pytest.raises(ValueError, match=message):
    folds_lib.kfold_accuracy(scores, same, folds)
