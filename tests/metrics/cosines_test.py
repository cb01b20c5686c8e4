"""Cosines against plain sums in float64."""

import tracemalloc

import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.metrics import cosines


def test_pair_scores_are_cosines():
  rng = np.random.default_rng(2)
  embeddings = rng.normal(size=(30, 16)).astype(np.float32) * 5
  first, second = rng.integers(0, 30, (2, 200))
  got = cosines.pair_cosines(embeddings, first, second, what="e")
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
  got = cosines.pair_cosines(embeddings, first, second, what="e")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 50_000 * 512 * 4 / 2  # Half of one float32 side of the pairs.
  wide = embeddings[first[-1]].astype(float), embeddings[second[-1]]
  wanted = wide[0] @ wide[1] / np.linalg.norm(wide[0])
  wanted /= np.linalg.norm(wide[1].astype(float))
  assert got[-1] == pytest.approx(wanted, abs=1e-12)  # In the last chunk.


@pytest.mark.parametrize("tile", [(1024, 2048), (7, 5), (5, 16), (1, 1)])
def test_many_pairs_are_read_off_the_product(monkeypatch, tile):
  monkeypatch.setattr(cosines, "TILE", tile)
  rng = np.random.default_rng(4)
  units = cosines.unit_rows(rng.normal(size=(37, 9)), what="e")
  first, second = rng.integers(0, 37, (2, 500)).astype(np.int32)
  got = cosines.many_pair_cosines(units, first, second)
  assert got.dtype == np.float32
  wanted = (units.astype(float) @ units.T.astype(float))[first, second]
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
  assert len(cosines.many_pair_cosines(units, first[:0], second[:0])) == 0


def test_tiles_cover_the_product_once(monkeypatch):
  monkeypatch.setattr(cosines, "TILE", (3, 4))
  seen = np.zeros((10, 9), int)
  for rows, columns in cosines.tiles(np.empty((10, 2)), np.empty((9, 2))):
    seen[rows, columns] += 1
  np.testing.assert_array_equal(seen, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_embeddings_without_direction_are_refused(value):
  embeddings = np.ones((9, 4), np.float32)
  embeddings[[5, 7]] = value
  message = r"E.npy: 2 of rows 100 to 108 .* row 105;"
  with pytest.raises(InputError, match=message):
    cosines.row_lengths(embeddings, first=100, what="E.npy")
  with pytest.raises(InputError, match="row 5;"):
    cosines.pair_cosines(embeddings, np.array([0]), np.array([1]), what="E.npy")
  with pytest.raises(InputError, match="row 5;"):
    cosines.unit_rows(embeddings, what="E.npy")
