"""The share of variance between groups, by hand and by sums in full."""

import numpy as np
import pytest

from jamsface_jax.metrics.share_explained import share_explained


def test_by_hand():
  # Means 1 and 4 about 2.5: 4 * 1.5^2 = 9 of 9 + 1 + 1 + 4 + 4 = 19.
  found = share_explained(np.array([7, 7, 9, 9]), np.array([0, 2, 2, 6.0]))
  assert found == pytest.approx(9 / 19)


def test_ends_and_nothing_to_explain():
  groups = np.array([1, 1, 2, 2, 3])
  assert share_explained(groups, groups * 0.1) == pytest.approx(1)
  assert share_explained(groups, np.array([0, 1, 0, 1, 0.5])) == 0
  assert np.isnan(share_explained(groups, np.full(5, np.float32(0.3))))
  assert np.isnan(share_explained(np.full(5, 3), np.arange(5.0)))
  rounding = np.float32(0.3) + np.arange(5, dtype=np.float32) * 2e-8
  assert np.isnan(share_explained(groups, rounding))


def test_against_the_sums_in_full():
  rng = np.random.default_rng(0)
  groups = rng.integers(2, 9, 200)
  values = rng.normal(size=200).astype(np.float32) + groups
  within = sum(
    ((values[groups == g] - values[groups == g].mean(dtype="f8")) ** 2).sum()
    for g in range(2, 9)
  )
  total = ((values - values.mean(dtype="f8")) ** 2).sum()
  assert share_explained(groups, values) == pytest.approx(1 - within / total)
