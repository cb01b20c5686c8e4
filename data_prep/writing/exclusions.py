"""Lists of images to leave out, as `data_prep.clean` and `inspect` write them.

A text file with an image's name at the start of each line; what follows a tab
(the reason, a score) is for people. The first line may be the header `path`.
"""

import hashlib
from collections.abc import Collection

from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import NotTextError, read_lines

HEADER = "path"


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
    names = [line.text.split("\t")[0] for line in read_lines(path)]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"--exclude {path!r} cannot be read ({error}): give a text file with an"
      " image's name at the start of each line."
    ) from None
  if names[:1] == [HEADER]:
    del names[0]
  return {name for name in names if name}


def digest(excluded: Collection[str]) -> str:
  """Says which images are left out: the SHA-256 of their names."""
  return hashlib.sha256("\n".join(sorted(excluded)).encode()).hexdigest()
