"""Files that are there whole, or not at all."""

import contextlib
import os
from collections.abc import Generator
from typing import IO, Any


@contextlib.contextmanager
def written_whole(
  path: str, mode: str = "w", newline: str | None = None
) -> Generator[IO[Any], None, None]:
  """Opens a file for writing that gets its name when the block has ended.

  An exception or a kill leaves what was there before, and perhaps a file named
  `path` and ".partial".

  Args:
    path: where the file goes; what is there is replaced.
    mode: "w" for text, which is UTF-8, or "wb".
    newline: how lines end, as `open` takes it.

  Raises:
    OSError: the file system refuses.
  """
  partial = path + ".partial"
  encoding = None if "b" in mode else "utf-8"
  with open(partial, mode, encoding=encoding, newline=newline) as file:
    yield file
  os.replace(partial, path)
