"""Lists of images that are left out, as every step writes them.

A text file with an image's name at the start of each line; what follows a tab
(the reason, a score) is for people. The first line may be the header `path`.
`data_prep.clean` and `data_prep.inspect` write such lists, the converters and
`data_prep.align` what they left out themselves. In the `broken.txt` of
`jamsface_jax.embed` the number of the row comes before the name.
"""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Mapping

from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import NotTextError, read_lines

HEADER = "path"
SKIPPED_FILE = "skipped.txt"  # What --skip_bad left out, and why.
NO_FACE_FILE = "no_face.txt"  # Photographs without a face, by data_prep.align.
_BROKEN_FIELDS = 3  # Row, name, reason.


def read_exclusions(path: str) -> set[str]:
  """Reads the names of the images to leave out.

  Args:
    path: the file, UTF-8.

  Returns:
    Names as in the records: paths relative to the folder of the images.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    rows = [line.text.split("\t") for line in read_lines(path) if line.text]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"--exclude {path!r} cannot be read ({error}): give a text file with an"
      " image's name at the start of each line."
    ) from None
  if rows and rows[0][0] == HEADER:
    del rows[0]
  elif rows and all(
    len(row) == _BROKEN_FIELDS and row[0].isdigit() for row in rows
  ):
    return {row[1] for row in rows}
  return {row[0] for row in rows if row[0]}


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """What an earlier step left out of a folder.

  Attributes:
    reasons: why, by the name without its extension.
  """

  reasons: Mapping[str, str]

  def reason(self, image: str) -> str:
    """Why an image is not there."""
    return self.reasons.get(os.path.splitext(image)[0], "no such file")


def left_out_before(folder: str) -> LeftOut:
  """Reads the lists that `data_prep.align` leaves beside its faces.

  Args:
    folder: its output, or any other folder, which has none.
  """
  reasons = {}
  for file, usual in (NO_FACE_FILE, "no face was found"), (SKIPPED_FILE, ""):
    try:
      lines = list(read_lines(os.path.join(folder, file)))
    except (OSError, NotTextError):
      continue  # They explain, and no more.
    for _, text in lines:
      name, _, reason = text.partition("\t")
      reasons[os.path.splitext(name)[0]] = reason or usual
  return LeftOut(reasons)


def digest(excluded: Collection[str]) -> str:
  """Says which images are left out: the SHA-256 of their names."""
  return hashlib.sha256("\n".join(sorted(excluded)).encode()).hexdigest()
