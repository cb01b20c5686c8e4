"""Where copies lie on this machine of what is at home elsewhere."""

import os

from jamsface_jax.errors import InputError


def cache_directory(name: str) -> str:
  """Makes a directory that only this user may read, and returns its path.

  It is below `XDG_CACHE_HOME`, or `~/.cache` where that is not set. All of it
  may be removed when no run is under way.

  Args:
    name: its name below the cache of this package.

  Raises:
    InputError: it cannot be made.
  """
  home = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(home):  # Others are to be ignored, its standard says.
    home = os.path.expanduser("~/.cache")
  path = os.path.join(home, "jamsface_jax", name)
  try:
    # A mode is that of the last directory alone.
    for made in (home, os.path.dirname(path), path):
      os.makedirs(made, mode=0o700, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"the variable XDG_CACHE_HOME={home!r}: {path!r} cannot be made"
      f" ({error.strerror}): set it to a directory on a local disk."
    ) from None
  return path
