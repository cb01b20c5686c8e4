"""Folders with one sub-folder per identity."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Set

from jamsface_jax.data.folders import (
  Walk,
  count_beside,
  find_folders,
  walk,
)
from jamsface_jax.errors import InputError
from jamsface_jax.storage.photo_folder import EXTENSIONS
from jamsface_jax.storage.text_lists import NotTextError, read_lines


@dataclasses.dataclass(frozen=True)
class Identities:
  """The images of each identity, and what else lies in their folders.

  Attributes:
    classes: file names by sub-folder, both sorted.
    empty: sub-folders without an image.
    small: sub-folders with fewer images than are wanted.
    found: what was left aside.
  """

  classes: dict[str, list[str]]
  empty: list[str]
  small: list[str]
  found: Walk


def find_classes(
  source: str,
  wanted: set[str] | None,
  min_images: int,
  excluded: Set[str] = frozenset(),
  *,
  skip_empty: bool = False,
) -> Identities:
  """Lists the images of each identity.

  Args:
    source: folder with one sub-folder per identity.
    wanted: only these sub-folders; None for all.
    min_images: leave out sub-folders with fewer images.
    excluded: leave out these images, `sub-folder/file`.
    skip_empty: leave out sub-folders without an image; otherwise an error.

  Raises:
    InputError: no folder, no sub-folder, a missing or an empty one.
  """
  if not os.path.isdir(source):
    raise InputError(
      f"--input {source!r} is not a folder: give one with a sub-folder per"
      " identity."
    )
  folders = _wanted_folders(source, wanted)
  found = Walk()
  found.beside = count_beside(source)
  result = Identities({}, [], [], found)
  for folder in folders:
    inside = walk(source, folder, deep=False)
    found.add(inside)
    files = [os.path.relpath(path, folder) for path in inside.images]
    if not files:
      if not skip_empty and not inside.odd:
        raise _no_image(source, folder, inside)
      result.empty.append(folder)
      continue
    files = [file for file in files if f"{folder}/{file}" not in excluded]
    if len(files) >= min_images:
      result.classes[folder] = files
    else:
      result.small.append(folder)
  if not result.classes:
    raise InputError(
      f"--input {source!r} has no sub-folder with at least {min_images}"
      " image(s): it needs one sub-folder per identity."
    )
  return result


def _wanted_folders(source: str, wanted: set[str] | None) -> list[str]:
  """The sub-folders, or those wanted, which must be there."""
  folders = find_folders(source)
  if wanted is None:
    return folders
  missing = sorted(wanted - set(folders))
  if missing:
    raise InputError(
      f"--identities names {missing[0]!r}, which has no folder in {source!r}:"
      " correct the list or --input."
    )
  return [folder for folder in folders if folder in wanted]


def _no_image(source: str, folder: str, inside: Walk) -> InputError:
  path = os.path.join(source, folder)
  if inside.nested and find_folders(path):
    return InputError(
      f"folder {path!r} has no image but folders with {inside.nested:,}: if"
      f" these are the identities, give --input={shlex.quote(path)}; else move"
      " the images of each identity into one folder of --input, or leave such"
      " folders out with --skip_bad."
    )
  aside = inside.aside()
  return InputError(
    f"folder {os.path.join(source, folder)!r} has no image"
    f" ({', '.join(EXTENSIONS)})"
    + (f" but {aside}" if aside else "")
    + ": delete it, add images, or leave such folders out with --skip_bad."
  )


def split_last(
  classes: Mapping[str, list[str]], number: int, min_images: int
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """Splits images to train on from others of the same people.

  Args:
    classes: file names by sub-folder, as from `find_classes`.
    number: images that an identity gives away, the last by name.
    min_images: what must be left of an identity; others give none away.

  Returns:
    What stays of all identities, and what is given away by those that do.

  Raises:
    InputError: none has so many images.
  """
  last = {
    folder: files[-number:]
    for folder, files in classes.items()
    if len(files) >= number + min_images
  }
  if not last:
    raise InputError(
      f"--input has no identity with {number + min_images} images, {number} to"
      f" leave out and --min_images={min_images} to keep: give smaller numbers."
    )
  kept = {
    folder: files[: len(files) - len(last.get(folder, ()))]
    for folder, files in classes.items()
  }
  return kept, last


def read_identities(path: str, source: str) -> set[str]:
  """Reads which sub-folders are wanted: a name at the start of each line.

  A name ends at a tab, else it is the whole line if there is such a folder,
  else the first word. The first line may count the others, as LFW's lists do:
  it is a number alone, and no folder's name. In LFW's list of ten folds, whose
  names all have a number of images behind them, every fold begins so.

  Args:
    path: the file, UTF-8.
    source: the folder of the sub-folders.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    lines = [line.text.strip() for line in read_lines(path)]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"--identities {path!r} cannot be read ({error}): give a text file with a"
      " folder name at the start of each line."
    ) from None
  folders = set(find_folders(source))
  counts = {
    number
    for number, line in enumerate(lines)
    if line.isdigit() and line not in folders
  }
  names = [line for k, line in enumerate(lines) if line and k not in counts]
  if not (names and all(len(line.split()) > 1 for line in names)):
    counts &= {0}
  return {
    _first(line, folders)
    for number, line in enumerate(lines)
    if line and number not in counts
  }


def _first(line: str, folders: Set[str]) -> str:
  if "\t" in line or line in folders:
    return line.split("\t")[0].strip()
  return line.split()[0]
