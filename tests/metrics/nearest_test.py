"""Exact search beside sorting all cosines; orders, ties, owners, nobody's."""

import numpy as np
import pytest

from jamsface_jax.metrics import nearest as module
from jamsface_jax.metrics.nearest import nearest


def by_sorting(cosines, owners, k):
  """(owner, row) of the first row of each of the K best owners."""
  found = {}
  for row in np.lexsort((np.arange(len(owners)), -cosines)):
    if owners[row] >= 0:
      found.setdefault(int(owners[row]), int(row))
  return list(found.items())[:k]


@pytest.mark.parametrize("whole", [False, True], ids=["real", "ties"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("people", [1, 3, 40, 700])
def test_agrees_with_sorting(monkeypatch, people, together, whole):
  monkeypatch.setattr(module, "_PROBES", 7)
  monkeypatch.setattr(module, "_ROWS", 32)
  rng = np.random.default_rng(people)
  # Whole numbers are multiplied without rounding: ties are ties.
  gallery = rng.integers(-2, 3, (701, 6)).astype(np.float32)
  probes = rng.integers(-2, 3, (23, 6)).astype(np.float32)
  lengths = None
  if not whole:
    gallery += rng.normal(size=gallery.shape).astype(np.float32)
    probes += rng.normal(size=probes.shape).astype(np.float32)
    lengths = np.linalg.norm(gallery.astype(np.float64), axis=1)
  owners = rng.integers(-1, people, len(gallery))
  if together:
    owners = np.sort(owners)
  cosines = probes @ gallery.T
  if lengths is not None:
    cosines *= (1 / lengths).astype(np.float32)
  for k in (1, 5):
    found = nearest(probes, gallery, owners, k, lengths=lengths)
    for probe in range(len(probes)):
      want = by_sorting(cosines[probe], owners, k)
      there = found.owner[probe] >= 0
      got = list(zip(found.owner[probe], found.row[probe], strict=True))
      assert got[: len(want)] == want and there.sum() == len(want)
      np.testing.assert_allclose(
        found.cosine[probe, there],
        [cosines[probe, row] for _, row in want],
        atol=1e-5,
      )
      assert (found.cosine[probe, ~there] == -np.inf).all()


def test_rows_without_a_direction_find_and_are_nobody():
  gallery = np.eye(4, dtype=np.float16)
  gallery[1] = np.nan
  probes = np.eye(4, dtype=np.float32)[[0, 1]]
  probes[1] = np.nan
  found = nearest(probes, gallery, np.array([0, -1, 2, 3]), 4)
  assert found.owner.tolist() == [[0, 2, 3, -1], [-1] * 4]
  assert found.cosine[0, :3].tolist() == [1, 0, 0]
