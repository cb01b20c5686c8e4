"""Whether a file is the one it was, told without reading it."""

import os
from typing import NamedTuple


class FileState(NamedTuple):
  """What of a file changes whenever its content does, where it is not read.

  The times are those of the last change of its content and of its status.
  Nobody can set the second (ctime of inode(7)), so that another file of the
  same size and date is seen too. An inode number would tell that as well, but
  mounts of object stores number anew.

  Attributes:
    size: in bytes; -1 of a file that is not there.
    changed: nanoseconds since 1970.
    status_changed: likewise.
  """

  size: int
  changed: int = 0
  status_changed: int = 0

  def __str__(self) -> str:
    return f"{self.size} {self.changed} {self.status_changed}"


def file_state(path: str) -> FileState:
  """Looks at a file, which need not be there."""
  try:
    found = os.stat(path)
  except (OSError, ValueError):  # ValueError: a null byte.
    return FileState(-1)
  return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns)
