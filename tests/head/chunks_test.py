"""How many chunks there are, and how many of them are kept."""

import pytest
from heads import make_head

from jamsface_jax.head.chunks import count_chunks, count_kept


@pytest.mark.parametrize("classes", [1, 5, 6, 37, 100])
@pytest.mark.parametrize("most", [1, 5, 6, 99, 1000])
def test_chunks_are_the_fewest_that_are_small_enough(classes, most):
  chunks, size = count_chunks(classes, make_head(chunk=most))
  assert size <= most and chunks * size >= classes
  assert (chunks - 1) * most < classes
  assert size - classes / chunks < 1  # Equal, but for what does not divide.


@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize("keep_bytes", [0, 999, 10_000, 10**9])
def test_kept_cosines_fill_what_they_may_take(sub_centers, keep_bytes):
  head = make_head(sub_centers=sub_centers, keep_bytes=keep_bytes)
  kept = count_kept(8, 5, 12, head)
  one = 5 * sub_centers * 12 * 4
  assert kept * one <= keep_bytes
  assert kept == 8 or (kept + 1) * one > keep_bytes
