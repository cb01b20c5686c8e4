"""Rank correlation against ranks that are counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jamsface_jax.metrics.rank_correlation import rank_correlation


def test_rank_correlation_by_hand():
  # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
  got = rank_correlation([10, 20, 20, 30], [1, 5, 2, 9])
  assert got == pytest.approx(4.5 / np.sqrt(4.5 * 5))
  assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2))
def test_rank_correlation_matches_counted_ranks(points):
  x, y = np.array(points).T

  def ranks(values):
    return [sum(values < v) + (sum(values == v) + 1) / 2 for v in values]

  got = rank_correlation(x, y)
  if len(set(x)) < 2 or len(set(y)) < 2:
    assert np.isnan(got)
  else:
    wanted = np.corrcoef(ranks(x), ranks(y))[0, 1]
    assert got == pytest.approx(wanted, abs=1e-12)
