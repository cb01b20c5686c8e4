"""Intervals against resampling done by repeating pairs one by one."""

import numpy as np
import pytest

from jamsface_jax.metrics import bootstrap
from jamsface_jax.metrics.identification import Identification
from jamsface_jax.metrics.roc import roc


def make_pairs(rng, people=12, count=160):
  first, second = rng.integers(0, people, (2, count))
  same = first == second
  same[:6] = True
  second[:6] = first[:6]
  scores = np.round(rng.normal(same * 0.5, 0.4), 1)
  return scores, same, first, second


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_is_the_curve_of_repeated_pairs(seed):
  rng = np.random.default_rng(seed)
  scores, same, first, second = make_pairs(rng)
  resampler = bootstrap.PairResampler(scores, same, first, second)
  curve, weights = resampler.draw(np.random.default_rng(seed))
  people = max(first.max(), second.max()) + 1
  drawn = np.random.default_rng(seed).integers(0, people, people)
  times = [
    sum(drawn == a) * (1 if a == b else sum(drawn == b))
    for a, b in zip(first, second, strict=True)
  ]
  np.testing.assert_array_equal(weights, times)
  repeated = np.repeat(np.arange(len(scores)), times)
  wanted = roc(scores[repeated], same[repeated])
  assert curve.auc() == pytest.approx(wanted.auc(), abs=1e-12)
  assert curve.equal_error_rate() == pytest.approx(
    wanted.equal_error_rate(), abs=1e-12
  )
  fars = [0.5, 0.2, 0.05]
  np.testing.assert_allclose(
    curve.tar_at_far(fars), wanted.tar_at_far(fars), atol=1e-12
  )


@pytest.mark.parametrize("seed", range(40))
def test_a_sample_of_searches_is_that_of_repeated_probes(seed):
  rng = np.random.default_rng(seed)
  found = Identification(
    ranks=rng.integers(1, 4, 40),
    mate_scores=np.round(rng.normal(0.6, 0.2, 40), 1),
    subjects=rng.integers(0, 8, 40),
    other_scores=np.round(rng.normal(0.4, 0.2, 60), 1),
    other_subjects=rng.integers(8, 20, 60),
    gallery_size=99,
  )
  resampler = bootstrap.SearchResampler(found, (1, 2), (0.5, 0.1))
  got = resampler.draw(np.random.default_rng(seed))
  people = len(set(found.subjects) | set(found.other_subjects))
  drawn = np.random.default_rng(seed).integers(0, people, people)
  mated = np.repeat(np.arange(40), [sum(drawn == s) for s in found.subjects])
  _, others = np.unique(
    np.r_[found.subjects, found.other_subjects], return_inverse=True
  )
  others = np.repeat(np.arange(60), [sum(drawn == s) for s in others[40:]])
  wanted = Identification(
    ranks=found.ranks[mated],
    mate_scores=found.mate_scores[mated],
    subjects=found.subjects[mated],
    other_scores=found.other_scores[others],
    other_subjects=found.other_subjects[others],
    gallery_size=99,
  )
  np.testing.assert_allclose(
    got, [*wanted.cmc([1, 2]), *wanted.tpir_at_fpir([0.5, 0.1])], atol=1e-12
  )


def test_a_rate_that_is_met_exactly_counts():
  # One person, so every sample is the whole: half of two answers may be false,
  # and the mate must only be above the second.
  found = Identification(
    ranks=np.array([1]),
    mate_scores=np.array([0.5]),
    subjects=np.array([3]),
    other_scores=np.array([0.6, 0.4]),
    other_subjects=np.array([3, 3]),
    gallery_size=9,
  )
  resampler = bootstrap.SearchResampler(found, (1,), (0.5, 0.49))
  got = resampler.draw(np.random.default_rng(0))
  np.testing.assert_array_equal(got, [1, 1, np.nan])


def test_intervals_hold_what_they_promise():
  # The TAR at one threshold of people with many pairs each, all alike within a
  # person: 40 people, half of whom pass. The share varies as a binomial of 40
  # people, not of the 4,000 pairs.
  rng = np.random.default_rng(0)
  people = np.repeat(np.arange(40), 100)
  scores = np.r_[np.where(people < 20, 0.9, 0.1), np.full(500, 0.5)]
  same = np.r_[np.ones(4000, bool), np.zeros(500, bool)]
  a, b = rng.integers(0, 40, (2, 500))
  b = np.where(a == b, (b + 1) % 40, b)
  resampler = bootstrap.PairResampler(
    scores, same, np.r_[people, a], np.r_[people, b]
  )
  draws = [resampler.draw(rng)[0].tar_at_far([0.5])[0] for _ in range(2000)]
  low, high = bootstrap.interval(np.array(draws))
  half = 1.96 * (0.25 / 40) ** 0.5
  assert low == pytest.approx(0.5 - half, abs=0.03)
  assert high == pytest.approx(0.5 + half, abs=0.03)


def test_interval_leaves_out_what_could_not_be_measured():
  values = np.r_[np.arange(101.0), np.nan]
  assert bootstrap.interval(values) == pytest.approx((2.5, 97.5))
  assert np.isnan(bootstrap.interval(np.array([np.nan]))).all()
