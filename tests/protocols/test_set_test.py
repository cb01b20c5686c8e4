"""The embeddings of a set, which are the most that judging holds."""

import pathlib
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from jaxtyping import Float32

from jamsface_jax.metrics.cosines import unit_rows
from jamsface_jax.protocols.test_set import collected

RESIDENT = pathlib.Path("/proc/self/statm")


def make_blocks(count: int, size: int) -> Iterator[Float32[np.ndarray, "k d"]]:
  """Blocks of a hundred rows; the last is shorter."""
  for start in range(0, count, 100):
    rows = np.arange(start, min(start + 100, count), dtype=np.float32)
    yield np.repeat(rows[:, None], size, axis=1)


def test_rows_of_all_blocks_in_order():
  rows = collected(make_blocks(250, 3), 250)
  wanted = np.concatenate(list(make_blocks(250, 3)))
  np.testing.assert_array_equal(rows, wanted, strict=True)


def test_embeddings_are_held_once_and_their_directions_once():
  count, size = 40_000, 512
  whole = count * size * 4
  tracemalloc.start()
  rows = collected(make_blocks(count, size), count)
  assert tracemalloc.get_traced_memory()[1] < 1.1 * whole
  # A chunk of 32 MiB in float64 beside both.
  units = unit_rows(rows + 1, what="e")
  assert tracemalloc.get_traced_memory()[1] < 3 * whole + 40 * 2**20
  tracemalloc.stop()
  np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, rtol=1e-6)


@pytest.mark.skipif(not RESIDENT.exists(), reason="Linux counts there")
def test_memory_is_taken_with_the_first_block():
  resident = []

  def watched() -> Iterator[Float32[np.ndarray, "k d"]]:
    for block in make_blocks(50_000, 512):  # 98 MiB.
      resident.append(int(RESIDENT.read_text().split()[1]))
      yield block

  collected(watched(), 50_000)
  pages = 50_000 * 512 * 4 // 4096
  assert resident[1] - resident[0] > 0.9 * pages
  assert resident[-1] - resident[1] < 0.1 * pages
