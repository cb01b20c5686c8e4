"""Folders of photographs, which nothing of ours is written into."""

import os

from jamsface_jax.errors import InputError

# Ends of the names of files that are taken for images, in small letters: of
# every format that is decoded.
EXTENSIONS = (
  ".jpg",
  ".jpeg",
  ".png",
  ".webp",
  ".bmp",
  ".jpe",
  ".jfif",
  ".dib",
  ".gif",
  ".tif",
  ".tiff",
  ".pbm",
  ".pgm",
  ".ppm",
  ".pnm",
  ".pam",
  ".ras",
  ".sr",
  ".jp2",
  ".j2k",
  ".avif",
)


def refuse_photographs(directory: str, flag: str) -> None:
  """Refuses to write among somebody's photographs.

  Outputs would be taken for more of them by the next command, and whoever
  deletes the outputs might delete the photographs. An output of ours that holds
  pictures has other files beside them.

  Args:
    directory: where a command is about to write; it need not be there.
    flag: that it was given by.

  Raises:
    InputError: it, or the folder that it would be made in, holds images and
      nothing else; or so do all the folders in it.
  """
  parent = os.path.dirname(os.path.abspath(directory))
  for place in (directory, parent):
    if _holds_images_alone(place, deep=place == directory):
      raise InputError(
        f"{flag}={directory!r} would lie among the images of {place!r}: choose"
        " a folder elsewhere."
      )


def _holds_images_alone(directory: str, *, deep: bool) -> bool:
  """Whether a folder has images and no other file.

  Args:
    directory: the folder.
    deep: whether all its sub-folders may have the images instead.
  """
  files, folders = [], []
  try:
    with os.scandir(directory) as entries:
      for entry in entries:
        if not entry.name.startswith("."):
          (folders if entry.is_dir() else files).append(entry.name)
  except OSError:
    return False
  if files or not deep:
    return bool(files) and all(
      name.lower().endswith(EXTENSIONS) for name in files
    )
  return bool(folders) and all(
    _holds_images_alone(os.path.join(directory, name), deep=False)
    for name in folders
  )
