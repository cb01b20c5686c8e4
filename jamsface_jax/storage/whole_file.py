"""Files that are there whole, or not at all."""

import contextlib
import os
from collections.abc import Generator
from typing import IO, Any

from jamsface_jax.storage.durable import sync_directory


@contextlib.contextmanager
def written_whole(
  path: str,
  mode: str = "w",
  newline: str | None = None,
  *,
  synced: bool = True,
) -> Generator[IO[Any], None, None]:
  """Opens a file for writing that gets its name when the block has ended.

  An exception or a kill leaves what was there before, and perhaps a file named
  `path` and ".partial"; a loss of power leaves what was there before, or all of
  the new content once the block has ended.

  Args:
    path: where the file goes; what is there is replaced.
    mode: "w" for text, which is UTF-8, or "wb".
    newline: how lines end, as `open` takes it.
    synced: wait for the disk; else a loss of power may leave half of it, which
      is for what can be spared and is written often.

  Raises:
    OSError: the file system refuses.
  """
  partial = path + ".partial"
  encoding = None if "b" in mode else "utf-8"
  with open(partial, mode, encoding=encoding, newline=newline) as file:
    yield file
    if synced:
      file.flush()
      os.fsync(file.fileno())
  os.replace(partial, path)
  if synced:
    sync_directory(os.path.dirname(path))
