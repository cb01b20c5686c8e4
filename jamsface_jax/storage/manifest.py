"""A list of a directory's files with sizes and hashes: damage is seen later.

Orbax and OCDBT check the shape of their files, not the numbers in them: a bit
flipped in an array is restored as another number (orbax-checkpoint 0.12.8).
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jamsface_jax.errors import one_line
from jamsface_jax.storage.plain_file import plain

MANIFEST_FILE = "manifest.json"


def write_manifest(directory: str) -> None:
  """Writes `manifest.json`; everything is on the disk when this returns.

  Args:
    directory: complete, and not changed any more.

  Raises:
    OSError: the file system refuses.
  """
  files = {}
  for path in _files(directory):
    with open(os.path.join(directory, path), "rb", opener=plain) as file:
      files[path] = {
        "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        "bytes": file.tell(),
      }
      os.fsync(file.fileno())
  with open(
    os.path.join(directory, MANIFEST_FILE), "w", encoding="utf-8", opener=plain
  ) as file:
    json.dump({"files": files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  for folder, _, _ in os.walk(directory):
    sync_directory(folder)


def find_damage(directory: str, folders: Collection[str]) -> str | None:
  """Compares a directory with its manifest.

  Args:
    directory: with a manifest.
    folders: look at these folders of it only; none: at everything.

  Returns:
    What is wrong, beginning with the path of the file, or None.
  """
  manifest = os.path.join(directory, MANIFEST_FILE)
  try:
    with open(manifest, encoding="utf-8", opener=plain) as file:
      files = json.load(file)["files"]
    expected = {p: (f["bytes"], _checksum(f)) for p, f in files.items()}
  except FileNotFoundError:
    return f"{manifest!r} is missing"
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{manifest!r} is broken: {one_line(error, None)}"
  top = os.path.realpath(directory)
  for path, (size, (kind, digest)) in expected.items():
    if folders and path.split("/")[0] not in folders:
      continue
    whole = os.path.join(directory, path)
    try:
      if os.path.realpath(whole) != f"{top}/{path}":
        return f"{whole!r} is a link, or outside of the directory"
      with open(whole, "rb", opener=plain) as file:
        actual = os.fstat(file.fileno()).st_size
        if actual != size:
          return f"{whole!r} has {actual} bytes of {size}"
        if kind and hashlib.file_digest(file, kind).hexdigest() != digest:
          return f"{whole!r} has other bytes than were written"
    except FileNotFoundError:
      return f"{whole!r} is missing"
    except (OSError, ValueError) as error:  # ValueError: a null byte.
      why = getattr(error, "strerror", None) or error
      return f"{whole!r} cannot be read: {why}"
  return None


def _checksum(entry: Mapping[str, Any]) -> tuple[str, str]:
  """Kind and value of a file's checksum.

  A manifest that was written in a bucket has MD5, which buckets make; of
  objects that were composed of others they have CRC-32C alone, which Python
  lacks: of such files the size must do.
  """
  for kind in ("sha256", "md5"):
    if kind in entry:
      return kind, entry[kind]
  return "", entry["crc32c"]


def sync_directory(directory: str) -> None:
  """Makes new and changed names in a directory survive a loss of power."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _files(directory: str) -> Iterator[str]:
  for folder, folders, names in os.walk(directory):
    folders.sort()
    for name in sorted(names):
      path = os.path.relpath(os.path.join(folder, name), directory)
      if path != MANIFEST_FILE:
        yield path.replace(os.sep, "/")
