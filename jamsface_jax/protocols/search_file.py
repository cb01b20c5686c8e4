"""Searches of single images: probes, a gallery and distractors.

A data set may have a `search.csv`, a line `image,subject,role` for each image
that takes part. Roles are

  probe        is searched
  gallery      is found, by probes of the same subject
  distractor   is found by mistake only; its subject is left empty

With gallery lines all probes are searched in one gallery, distractors included,
as TinyFace asks. Without, each probe is searched for each other probe of its
subject, in a gallery of that one and the distractors, as MegaFace asks.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from jamsface_jax.errors import InputError
from jamsface_jax.storage.csv_tables import read_csv
from jamsface_jax.storage.plain_file import plain

SEARCH_FILE = "search.csv"
ROLES = ("probe", "gallery", "distractor")
HEADER = ("image", "subject", "role")


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
  """Who is searched where, by index into the names of a data set.

  Attributes:
    probes: the images that are searched, int64 [Q].
    probe_subjects: the person of each probe, int64 [Q].
    gallery: the images that are found, int64 [G]; empty for a search as
      MegaFace's.
    gallery_subjects: the person of each entry, int64 [G].
    distractors: the images of nobody who is searched, int64 [F].
  """

  probes: Int64[np.ndarray, " q"]
  probe_subjects: Int64[np.ndarray, " q"]
  gallery: Int64[np.ndarray, " g"]
  gallery_subjects: Int64[np.ndarray, " g"]
  distractors: Int64[np.ndarray, " f"]


def has_search(directory: str) -> bool:
  """Whether a data set has a search."""
  return os.path.exists(os.path.join(directory, SEARCH_FILE))


def is_search(path: str) -> bool:
  """Whether a file begins as a `search.csv` does."""
  try:
    with open(path, "rb", opener=plain) as file:
      return file.readline().strip() == ",".join(HEADER).encode()
  except OSError:
    return False  # Whoever reads it next says why.


def read_search(path: str, names: Sequence[str]) -> Search:
  """Reads a `search.csv`.

  Args:
    path: the file.
    names: the images' relative paths.

  Raises:
    InputError: another form, an image that is not among `names` or is there
      twice, or no probe with a mate.
  """
  images = {name: index for index, name in enumerate(names)}
  numbers: dict[str, int] = {}
  found: dict[str, list[tuple[int, int]]] = {role: [] for role in ROLES}
  used = set()
  for where, (image, subject, role) in read_csv(path, HEADER):
    if role not in found:
      raise InputError(
        f"{where}: the role is {role!r}; write one of {', '.join(ROLES)}."
      )
    if image not in images:
      raise InputError(
        f"{where}: the data set has no image {image!r}; add it, or take the"
        " line out."
      )
    if image in used:
      raise InputError(
        f"{where}: image {image!r} is there a second time; list it once."
      )
    if (role == "distractor") != (subject == ""):
      raise InputError(
        f"{where}: a {role} with subject {subject!r}; probes and gallery have"
        " one, distractors have none."
      )
    used.add(image)
    number = numbers.setdefault(subject, len(numbers))
    found[role].append((images[image], number))
  probes, gallery, distractors = (
    np.array(found[role], np.int64).reshape(-1, 2) for role in ROLES
  )
  if len(gallery):
    mated = np.isin(probes[:, 1], gallery[:, 1]).any()
    wanted = "in the gallery"
  else:
    mated = len(np.unique(probes[:, 1])) < len(probes)
    wanted = "among the probes"
    if not len(distractors):
      raise InputError(
        f"{path}: has neither gallery nor distractors; a search needs one."
      )
  if not mated:
    raise InputError(
      f"{path}: no probe has another image of its subject {wanted}; correct the"
      " subjects."
    )
  return Search(
    probes=probes[:, 0],
    probe_subjects=probes[:, 1],
    gallery=gallery[:, 0],
    gallery_subjects=gallery[:, 1],
    distractors=distractors[:, 0],
  )
