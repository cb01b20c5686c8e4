"""Paths that must be on a file system, and addresses that need not."""

import os
import re

from jamsface_jax.errors import InputError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://?")


def require_local(path: str | os.PathLike[str], what: str) -> None:
  """Refuses the address of an object store, such as s3://BUCKET/RUN.

  Taken for a path, an address would become a directory called `s3:`.

  Args:
    path: as the user gave it.
    what: the flag or setting that it is from.

  Raises:
    InputError: it is such an address.
  """
  scheme = _SCHEME.match(os.fspath(path))
  if scheme is None:
    return
  # https://github.com/google/orbax/issues/2739: its paths below s3:// become
  # those of the local disk.
  why = {"gs": "", "s3": " (Orbax cannot save to S3, see google/orbax#2739)"}
  raise InputError(
    f"{what}={path!r} is an address and not a path"
    f"{why.get(scheme[1], '')}: give a path on a disk; work directories, data"
    " sets and what is made of them may be in a bucket of Google Cloud Storage"
    " too (gs://BUCKET/NAME), see docs/runs.md."
  )


def check_address(address: str, what: str) -> str:
  """Checks the form of gs://BUCKET/NAME.

  Args:
    address: as the user gave it.
    what: the flag or setting that it is from.

  Returns:
    The address without slashes at its end.

  Raises:
    InputError: bucket or name are missing, or the name cannot be one of
      objects.
  """
  # https://cloud.google.com/storage/docs/buckets#naming
  bucket = "[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
  match = re.fullmatch(f"gs://({bucket})/(.+?)/*", address)
  if not match or {"", ".", ".."} & set(match[2].split("/")):
    raise InputError(
      f"{what}={address!r} is not an address of the form gs://BUCKET/NAME:"
      " give a bucket and a name in it."
    )
  return f"gs://{match[1]}/{match[2]}"


def absolute(path: str) -> str:
  """A path from the root; an address as it is."""
  return path if _SCHEME.match(path) else os.path.abspath(path)


def lies_within(path: str, folder: str) -> bool:
  """Whether a path is a folder or lies in it, once links are followed."""
  inside, outside = os.path.realpath(path), os.path.realpath(folder)
  return os.path.commonpath([inside, outside]) == outside
