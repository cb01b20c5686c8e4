"""Folders with one sub-folder per identity."""

import os
from collections.abc import Mapping, Set

from jamsface_jax.data.folders import EXTENSIONS, find_folders, find_images
from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import NotTextError, read_lines


def find_classes(
  source: str,
  wanted: set[str] | None,
  min_images: int,
  excluded: Set[str] = frozenset(),
) -> dict[str, list[str]]:
  """Lists the images of each identity.

  Args:
    source: folder with one sub-folder per identity.
    wanted: only these sub-folders; None for all.
    min_images: leave out sub-folders with fewer images.
    excluded: leave out these images, `sub-folder/file`.

  Returns:
    Maps sub-folders to file names, both sorted.

  Raises:
    InputError: no folder, no sub-folder, a missing or an empty one.
  """
  if not os.path.isdir(source):
    raise InputError(
      f"--input {source!r} is not a folder: give one with a sub-folder per"
      " identity."
    )
  folders = find_folders(source)
  if wanted is not None:
    missing = sorted(wanted - set(folders))
    if missing:
      raise InputError(
        f"--identities names {missing[0]!r}, which has no folder in {source!r}:"
        " correct the list or --input."
      )
    folders = [folder for folder in folders if folder in wanted]
  classes = {}
  for folder in folders:
    files = find_images(os.path.join(source, folder), deep=False)
    if not files:
      raise InputError(
        f"folder {os.path.join(source, folder)!r} has no image"
        f" ({', '.join(EXTENSIONS)}): delete it or add images."
      )
    files = [file for file in files if f"{folder}/{file}" not in excluded]
    if len(files) >= min_images:
      classes[folder] = files
  if not classes:
    raise InputError(
      f"--input {source!r} has no sub-folder with at least {min_images}"
      " image(s): it needs one sub-folder per identity."
    )
  return classes


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


def read_identities(path: str) -> set[str]:
  """First words of the lines; a line that is a number alone is a header."""
  try:
    lines = [line.text.split() for line in read_lines(path)]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"--identities {path!r} cannot be read ({error}): give a text file with a"
      " folder name at the start of each line."
    ) from None
  return {words[0] for words in lines if words and not words[0].isdigit()}
