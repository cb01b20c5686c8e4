"""Images that are searched and found: folders of TinyFace, or of your own."""

import os
import zlib
from typing import NamedTuple

import scipy.io

from jamsface_jax.data.folders import (
  Walk,
  count_beside,
  find_folders,
  walk,
)
from jamsface_jax.errors import InputError

# TinyFace: role, folder, file of its names and subjects, keys in the file.
_TINYFACE = (
  ("probe", "Probe", "probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
  (
    "gallery",
    "Gallery_Match",
    "gallery_match_img_ID_pairs.mat",
    "gallery_set",
    "gallery_ids",
  ),
)

_TINYFACE_DISTRACTORS = "Gallery_Distractor"

# What SciPy raises on files that are something else or cut off.
_DAMAGED = (
  ValueError,
  LookupError,
  TypeError,
  NotImplementedError,
  zlib.error,
  scipy.io.matlab.MatReadError,
)


class Entry(NamedTuple):
  """An image, whose it is ("" for a distractor's), and what it is for."""

  image: str
  subject: str
  role: str


def is_tinyface(source: str) -> bool:
  """Whether a folder is TinyFace's Testing_Set."""
  return os.path.exists(os.path.join(source, _TINYFACE[0][2]))


def read_tinyface(source: str, found: Walk) -> list[Entry]:
  """Reads who is who in TinyFace's Testing_Set.

  Args:
    source: that folder.
    found: takes what is left aside among the distractors.

  Raises:
    InputError: a file or a folder is missing, or is another one.
  """
  entries = []
  for role, folder, file, names_key, ids_key in _TINYFACE:
    path = os.path.join(source, file)
    try:
      content = scipy.io.loadmat(path, simplify_cells=True)
      names, subjects = content[names_key], content[ids_key]
      if len(names) != len(subjects):
        raise ValueError(f"{len(names)} names, {len(subjects)} subjects")
      entries += [
        Entry(f"{folder}/{name}", str(int(subject)), role)
        for name, subject in zip(names, subjects, strict=True)
      ]
    except OSError as error:
      raise InputError(
        f"{path}: cannot be read ({error}); give TinyFace's Testing_Set."
      ) from None
    except _DAMAGED as error:
      raise InputError(
        f"{path}: does not list images and subjects ({error}); give TinyFace's"
        " own file."
      ) from None
  return entries + read_distractors(source, _TINYFACE_DISTRACTORS, found)


def read_folders(source: str, found: Walk) -> list[Entry]:
  """Lists the folders probe, gallery and distractor.

  Args:
    source: the folder that they lie in.
    found: takes what is left aside there.

  Raises:
    InputError: no probes, or nobody to find.
  """
  entries = []
  for role in ("probe", "gallery"):
    for person in find_folders(os.path.join(source, role)):
      inside = walk(source, f"{role}/{person}")
      found.add(inside)
      entries += [Entry(image, person, role) for image in inside.images]
    found.beside += count_beside(os.path.join(source, role))
  roles = {entry.role for entry in entries}
  distractors = read_distractors(source, "distractor", found)
  if "probe" not in roles or not ("gallery" in roles or distractors):
    raise InputError(
      f"--input {source!r} does not have images in probe/PERSON and in"
      " gallery/PERSON or distractor: arrange them like that."
    )
  return entries + distractors


def read_distractors(source: str, folder: str, found: Walk) -> list[Entry]:
  """All images of a folder, as nobody's; none if it does not exist.

  Args:
    source: the folder that paths are relative to.
    folder: the one in it that is listed.
    found: takes what is left aside there.
  """
  inside = walk(source, folder)
  found.add(inside)
  return [Entry(image, "", "distractor") for image in inside.images]
