"""What is kept of many scores against having kept them all."""

import numpy as np
import pytest

from jamsface_jax.metrics.score_counts import (
  EDGES,
  HARDEST,
  ScoreCounter,
  count_scores,
)


def make_scores(count=5000):
  rng = np.random.default_rng(0)
  same = rng.random(count) < 0.1
  scores = np.clip(rng.normal(same * 0.4, 0.3), -1, 1).astype(np.float32)
  first, second = rng.integers(0, 10**6, (2, count))
  return scores, same, first, second


def check(score_counts, scores, same, first, second):
  """Compares with everything sorted at once."""
  order = np.argsort(scores, kind="stable")
  lowest = [i for i in order if same[i]][:HARDEST]
  highest = [i for i in order[::-1] if not same[i]][:HARDEST]
  for hardest, wanted in (
    (score_counts.hardest_positives, lowest),
    (score_counts.hardest_negatives, highest),
  ):
    np.testing.assert_array_equal(hardest.scores, scores[wanted])
    np.testing.assert_array_equal(hardest.first, first[wanted])
    np.testing.assert_array_equal(hardest.second, second[wanted])
  for counts, kind in (
    (score_counts.positive_counts, same),
    (score_counts.negative_counts, ~same),
  ):
    wanted, _ = np.histogram(scores[kind], EDGES.astype(scores.dtype))
    np.testing.assert_array_equal(counts, wanted)
  assert score_counts.num_positives == same.sum()
  assert score_counts.curve.num_negatives == (~same).sum()


def test_pairs_at_hand():
  pairs = make_scores()
  check(count_scores(*pairs), *pairs)


@pytest.mark.parametrize("block", [1, 7, 300])
def test_pairs_in_blocks(block):
  scores, same, first, second = make_scores(2000)
  pairs = ScoreCounter(scores[same], first[same], second[same])
  places = np.flatnonzero(~same)
  for start in range(0, len(places), block):
    some = places[start : start + block]
    pairs.add(
      scores[some], lambda k, some=some: (first[some[k]], second[some[k]])
    )
  check(pairs.counts(), scores, same, first, second)


def test_few_pairs_and_cosines_rounded_past_one():
  scores = np.float32([1, 1, -1, 0])
  scores[0] = np.nextafter(np.float32(1), np.float32(2))
  same = np.array([True, False, False, False])
  score_counts = count_scores(scores, same, np.arange(4), np.arange(4) + 4)
  assert (
    score_counts.positive_counts[-1] == 1
    and score_counts.positive_counts.sum() == 1
  )
  assert score_counts.negative_counts[[0, 100, -1]].tolist() == [1, 1, 1]
  np.testing.assert_array_equal(score_counts.hardest_negatives.first, [1, 3, 2])
