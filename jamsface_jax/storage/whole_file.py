"""Files that are there whole, or not at all."""

import contextlib
import os
import re
import time
from collections.abc import Generator
from typing import IO, Any

from jamsface_jax.storage.durable import sync_directory
from jamsface_jax.storage.plain_file import PARTIAL, partial_path, plain

_LEFT = re.compile(rf".*\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
_LEFT_SECONDS = 3600.0  # Nobody writes a file that long.


@contextlib.contextmanager
def written_whole(
  path: str,
  mode: str = "w",
  newline: str | None = None,
  *,
  synced: bool = True,
) -> Generator[IO[Any], None, None]:
  """Opens a file for writing that gets its name when the block has ended.

  An exception or a kill leaves what was there before; a kill also a file beside
  it, named as nobody could foresee, which `remove_left` removes. A loss of
  power leaves what was there before, or all of the new content once the block
  has ended. A link in the place of the file is replaced, not followed.

  Args:
    path: where the file goes; what is there is replaced.
    mode: "w" for text, which is UTF-8, or "wb".
    newline: how lines end, as `open` takes it.
    synced: wait for the disk; else a loss of power may leave half of it, which
      is for what can be spared and is written often.

  Raises:
    OSError: the file system refuses.
  """
  partial = partial_path(path)
  encoding = None if "b" in mode else "utf-8"
  file = open(
    partial,
    mode.replace("w", "x"),
    encoding=encoding,
    newline=newline,
    opener=plain,
  )
  try:
    with file:
      yield file
      if synced:
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(partial)
    raise
  if synced:
    sync_directory(os.path.dirname(path))


def remove_left(directory: str, *, seconds: float = _LEFT_SECONDS) -> None:
  """Removes what killed writers of `written_whole` left in a directory.

  Args:
    directory: there.
    seconds: what is younger may belong to a writer that is alive.
  """
  for entry in os.scandir(directory):
    if not _LEFT.fullmatch(entry.name):
      continue
    with contextlib.suppress(OSError):  # Another process was faster.
      age = time.time() - entry.stat(follow_symlinks=False).st_mtime
      if age >= seconds:
        os.remove(entry.path)
