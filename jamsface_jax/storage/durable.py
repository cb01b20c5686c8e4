"""What survives a loss of power: files and names that were synced.

A file is on the disk when `fsync` of it has returned, its name when `fsync` of
its directory has (fsync(2)). Nothing may be called finished before.
"""

import os


def sync_file(path: str) -> None:
  """Makes the content of a file survive a loss of power."""
  _sync(path, os.O_RDONLY)


def sync_directory(directory: str) -> None:
  """Makes new and changed names in a directory survive a loss of power."""
  _sync(directory or ".", os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(directory: str) -> None:
  """Makes all files below a directory, and their names, survive it."""
  for folder, _, files in os.walk(directory, topdown=False):
    for name in files:
      path = os.path.join(folder, name)
      if os.path.isfile(path) and not os.path.islink(path):
        sync_file(path)
    sync_directory(folder)
  sync_directory(os.path.dirname(os.path.abspath(directory)))


def make_directory(directory: str) -> None:
  """Makes a directory and those above it, names that survive it too.

  Raises:
    OSError: the file system refuses.
  """
  if os.path.isdir(directory):
    return
  above = os.path.dirname(os.path.abspath(directory))
  make_directory(above)
  os.makedirs(directory, exist_ok=True)
  sync_directory(above)


def _sync(path: str, flags: int) -> None:
  handle = os.open(path, flags)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
