"""What is left of a search when images of it are taken out."""

import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.protocols.search_file import Search
from jamsface_jax.protocols.search_set import SearchSet
from jamsface_jax.protocols.test_set import JudgingSettings

SETTINGS = JudgingSettings(
  fars=None, poolings=(), flip=None, plain=True, replicates=0
)


def search_among(*, gallery):
  """Probes 0 to 5 of three people; 10 to 12 of them, or 20 to 29 of nobody."""
  return SearchSet(
    "faces",
    Search(
      probes=np.arange(6),
      probe_subjects=np.array([0, 0, 1, 1, 2, 2]),
      gallery=np.arange(10, 13) if gallery else np.arange(0),
      gallery_subjects=np.arange(3 if gallery else 0),
      distractors=np.arange(20, 30),
    ),
  )


def judged(search, rows):
  (found,) = search.judge([rows[search.ids]], SETTINGS, what="rows")
  return found.metrics


@pytest.mark.parametrize(
  ("gallery", "gone", "counts", "like"),
  [
    (True, [0, 3, 11, 25, 99], {"images": 4, "probes": 2}, [1, 2, 4, 5]),
    (False, [5, 20], {"images": 2, "probes": 1}, [0, 1, 2, 3, 4]),
  ],
)
def test_what_is_left_is_judged_as_if_nothing_else_had_been(
  gallery, gone, counts, like
):
  rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
  whole = search_among(gallery=gallery)
  left, found = whole.without(np.array(gone))
  assert found == counts
  assert left.ids.tolist() == [n for n in whole.ids.tolist() if n not in gone]
  old = whole._search
  keep = [n for n in (10, 12) if gallery]
  wanted = Search(
    probes=np.array(like),
    probe_subjects=old.probe_subjects[like],
    gallery=np.array(keep, int),
    gallery_subjects=np.array(keep, int) - 10,
    distractors=np.array([n for n in range(20, 30) if n not in gone]),
  )
  assert judged(left, rows) == judged(SearchSet("faces", wanted), rows)
  assert judged(left, rows) != judged(whole, rows)


@pytest.mark.parametrize(
  ("gallery", "gone"),
  [
    (True, [10, 11, 12]),
    (True, range(6)),
    (False, [0, 2, 4]),
    (False, range(20, 30)),
  ],
)
def test_a_search_of_nothing_is_none(gallery, gone):
  with pytest.raises(InputError, match="faces: no probe"):
    search_among(gallery=gallery).without(np.array(gone))
