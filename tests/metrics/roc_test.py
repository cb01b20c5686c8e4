"""The ROC curve against answers known by hand and slow definitions."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from tied_pairs import tied_pairs

from jamsface_jax.metrics.roc import RocCounter, roc, tar_name

NAN = float("nan")
FARS = (1e-3, 0.01, 0.1, 0.2, 0.25, 0.5, 1.0)


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
  assert roc(scores, same).equal_error_rate() == pytest.approx(eer)
  assert roc(scores, same).auc() == pytest.approx(auc)
  got = roc(scores, same).tar_at_far([0.25, 0.5])
  np.testing.assert_array_equal(got, tars)


def test_roc_by_hand():
  curve = roc([2, 5, 2, 1, 5, 3], np.array([1, 1, 0, 0, 0, 0], bool))
  np.testing.assert_array_equal(curve.thresholds, [5, 2])
  np.testing.assert_array_equal(curve.tar, [0.5, 1])
  np.testing.assert_array_equal(curve.far_above, [0, 2 / 4])
  np.testing.assert_array_equal(curve.far, [1 / 4, 3 / 4])
  assert curve.num_negatives == 4
  far, tar = curve.corners()
  np.testing.assert_array_equal(far, [0, 0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_array_equal(tar, [0, 0, 0.5, 0.5, 1, 1])


@settings(deadline=None)
@given(tied_pairs())
def test_roc_counts_at_every_distinct_positive_score(pairs):
  scores, same = pairs
  curve = roc(scores, same)
  wanted = sorted(set(scores[same]), reverse=True)
  np.testing.assert_array_equal(curve.thresholds, wanted)
  counted = [rates(scores, same, t) for t in wanted]
  np.testing.assert_array_equal(curve.far, [far for far, _ in counted])
  np.testing.assert_array_equal(curve.tar, [tar for _, tar in counted])
  above = [rates(scores, same, np.nextafter(t, 9))[0] for t in wanted]
  np.testing.assert_array_equal(curve.far_above, above)


@settings(deadline=None)
@given(tied_pairs(), st.integers(1, 7))
def test_blocks_of_negatives_give_the_same_curve(pairs, size):
  scores, same = pairs
  whole = roc(scores, same)
  counter = RocCounter(scores[same])
  negatives = scores[~same]
  for start in range(0, len(negatives), size):
    block = negatives[start : start + size]
    np.testing.assert_array_equal(counter.add(block), np.sort(block))
  curve = counter.roc()
  for name in ("thresholds", "tar", "far_above", "far", "num_negatives"):
    np.testing.assert_array_equal(getattr(curve, name), getattr(whole, name))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
  "decimals", [2, 12]
)  # With many ties, with hardly any.
def test_agrees_with_scikit_learn(dtype, decimals):
  rng = np.random.default_rng(decimals)
  same = rng.random(20_000) < 0.1
  scores = np.round(rng.normal(same * 0.3, 0.2), decimals).astype(dtype)
  far, tar, thresholds = metrics.roc_curve(
    same, scores, drop_intermediate=False
  )
  curve = roc(scores, same)
  assert curve.auc() == pytest.approx(metrics.auc(far, tar), abs=1e-12)
  # Each of our points is one of theirs,
  places = np.searchsorted(-thresholds, -curve.thresholds)
  np.testing.assert_array_equal(thresholds[places], curve.thresholds)
  np.testing.assert_allclose(curve.far, far[places], rtol=0, atol=1e-12)
  np.testing.assert_allclose(curve.tar, tar[places], rtol=0, atol=1e-12)
  # and at each of their rates ours gives their best.
  rates = far[far > 0]
  best = [tar[far <= rate].max() for rate in rates]
  np.testing.assert_allclose(curve.tar_at_far(rates), best, rtol=0, atol=1e-12)
  # Where they cross, by linear interpolation of all of their points.
  crossing = np.interp(0, far - (1 - tar), far)
  assert curve.equal_error_rate() == pytest.approx(crossing, abs=1e-12)


def test_counting_keeps_no_negatives():
  rng = np.random.default_rng(0)
  counter = RocCounter(rng.random(1000, np.float32))
  tracemalloc.start()
  for seed in range(50):
    block = np.random.default_rng(seed).random(100_000, np.float32)
    counter.add(block)
    del block
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert counter.roc().num_negatives == 5_000_000
  assert peak < 4 * 100_000 * 4  # A few blocks of the fifty.


def test_threshold_reaches_the_rate_that_it_is_for():
  rng = np.random.default_rng(5)
  same = np.arange(3000) % 3 == 0
  scores = np.round(rng.normal(same * 1.0, 1.0), 2)
  curve = roc(scores, same)
  fars = [0.3, 0.01, 1 / 2000, 1e-4]
  found = curve.threshold_at_far(fars)
  tars = curve.tar_at_far(fars)
  for far, threshold, tar in zip(fars, found, tars, strict=True):
    if far < 1 / 2000:
      assert np.isnan(threshold) and np.isnan(tar)
    else:
      assert np.mean(scores[~same] >= threshold) <= far
      assert np.mean(scores[same] >= threshold) == tar
  worse = roc([1, 2, 3, 3], np.array([1, 1, 0, 0], bool))
  assert worse.threshold_at_far([0.5]) == np.inf


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
  got = roc(scores, same).tar_at_far(FARS)
  np.testing.assert_array_equal(got, wanted)


def test_far_of_exactly_one_negative_is_measured():
  # 1 / 1000 and 3 / 3000 are the float 1e-3: equality must not be lost.
  for negatives, passing in ((1000, 1), (3000, 3)):
    scores = np.r_[np.arange(negatives), negatives - passing - 0.5]
    same = np.r_[np.zeros(negatives, bool), True]
    assert roc(scores, same).tar_at_far([1e-3]) == 1
    just_below = np.nextafter(1e-3, 0)
    wanted = NAN if passing == 1 else 0.0
    got = roc(scores, same).tar_at_far([just_below])
    np.testing.assert_array_equal(got, [wanted])


@settings(deadline=None)
@given(tied_pairs())
def test_auc_counts_pairs_of_pairs(pairs):
  scores, same = pairs
  wins = [(p > n) + 0.5 * (p == n) for p in scores[same] for n in scores[~same]]
  assert roc(scores, same).auc() == pytest.approx(np.mean(wins))


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
  got = roc(scores, same).equal_error_rate()
  assert got == pytest.approx(errors(high)[0], abs=1e-9)


@settings(deadline=None)
@given(tied_pairs(), st.sampled_from([np.exp, np.arctan, lambda s: 3 * s - 7]))
def test_only_the_order_of_scores_matters(pairs, transform):
  scores, same = pairs
  before = roc(scores, same)
  after = roc(transform(scores), same)
  np.testing.assert_array_equal(before.far, after.far)
  np.testing.assert_array_equal(before.tar, after.tar)
  order = np.random.default_rng(0).permutation(len(scores))
  shuffled = roc(scores[order], same[order])
  np.testing.assert_array_equal(before.tar, shuffled.tar)
  np.testing.assert_array_equal(before.thresholds, shuffled.thresholds)


def test_names_of_tar():
  names = [tar_name(far) for far in (0.1, 1e-4, 2.5e-3, 1.0)]
  assert names == ["tar@1e-1", "tar@1e-4", "tar@2.5e-3", "tar@1e0"]


@pytest.mark.parametrize(
  ("scores", "same", "message"),
  [
    ([1, 2], [1, 1], "negative pairs; got none"),
    ([1, 2], [0, 0], "positive pairs; got none"),
    ([1, np.nan], [0, 1], "1 scores are not finite"),
    ([np.inf, 2], [0, 1], "1 scores are not finite"),
    ([1, 2, 3], [0, 1], "Expected scores"),
  ],
)
def test_what_cannot_be_measured_is_refused(scores, same, message):
  with pytest.raises(ValueError, match=message):
    roc(scores, same)


def test_rounded_scores_are_refused():
  counter = RocCounter(np.array([0.1]))
  with pytest.raises(ValueError, match="float64, negatives float32"):
    counter.add(np.array([0.1], np.float32))


@pytest.mark.parametrize("far", [0.0, 1.5, NAN])
def test_impossible_rates_are_refused(far):
  with pytest.raises(ValueError, match="A FAR lies"):
    roc([1, 2], [0, 1]).tar_at_far([far])
