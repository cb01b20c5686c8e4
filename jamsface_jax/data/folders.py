"""Folders of images: what is an image, what it is called, in which order.

Every command walks folders here, so that all of them find the same. Links to
files and to folders are followed, but not in a circle; names that begin with a
dot are nobody's business; all else that is left aside is counted, to be said.
"""

import collections
import os
import pathlib
from collections.abc import Iterator

from jamsface_jax.storage.photo_folder import EXTENSIONS
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.text_lists import escape, is_plain

# How the files of an image format start; JPEG if none fits.
_STARTS = {b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp"}
_MOST_ENDINGS = 4  # Named; the others are counted together.


class Walk:
  """What one or several walks found.

  Attributes:
    images: paths of images, sorted.
    odd: paths of images whose names cannot be in a list, see `is_plain`.
    others: how many files are no images, by the end of their names.
    nested: images in sub-folders of a folder that was not to be gone into.
    beside: images beside sub-folders that alone were asked for.
    loops: links that lead back to a folder that they lie in.
    closed: folders that cannot be read.
  """

  def __init__(self) -> None:
    self.images: list[str] = []
    self.odd: list[str] = []
    self.others: collections.Counter[str] = collections.Counter()
    self.nested = 0
    self.beside = 0
    self.loops: list[str] = []
    self.closed: list[str] = []

  def add(self, other: "Walk") -> None:
    """Takes over what another walk left aside; its images stay its own."""
    self.odd += other.odd
    self.others += other.others
    self.nested += other.nested
    self.beside += other.beside
    self.loops += other.loops
    self.closed += other.closed

  def aside(self) -> str:
    """What was left aside, for people; "" if nothing was."""
    parts = []
    if self.others:
      ends = [f"{n:,} {end}" for end, n in self.others.most_common()]
      if len(ends) > _MOST_ENDINGS:
        ends[_MOST_ENDINGS - 1 :] = ["others"]
      count = self.others.total()
      parts.append(f"{count:,} files that are no images ({', '.join(ends)})")
    if self.nested:
      parts.append(f"{self.nested:,} images in folders within folders")
    if self.beside:
      parts.append(f"{self.beside:,} images beside the folders")
    if self.loops:
      parts.append(f"{len(self.loops):,} links in a circle ({self.loops[0]!r})")
    if self.closed:
      parts.append(
        f"{len(self.closed):,} folders that cannot be read ({self.closed[0]!r})"
      )
    return "; ".join(parts)


def walk(directory: str, below: str = "", *, deep: bool = True) -> Walk:
  """Finds the images below a folder.

  Args:
    directory: the folder that the paths returned are relative to.
    below: the folder in it that is searched; "" for all of it.
    deep: search its sub-folders too; otherwise their images are counted.

  Returns:
    What was found; nothing if there is no such folder.
  """
  found = Walk()
  for path, is_nested in _files(directory, below, found):
    end = os.path.splitext(path)[1].lower()
    if end not in EXTENSIONS:
      found.others[escape(end) or "without an end"] += 1
    elif is_nested and not deep:
      found.nested += 1
    elif is_plain(path):
      found.images.append(path)
    else:
      found.odd.append(path)
  found.images.sort()
  found.odd.sort()
  return found


def find_folders(directory: str) -> list[str]:
  """Finds the folders in a folder, and links to folders.

  Args:
    directory: the folder that is searched, without its sub-folders.

  Returns:
    Names, sorted, without those that begin with a dot; none if there is no
    such folder.
  """
  try:
    with os.scandir(directory) as entries:
      names = [entry.name for entry in entries if entry.is_dir()]
  except OSError:
    return []
  return sorted(name for name in names if not name.startswith("."))


def count_beside(directory: str) -> int:
  """How many images lie in a folder itself, beside its sub-folders."""
  try:
    names = os.listdir(directory)
  except OSError:
    return 0
  return sum(
    name.lower().endswith(EXTENSIONS)
    and not name.startswith(".")
    and not os.path.isdir(os.path.join(directory, name))
    for name in names
  )


def names_file(name: str) -> bool:
  """Whether a name, as a list has it, is a path of a file below its folder."""
  path = pathlib.PurePosixPath(name)
  inside = not path.is_absolute() and ".." not in path.parts
  return bool(path.parts) and inside and "\0" not in name


def find_file(directory: str, name: str) -> str | None:
  """Finds the image that a list names, under this or another end of its name.

  Whoever cuts faces out of photographs writes them in a format of its own.

  Args:
    directory: the folder that the path is relative to.
    name: the path.

  Returns:
    The path of the file; None if there is none, or several.
  """
  if os.path.isfile(os.path.join(directory, name)):
    return name
  stem, end = os.path.splitext(name)
  if end.lower() not in EXTENSIONS:
    stem = name
  ends = [e for e in EXTENSIONS if os.path.isfile(f"{directory}/{stem}{e}")]
  return stem + ends[0] if len(ends) == 1 else None


def read_file(directory: str, name: str) -> bytes:
  """The bytes of an image file, as every command reads it.

  Args:
    directory: the folder that the path is relative to.
    name: the path.

  Raises:
    OSError: there is none, or it is no file that can be read.
    ValueError: the path can be that of no file.
  """
  path = os.path.join(directory, name)
  with open(path, "rb", buffering=0, opener=plain) as file:
    return file.read()


def extension(data: bytes) -> str:
  """The usual end of the file name of an encoded image."""
  return next(
    (end for start, end in _STARTS.items() if data.startswith(start)),
    ".jpg",
  )


def _files(
  directory: str, below: str, found: Walk
) -> Iterator[tuple[str, bool]]:
  """Yields the files below a folder, and whether they lie in a sub-folder.

  Args:
    directory: what the paths are relative to.
    below: where to begin.
    found: learns of circles and of what cannot be read.
  """
  # Folders to go through, each with the identities of those that it lies in.
  left: list[tuple[str, tuple[tuple[int, int], ...]]] = [(below, ())]
  while left:
    folder, above = left.pop()
    try:
      path = os.path.join(directory, folder)
      state = os.stat(path)
      here = state.st_dev, state.st_ino
      if here in above:
        found.loops.append(folder)
        continue
      with os.scandir(path) as opened:
        entries = list(opened)
    except OSError:
      if folder != below:
        found.closed.append(folder)
      continue
    for entry in entries:
      name = os.path.join(folder, entry.name)
      if _is_folder(entry):
        left.append((name, (*above, here)))
      elif not entry.name.startswith("."):
        yield name, folder != below


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself, say.
    return False
