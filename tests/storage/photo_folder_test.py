"""No command writes among somebody's photographs."""

import os

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.storage import lock
from jamsface_jax.storage.photo_folder import refuse_photographs


def fill(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return folder


@pytest.mark.parametrize(
  ("files", "output"),
  [
    (["a.jpg", "b.PNG"], ""),
    (["a.jpg"], "out"),  # To be made among them.
    (["ann/1.jpg", "bob/1.tiff"], ""),  # A folder for each person.
    (["ann/1.jpg", ".hidden"], "ann/out"),
    (["a.jpg", "album/b.jpg"], ""),
  ],
)
def test_photographs_are_left_alone(files, output, tmp_path):
  fill(tmp_path / "P", *files)
  before = sorted(os.walk(tmp_path))
  place = str(tmp_path / "P" / output)
  with (
    pytest.raises(InputError, match="--output=.* among the images of"),
    lock.hold(place, "--output"),
  ):
    pass
  assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize(
  ("files", "output"),
  [
    ([], ""),
    (["results.json", "roc.png"], ""),  # An evaluation's own.
    (["plan.json", "ann/1.jpg"], ""),  # What align has made.
    (["config.json", "plots/roc.png"], "evaluation"),
    (["PEOPLE/ann/1.jpg", "ALBUM/b.jpg"], "F"),
    (["notes.txt", "a.jpg"], "out"),
  ],
)
def test_other_places_are_written_to(files, output, tmp_path):
  fill(tmp_path / "P", *files)
  refuse_photographs(str(tmp_path / "P" / output), "--output")
