"""Searches against sorting every probe's whole gallery."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jamsface_jax.metrics import cosines, identification
from jamsface_jax.metrics.cosines import unit_rows

NAN = float("nan")


def small_units(rng, count):
  """Unit rows of few directions, so that many cosines are equal."""
  return np.eye(4, dtype=np.float32)[rng.integers(0, 4, count)]


def slow_search(probes, probe_subjects, gallery, gallery_subjects, itself):
  """(rank, mate's score) of mated probes; best score of the others."""
  mated, others = [], []
  for i, probe in enumerate(probes):
    entries = [
      (float(probe @ entry), subject == probe_subjects[i])
      for j, (entry, subject) in enumerate(
        zip(gallery, gallery_subjects, strict=True)
      )
      if not (itself and i == j)
    ]
    mates = [score for score, is_mate in entries if is_mate]
    strangers = [score for score, is_mate in entries if not is_mate]
    if mates:
      best = max(mates)
      mated.append((1 + sum(s >= best for s in strangers), best))
    else:
      others.append(max(strangers))
  return sorted(mated), sorted(others)


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("tile", [(1024, 2048), (3, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_search_matches_sorting(monkeypatch, itself, tile, ties):
  monkeypatch.setattr(cosines, "TILE", tile)
  rng = np.random.default_rng(7)
  make = (
    small_units
    if ties
    else lambda r, n: unit_rows(r.normal(size=(n, 6)), what="e")
  )
  probes, subjects = make(rng, 40), rng.integers(0, 9, 40)
  gallery, entries = make(rng, 30), rng.integers(-1, 6, 30)
  if itself:
    subjects[:8] = np.arange(20, 28)  # Alone, so without a mate.
    gallery, entries = probes, subjects
  found = identification.identify(
    probes, subjects, gallery, entries, same_images=itself
  )
  mated, others = slow_search(probes, subjects, gallery, entries, itself)
  got = sorted(zip(found.ranks, found.mate_scores, strict=True))
  assert [rank for rank, _ in got] == [rank for rank, _ in mated]
  np.testing.assert_allclose(
    [score for _, score in got], [score for _, score in mated], atol=1e-6
  )
  np.testing.assert_allclose(np.sort(found.other_scores), others, atol=1e-6)
  assert others and mated and max(found.ranks) > 1
  assert sorted([*found.subjects, *found.other_subjects]) == sorted(subjects)
  for k in (1, 5, 10):
    share = np.mean([rank <= k for rank, _ in mated])
    assert found.rank(k) == share
    assert found.cmc([k]) == share


def open_set(ranks, mates, others):
  return identification.Identification(
    ranks=np.array(ranks),
    mate_scores=np.array(mates, np.float32),
    subjects=np.arange(len(ranks)),
    other_scores=np.array(others, np.float32),
    other_subjects=np.arange(len(others)),
    gallery_size=100,
  )


def test_open_set_by_hand():
  found = open_set([1, 1, 1, 2], [0.9, 0.5, 0.3, 0.8], [0.6, 0.5, 0.4, 0.1])
  # No false answer is worth less than a quarter. With one, a mate must be above
  # 0.5: one of four is; the tie at 0.5 is not. With all, those at rank 1 are.
  got = found.tpir_at_fpir([0.24, 0.25, 0.5, 1.0])
  np.testing.assert_array_equal(got, [NAN, 0.25, 0.5, 0.75])
  nobody = open_set([1], [0.5], [])
  np.testing.assert_array_equal(nobody.tpir_at_fpir([0.1, 1.0]), [NAN, NAN])
  for fpir in (0, 1.5, NAN):
    with pytest.raises(ValueError, match="An FPIR lies"):
      found.tpir_at_fpir([fpir])


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.1, 1 / 3, 0.7, 1.0]))
def test_tpir_is_the_best_over_all_thresholds(seed, fpir):
  rng = np.random.default_rng(seed)
  ranks = rng.integers(1, 4, rng.integers(1, 12))
  mates = rng.integers(0, 8, len(ranks)) / 8
  others = rng.integers(0, 8, rng.integers(1, 25)) / 8
  rates = [
    (np.mean(others >= t), np.mean((ranks == 1) & (mates >= t)))
    for t in [*others, *mates, np.inf]
  ]
  best = max(tpir for false, tpir in rates if false <= fpir)
  wanted = best if fpir >= 1 / len(others) else NAN
  got = open_set(ranks, mates, others).tpir_at_fpir([fpir])
  np.testing.assert_array_equal(got, [wanted])


@pytest.mark.parametrize("ties", [False, True])
def test_mates_alone_among_distractors(monkeypatch, ties):
  monkeypatch.setattr(cosines, "TILE", (4, 6))
  rng = np.random.default_rng(11)
  if ties:
    probes, distractors = small_units(rng, 14), small_units(rng, 50)
  else:
    probes = unit_rows(rng.normal(size=(14, 5)), what="e")
    distractors = unit_rows(rng.normal(size=(50, 5)), what="e")
  subjects = rng.integers(0, 4, 14)
  sizes = [1, 10, 50]
  got = identification.identify_among_distractors(
    probes, subjects, distractors, sizes
  )
  for size, row in zip(sizes, got, strict=True):
    wanted = []
    for i in range(14):
      for j in range(14):
        if i != j and subjects[i] == subjects[j]:
          mate = probes[i] @ probes[j]
          wanted.append(
            1 + sum(probes[i] @ d >= mate for d in distractors[:size])
          )
    assert sorted(row) == sorted(wanted)
  assert got[0].max() == 2 and got[2].max() > 5


def test_nobody_to_find_is_refused():
  rows = np.eye(3, dtype=np.float32)
  with pytest.raises(ValueError, match="No probe has a mate"):
    identification.identify(
      rows, np.arange(3), rows, np.arange(3) + 5, same_images=False
    )
  with pytest.raises(ValueError, match="No person has two images"):
    identification.identify_among_distractors(rows, np.arange(3), rows, [3])


@pytest.mark.parametrize("value", [NAN, np.inf])
@pytest.mark.parametrize("where", ["probes", "gallery"])
def test_what_is_not_finite_has_no_rank(where, value):
  rows = {"probes": np.eye(4, dtype="f4"), "gallery": np.eye(4, dtype="f4")}
  rows[where][1, 2] = rows[where][3, 0] = value
  people = np.arange(4)
  with pytest.raises(ValueError, match=f"^2 of 4 .*{where}.* are not finite"):
    identification.identify(
      rows["probes"], people, rows["gallery"], people, same_images=False
    )
  pairs = np.array([0, 0, 1, 1])
  with pytest.raises(ValueError, match="^2 of 4 .* are not finite"):
    identification.identify_among_distractors(
      rows["probes"], pairs, rows["gallery"], [1, 4]
    )
