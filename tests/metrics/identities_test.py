"""Identities from pairs, against flooding from every image."""

import numpy as np
import pytest

from jamsface_jax.metrics.identities import connected_people, find_identities


@pytest.mark.parametrize("seed", range(20))
def test_people_are_what_positive_pairs_join(seed):
  rng = np.random.default_rng(seed)
  count = 60
  first, second = rng.integers(0, count, (2, 45))
  same = rng.random(45) < 0.8
  got = connected_people(count, first, second, same)
  # Flood from every image in turn.
  neighbours = {i: {i} for i in range(count)}
  for i, j in zip(first[same], second[same], strict=True):
    neighbours[i].add(j)
    neighbours[j].add(i)
  for i in range(count):
    reached, edge = set(), {i}
    while edge:
      reached |= edge
      edge = set.union(*(neighbours[k] for k in edge)) - reached
    assert {k for k in range(count) if got[k] == got[i]} == reached
  assert set(got) == set(range(len(set(got))))


def test_a_long_chain_is_one_person():
  order = np.random.default_rng(0).permutation(5000)
  same = np.ones(4999, bool)
  got = connected_people(5000, order[:-1], order[1:], same)
  assert not got.any()


def test_labels_are_the_identities_if_the_pairs_agree():
  first, second = np.array([0, 1, 3]), np.array([1, 2, 4])
  labels = np.array([7, 7, 2, 9, 9])
  same = np.array([True, False, True])
  got = find_identities(5, first, second, same, labels)
  np.testing.assert_array_equal(got, [1, 1, 0, 2, 2])
  # Two of the label 9 are two people: the pairs are right.
  same[2] = False
  got = find_identities(5, first, second, same, labels)
  np.testing.assert_array_equal(got, [0, 0, 1, 2, 3])
  unlabelled = find_identities(5, first, second, same, None)
  np.testing.assert_array_equal(unlabelled, got)
