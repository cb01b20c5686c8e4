"""A list of a directory's files with sizes and hashes: damage is seen later.

Orbax and OCDBT check the shape of their files, not the numbers in them: a bit
flipped in an array is restored as another number (orbax-checkpoint 0.12.8).
"""

import hashlib
import heapq
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from jamsface_jax.errors import one_line
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.durable import sync_directory
from jamsface_jax.storage.plain_file import plain

MANIFEST_FILE = "manifest.json"
_THREADS = min(8, os.cpu_count() or 1)  # Hashing lets go of Python's lock.

Entry = dict[str, Any]  # What a manifest says of a file, as JSON.


class Share(NamedTuple):
  """Part of the work on a directory: that of one of several processes."""

  process: int
  processes: int


ALL = Share(0, 1)


def hash_files(directory: str, share: Share = ALL) -> dict[str, Entry]:
  """Sizes and hashes of files; their content is on the disk afterwards.

  A process has the files that it has written, which Orbax names after it; those
  that name nobody has process 0.

  Args:
    directory: complete, and not changed any more.
    share: which process this is.

  Returns:
    What the manifest says of each file, by its path in the directory.

  Raises:
    OSError: the file system refuses.
  """

  def hash_file(path: str) -> Entry:
    with open(os.path.join(directory, path), "rb", opener=plain) as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
      os.fsync(file.fileno())
      return {"sha256": digest, "bytes": file.tell()}

  mine = [
    path
    for path in _files(directory)
    if _writer(path) % share.processes == share.process
  ]
  with ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(mine, pool.map(hash_file, mine), strict=True))


def write_manifest(
  directory: str, files: Mapping[str, Entry] | None = None
) -> None:
  """Writes `manifest.json`; everything is on the disk when this returns.

  Args:
    directory: complete, and not changed any more.
    files: of each file, what `hash_files` gave; None: it is asked here.

  Raises:
    OSError: the file system refuses.
  """
  if files is None:
    files = hash_files(directory)
  with open(
    os.path.join(directory, MANIFEST_FILE), "w", encoding="utf-8", opener=plain
  ) as file:
    json.dump({"files": dict(sorted(files.items()))}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  for folder, _, _ in os.walk(directory):
    sync_directory(folder)


def read_manifest(directory: str) -> dict[str, Entry]:
  """What `manifest.json` says of each file, unchecked."""
  with open(
    os.path.join(directory, MANIFEST_FILE), encoding="utf-8", opener=plain
  ) as file:
    return plain_json.parse(file.read())["files"]


def find_damage(
  directory: str, folders: Collection[str], share: Share = ALL
) -> str | None:
  """Compares a directory with its manifest.

  Args:
    directory: with a manifest.
    folders: look at these folders of it only; none: at everything.
    share: which process this is; it has its share of the bytes.

  Returns:
    What is wrong, beginning with the path of the file, or None.
  """
  manifest = os.path.join(directory, MANIFEST_FILE)
  try:
    files = read_manifest(directory)
    expected = {
      path: (entry["bytes"], *_checksum(entry))
      for path, entry in files.items()
      if not folders or path.split("/")[0] in folders
    }
    if missing := unlisted(expected, folders):
      return f"{manifest!r} is broken: it has no file of {missing!r}"
    mine = _share_of(
      {path: size for path, (size, *_) in expected.items()}, share
    )
  except FileNotFoundError:
    return f"{manifest!r} is missing"
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{manifest!r} is broken: {one_line(error, None)}"
  top = os.path.realpath(directory)
  with ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda path: _find_fault(top, path, *expected[path]), mine)
    fault = next(filter(None, found), None)
  return fault and f"{os.path.join(directory, fault[0])!r} {fault[1]}"


def listed_bytes(files: Mapping[str, Entry], folders: Collection[str]) -> int:
  """Bytes of the files in some folders, as a manifest without a fault says."""
  return sum(
    entry["bytes"]
    for path, entry in files.items()
    if path.split("/")[0] in folders
  )


def unlisted(paths: Collection[str], folders: Collection[str]) -> str | None:
  """The first of some folders that none of some paths is in, or None."""
  listed = {path.split("/")[0] for path in paths}
  return next((folder for folder in folders if folder not in listed), None)


def _find_fault(
  top: str, path: str, size: int, kind: str, digest: str
) -> tuple[str, str] | None:
  """Path and fault of a file that is not what the manifest says."""
  whole = os.path.join(top, path)
  try:
    if os.path.realpath(whole) != f"{top}/{path}":
      return path, "is a link, or outside of the directory"
    with open(whole, "rb", opener=plain) as file:
      actual = os.fstat(file.fileno()).st_size
      if actual != size:
        return path, f"has {actual} bytes of {size}"
      if kind and hashlib.file_digest(file, kind).hexdigest() != digest:
        return path, "has other bytes than were written"
  except FileNotFoundError:
    return path, "is missing"
  except (OSError, ValueError) as error:  # ValueError: a null byte.
    return path, f"cannot be read: {getattr(error, 'strerror', None) or error}"
  return None


def _share_of(sizes: Mapping[str, int], share: Share) -> list[str]:
  """Paths of a process: the largest first, each to who has least so far."""
  loads = [(0, process) for process in range(share.processes)]
  mine = []
  for path in sorted(sizes, key=lambda path: (-sizes[path], path)):
    load, process = heapq.heappop(loads)
    heapq.heappush(loads, (load + sizes[path], process))
    if process == share.process:
      mine.append(path)
  return mine


def _writer(path: str) -> int:
  """The process that has written a file of a checkpoint, by its path."""
  named = re.search(r"(?:^|/)(?:ocdbt\.)?process_(\d+)(?:/|$)", path)
  return int(named[1]) if named else 0


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


def _files(directory: str) -> Iterator[str]:
  for folder, folders, names in os.walk(directory):
    folders.sort()
    for name in sorted(names):
      path = os.path.relpath(os.path.join(folder, name), directory)
      if path != MANIFEST_FILE:
        yield path.replace(os.sep, "/")
