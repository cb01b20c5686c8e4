"""Equal images, in a data set or in two."""

import numpy as np
from jaxtyping import Int

from data_prep.inspection.survey import Survey
from data_prep.writing.exclusions import HEADER
from jamsface_jax.data import records
from jamsface_jax.storage.whole_file import written_whole

_AT_ONCE = 1024  # Records in memory.


def find_duplicates(
  survey: Survey, other: Survey | None
) -> dict[str, Int[np.ndarray, "p 2"]]:
  """Finds equal images.

  Args:
    survey: what the images of a data set told.
    other: that of another one in which they are looked for, if there is one.

  Returns:
    For each kind of duplicate int64 [P, 2]: an image, and the one it repeats:
    the first of its kind in the data set, or the first in the other.
  """
  sound = np.flatnonzero(survey.sound)
  files, pictures = survey.files[sound], survey.pictures[sound]

  def pairs(
    found: tuple[np.ndarray, np.ndarray], theirs: np.ndarray
  ) -> np.ndarray:
    copies, originals = found
    return np.stack([sound[copies], theirs[originals]], axis=1)

  same_file = pairs(_repeats(files), sound)
  same_picture = pairs(_repeats(pictures), sound)
  found = {
    "same_file": same_file,
    "same_picture": _without(same_picture, same_file),
  }
  if other is not None:
    theirs = np.flatnonzero(other.sound)
    same_file = pairs(_matches(files, other.files[theirs]), theirs)
    same_picture = pairs(_matches(pictures, other.pictures[theirs]), theirs)
    found["same_file_in_other"] = same_file
    found["same_picture_in_other"] = _without(same_picture, same_file)
  return found


def _without(
  pictures: Int[np.ndarray, "p 2"], files: Int[np.ndarray, "q 2"]
) -> Int[np.ndarray, "r 2"]:
  """The same file is the same picture: it is counted once."""
  return pictures[~np.isin(pictures[:, 0], files[:, 0])]


def _repeats(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Positions of all but the first of equal hashes, and of these first."""
  _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
  copies = np.flatnonzero(first[which] != np.arange(len(hashes)))
  return copies, first[which[copies]]


def _matches(
  hashes: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Positions of hashes that are among the others, and the first there."""
  values, first = np.unique(others, return_index=True)
  place = np.searchsorted(values, hashes).clip(max=len(values) - 1)
  here = np.flatnonzero(values[place] == hashes) if len(values) else place[:0]
  return here, first[place[here]]


def write_duplicates(
  path: str,
  duplicates: dict[str, np.ndarray],
  reader: records.RecordReader,
  other: records.RecordReader | None,
) -> None:
  """Lists the duplicates: path, reason, path of the one that it repeats."""
  with written_whole(path) as file:
    file.write(f"{HEADER}\treason\trepeats\n")
    for reason, pairs in duplicates.items():
      source = other if other and reason.endswith("other") else reader
      for start in range(0, len(pairs), _AT_ONCE):
        block = pairs[start : start + _AT_ONCE]
        copies = reader.read(block[:, 0].tolist())
        originals = source.read(block[:, 1].tolist())
        file.writelines(
          f"{copy.name}\t{reason}\t{original.name}\n"
          for copy, original in zip(copies, originals, strict=True)
        )
