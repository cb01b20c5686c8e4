"""Metrics against answers known by hand and slow definitions."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jamsface_jax import verification
from jamsface_jax.errors import InputError

NAN = float("nan")
FARS = (1e-3, 0.01, 0.1, 0.2, 0.25, 0.5, 1.0)


@st.composite
def tied_pairs(draw):
  """Few distinct scores, so many ties, and at least one pair of each kind."""
  size = draw(st.integers(2, 40))
  top = draw(st.integers(0, 12))
  scores = draw(st.lists(st.integers(-top, top), min_size=size, max_size=size))
  same = draw(
    st.lists(st.booleans(), min_size=size, max_size=size).filter(
      lambda kinds: 0 < sum(kinds) < len(kinds)
    )
  )
  return np.array(scores) / 8, np.array(same)


def rates(scores, same, threshold):
  accepted = [s >= threshold for s in scores]
  far = sum(a and not k for a, k in zip(accepted, same, strict=True))
  tar = sum(a and k for a, k in zip(accepted, same, strict=True))
  return far / sum(~same), tar / sum(same)


# Scores, kinds, then what they must give: EER, AUC and TAR at FAR 0.25 and 0.5.
KNOWN = {
  "separable": ([4, 3, 2, 1], [1, 1, 0, 0], 0.0, 1.0, [NAN, 1.0]),
  "reversed": ([4, 3, 2, 1], [0, 0, 1, 1], 1.0, 0.0, [NAN, 0.0]),
  "all equal": ([7, 7, 7, 7], [1, 0, 1, 0], 0.5, 0.5, [NAN, 0.0]),
  "one positive": ([5, 4, 3, 2, 1], [0, 1, 0, 0, 0], 0.25, 0.75, [1.0, 1.0]),
  # Cutting through the tie would give TAR 1 at FAR 0.
  "tie": ([3, 2, 2, 1], [1, 1, 0, 0], 0.25, 0.875, [NAN, 1.0]),
  "one negative": ([3, 2, 1], [1, 0, 1], 0.5, 0.5, [NAN, NAN]),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_answers(case):
  scores, same, eer, auc, tars = KNOWN[case]
  same = np.array(same, bool)
  assert verification.equal_error_rate(scores, same) == pytest.approx(eer)
  assert verification.auc(scores, same) == pytest.approx(auc)
  got = verification.tar_at_far(scores, same, [0.25, 0.5])
  np.testing.assert_array_equal(got, tars)


def test_roc_by_hand():
  curve = verification.roc([2, 5, 2, 1, 5], np.array([1, 1, 0, 0, 0], bool))
  np.testing.assert_array_equal(curve.thresholds, [np.inf, 5, 2, 1])
  np.testing.assert_array_equal(curve.far, [0, 1 / 3, 2 / 3, 1])
  np.testing.assert_array_equal(curve.tar, [0, 0.5, 1, 1])
  assert curve.num_negatives == 3


@settings(deadline=None)
@given(tied_pairs())
def test_roc_counts_at_every_distinct_score(pairs):
  scores, same = pairs
  curve = verification.roc(scores, same)
  wanted = [np.inf, *sorted(set(scores), reverse=True)]
  np.testing.assert_array_equal(curve.thresholds, wanted)
  counted = [rates(scores, same, t) for t in wanted]
  np.testing.assert_array_equal(curve.far, [far for far, _ in counted])
  np.testing.assert_array_equal(curve.tar, [tar for _, tar in counted])


@settings(deadline=None)
@given(tied_pairs())
def test_tar_at_far_is_the_best_over_all_thresholds(pairs):
  scores, same = pairs
  counted = [rates(scores, same, t) for t in [np.inf, *scores]]
  wanted = [
    max(tar for far, tar in counted if far <= allowed)
    if allowed * sum(~same) >= 1
    else NAN
    for allowed in FARS
  ]
  got = verification.tar_at_far(scores, same, FARS)
  np.testing.assert_array_equal(got, wanted)


def test_far_of_exactly_one_negative_is_measured():
  # 1 / 1000 and 3 / 3000 are the float 1e-3: equality must not be lost.
  for negatives, passing in ((1000, 1), (3000, 3)):
    scores = np.r_[np.arange(negatives), negatives - passing - 0.5]
    same = np.r_[np.zeros(negatives, bool), True]
    assert verification.tar_at_far(scores, same, [1e-3]) == 1
    just_below = np.nextafter(1e-3, 0)
    wanted = NAN if passing == 1 else 0.0
    got = verification.tar_at_far(scores, same, [just_below])
    np.testing.assert_array_equal(got, [wanted])


@settings(deadline=None)
@given(tied_pairs())
def test_auc_counts_pairs_of_pairs(pairs):
  scores, same = pairs
  wins = [(p > n) + 0.5 * (p == n) for p in scores[same] for n in scores[~same]]
  assert verification.auc(scores, same) == pytest.approx(np.mean(wins))


@settings(deadline=None)
@given(tied_pairs())
def test_equal_error_rate_bisects_a_random_threshold(pairs):
  # Accepting a share of the tied pairs at a threshold walks the straight line
  # between two points of the curve: bisect that walk for equal errors.
  scores, same = pairs
  falling = sorted(set(scores), reverse=True)

  def errors(walk):
    whole, share = int(walk), walk - int(walk)
    far = tar = 0.0
    for score, kind in zip(scores, same, strict=True):
      place = falling.index(score)
      passed = 1.0 if place < whole else share if place == whole else 0.0
      far += passed * (not kind) / sum(~same)
      tar += passed * kind / sum(same)
    return far, 1 - tar

  low, high = 0.0, float(len(falling))
  for _ in range(60):
    middle = (low + high) / 2
    far, missed = errors(middle)
    low, high = (middle, high) if far < missed else (low, middle)
  got = verification.equal_error_rate(scores, same)
  assert got == pytest.approx(errors(high)[0], abs=1e-9)


@settings(deadline=None)
@given(tied_pairs(), st.sampled_from([np.exp, np.arctan, lambda s: 3 * s - 7]))
def test_only_the_order_of_scores_matters(pairs, transform):
  scores, same = pairs
  before = verification.roc(scores, same)
  after = verification.roc(transform(scores), same)
  np.testing.assert_array_equal(before.far, after.far)
  np.testing.assert_array_equal(before.tar, after.tar)
  order = np.random.default_rng(0).permutation(len(scores))
  shuffled = verification.roc(scores[order], same[order])
  np.testing.assert_array_equal(before.tar, shuffled.tar)
  np.testing.assert_array_equal(before.thresholds, shuffled.thresholds)


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
  got = verification.kfold_accuracy(scores, same, np.array(folds))
  wanted = slow_kfold(scores, same, np.array(folds))
  np.testing.assert_array_equal(got[0], wanted[0])
  np.testing.assert_array_equal(got[1], wanted[1])


def test_kfold_by_hand():
  scores = np.array([0.9, 0.1, 0.8, 0.3, 0.2, 0.7])
  same = np.array([1, 0, 1, 0, 1, 0], bool)
  folds = np.array([0, 0, 1, 1, 2, 2])
  accuracies, thresholds = verification.kfold_accuracy(scores, same, folds)
  # Without fold 0 one cut makes a single mistake, between 0.8 and 0.7; without
  # fold 1 two do, 0.9 to 0.7 and 0.2 to 0.1, and the first is the wider gap;
  # without fold 2 the kinds are parted from 0.8 to 0.3.
  np.testing.assert_allclose(thresholds, [0.75, 0.8, 0.55])
  np.testing.assert_array_equal(accuracies, [1.0, 1.0, 0.0])


def test_kfold_never_sees_the_fold_that_it_scores():
  rng = np.random.default_rng(0)
  scores, same = rng.normal(size=60), rng.random(60) < 0.5
  folds = np.arange(60) % 3
  _, before = verification.kfold_accuracy(scores, same, folds)
  scores[folds == 1] = rng.normal(size=20)
  _, after = verification.kfold_accuracy(scores, same, folds)
  assert before[1] == after[1]
  assert before[0] != after[0]


def test_midpoint_of_neighbouring_floats_still_parts_them():
  low = np.float64(0.1)
  high = np.nextafter(low, 1)
  scores = np.array([low, high, low, high])
  same = np.array([0, 1, 0, 1], bool)
  got = verification.kfold_accuracy(scores, same, np.array([0, 0, 1, 1]))
  np.testing.assert_array_equal(got[0], [1, 1])


def test_verify_reports_every_metric():
  rng = np.random.default_rng(1)
  same = np.arange(600) % 2 == 0
  scores = rng.normal(same * 1.5, 1.0)
  folds = np.arange(600) // 60
  metrics = verification.verify(scores, same, folds, (1e-1, 1e-2, 1e-3))
  accuracies, thresholds = verification.kfold_accuracy(scores, same, folds)
  spread = np.sqrt(sum((accuracies - sum(accuracies) / 10) ** 2) / 10)
  wanted = {
    "accuracy": sum(accuracies) / 10,
    "accuracy_std": spread,
    "threshold": sum(thresholds) / 10,
    "eer": verification.equal_error_rate(scores, same),
    "auc": verification.auc(scores, same),
    "tar@1e-1": verification.tar_at_far(scores, same, [0.1])[0],
    "tar@1e-2": verification.tar_at_far(scores, same, [0.01])[0],
    "tar@1e-3": NAN,  # 300 negative pairs.
  }
  assert metrics == pytest.approx(wanted, nan_ok=True)
  assert all(type(value) is float for value in metrics.values())
  # Two unit normals 1.5 apart: the ideal is Phi(0.75) = 0.7734.
  assert metrics["accuracy"] == pytest.approx(0.7734, abs=0.05)


def test_names_of_tar():
  names = [verification.tar_name(far) for far in (0.1, 1e-4, 2.5e-3, 1.0)]
  assert names == ["tar@1e-1", "tar@1e-4", "tar@2.5e-3", "tar@1e0"]


def test_pair_scores_are_cosines():
  rng = np.random.default_rng(2)
  embeddings = rng.normal(size=(30, 16)).astype(np.float32) * 5
  first, second = rng.integers(0, 30, (2, 200))
  got = verification.pair_scores(embeddings, first, second)
  wide = embeddings.astype(np.float64)
  wanted = [
    wide[i] @ wide[j] / np.linalg.norm(wide[i]) / np.linalg.norm(wide[j])
    for i, j in zip(first, second, strict=True)
  ]
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-14)
  assert got.dtype == np.float64
  assert np.abs(got).max() <= 1


def test_pair_scores_hold_no_copy_of_all_pairs():
  rng = np.random.default_rng(3)
  embeddings = rng.normal(size=(1000, 512)).astype(np.float32)
  first, second = rng.integers(0, 1000, (2, 50_000))
  tracemalloc.start()
  got = verification.pair_scores(embeddings, first, second)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 50_000 * 512 * 4 / 2  # Half of one float32 side of the pairs.
  wide = embeddings[first[-1]].astype(float), embeddings[second[-1]]
  wanted = wide[0] @ wide[1] / np.linalg.norm(wide[0])
  wanted /= np.linalg.norm(wide[1].astype(float))
  assert got[-1] == pytest.approx(wanted, abs=1e-12)  # In the last chunk.


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_embeddings_without_direction_are_refused(value):
  embeddings = np.ones((9, 4), np.float32)
  embeddings[[5, 7]] = value
  with pytest.raises(InputError, match="2 of 9 rows .* row 5;"):
    verification.pair_scores(embeddings, [0], [1])


def test_rank_correlation_by_hand():
  # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
  got = verification.rank_correlation([10, 20, 20, 30], [1, 5, 2, 9])
  assert got == pytest.approx(4.5 / np.sqrt(4.5 * 5))
  assert np.isnan(verification.rank_correlation([1, 1, 1], [1, 2, 3]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2))
def test_rank_correlation_matches_counted_ranks(points):
  x, y = np.array(points).T

  def ranks(values):
    return [sum(values < v) + (sum(values == v) + 1) / 2 for v in values]

  got = verification.rank_correlation(x, y)
  if len(set(x)) < 2 or len(set(y)) < 2:
    assert np.isnan(got)
  else:
    wanted = np.corrcoef(ranks(x), ranks(y))[0, 1]
    assert got == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
  ("scores", "same", "message"),
  [
    ([1, 2], [1, 1], "2 positive ones of 2"),
    ([1, 2], [0, 0], "0 positive ones of 2"),
    ([1, np.nan], [0, 1], "1 scores are not finite"),
    ([1, 2, 3], [0, 1], "Expected scores"),
  ],
)
def test_what_cannot_be_measured_is_refused(scores, same, message):
  with pytest.raises(ValueError, match=message):
    verification.roc(scores, same)


def test_one_fold_and_impossible_rates_are_refused():
  with pytest.raises(ValueError, match="one fold"):
    verification.kfold_accuracy([1, 2], [0, 1], [4, 4])
  with pytest.raises(ValueError, match=r"\(1,\) folds"):
    verification.kfold_accuracy([1, 2], [0, 1], [4])
  for far in (0.0, 1.5, NAN):
    with pytest.raises(ValueError, match="A FAR lies"):
      verification.tar_at_far([1, 2], [0, 1], [far])
