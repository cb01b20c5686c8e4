"""Paths that must be on a file system."""

import os
import re

from jamsface_jax.errors import InputError


def require_local(path: str | os.PathLike[str], what: str) -> None:
  """Refuses the address of an object store, such as gs://BUCKET/RUN.

  Locks, appending and renaming are what exact resuming stands on, and object
  stores have none of them; taken for a path, an address would become a
  directory called `gs:`.

  Args:
    path: as the user gave it.
    what: the flag or setting that it is from.

  Raises:
    InputError: it is such an address.
  """
  scheme = re.match(r"([a-z][a-z0-9+.-]*)://?", os.fspath(path))
  if scheme:
    raise InputError(
      f"{what}={path!r} is an address and not a path: mount it (gcsfuse for"
      " gs://, Mountpoint for s3://) and give the path there, see docs/pods.md."
    )
