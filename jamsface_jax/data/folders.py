"""Files of images: which are images, what they are called, in which order."""

import os

# Ends of the names of files that are taken for images, in small letters.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# How the files of an image format start; JPEG if none fits.
_STARTS = {b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp"}


def find_images(
  directory: str, below: str = "", *, deep: bool = True
) -> list[str]:
  """Finds the images below a folder; names that begin with a dot are none.

  Args:
    directory: the folder that the paths returned are relative to.
    below: the folder in it that is searched; "" for all of it.
    deep: search its sub-folders too, other than links to folders.

  Returns:
    Paths, sorted; none if there is no such folder.
  """
  found = []
  for folder, _, files in os.walk(os.path.join(directory, below)):
    found += [
      os.path.relpath(os.path.join(folder, file), directory)
      for file in files
      if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    ]
    if not deep:
      break
  return sorted(found)


def find_folders(directory: str) -> list[str]:
  """Finds the folders in a folder, and links to folders.

  Args:
    directory: the folder that is searched, without its sub-folders.

  Returns:
    Names, sorted, without those that begin with a dot; none if there is no
    such folder.
  """
  _, folders, _ = next(os.walk(directory), ("", [], []))
  return sorted(name for name in folders if not name.startswith("."))


def extension(data: bytes) -> str:
  """The usual end of the file name of an encoded image."""
  return next(
    (end for start, end in _STARTS.items() if data.startswith(start)),
    ".jpg",
  )
