"""Data sets in a bucket, copied once to a local disk.

A batch is read at random: from a bucket that would be three requests an image.
So a data set is copied whole before it is opened, by each host for itself, to a
directory named by what it holds:

  CACHE/NAME-FINGERPRINT/...     what the data set has, dataset.json last
  CACHE/NAME-FINGERPRINT.lock    of the process that copies

Another data set at the same address has another fingerprint. A copy that was
interrupted goes on with the files that are missing.
"""

import errno
import fcntl
import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Mapping

from tqdm import tqdm

from jamsface_jax.errors import InputError
from jamsface_jax.storage.bucket import SCHEME, Blob, Bucket, require_packages
from jamsface_jax.storage.durable import (
  make_directory,
  sync_directory,
  sync_file,
)
from jamsface_jax.storage.paths import check_address
from jamsface_jax.storage.plain_file import PARTIAL, plain
from jamsface_jax.storage.user_cache import cache_directory

DATASET_FILE = "dataset.json"  # The last to be there.
_MARGIN = 2**26  # Bytes of a disk that are left to others.
_copied: set[str] = set()
_cache: list[str] = []  # What `keep_copies_in` was given.


def keep_copies_in(directory: str) -> None:
  """Chooses where copies go in this process.

  Args:
    directory: made if missing; "" for one in the user's cache.
  """
  _cache[:] = [os.path.abspath(directory)] if directory else []


def local_copy(place: str) -> str:
  """Returns the directory of a data set, of a local copy if it is in a bucket.

  Every file is compared with the checksum that the bucket has of it, as it is
  copied.

  Args:
    place: a directory, which is returned as it is, or gs://BUCKET/NAME.

  Raises:
    InputError: nothing is there, the bucket or the cache cannot be used, or
      the disk is too small.
  """
  return _copy(place) if place.startswith(SCHEME) else place


def is_here(place: str) -> bool:
  """Whether a data set is on a disk, or was copied to one by this process."""
  return not place.startswith(SCHEME) or place in _copied


def copies_directory() -> str:
  """Where copies go, which is there.

  Raises:
    InputError: it cannot be made.
  """
  return _cache[0] if _cache else cache_directory("data")


def list_files(address: str) -> tuple[Bucket, dict[str, Blob]]:
  """The place of a data set in a bucket, and its files by name.

  Raises:
    InputError: nothing is there, or the bucket cannot be used.
  """
  address = check_address(address, "data.directory")
  require_packages(address)
  place = Bucket(address)
  blobs = {n: b for n, b in place.blobs().items() if not n.endswith("/")}
  if not blobs:
    raise InputError(
      f"data set {address!r} is not there: copy one to it, with 'gcloud storage"
      f" rsync -r DATASET {address}'."
    )
  return place, blobs


@functools.lru_cache(maxsize=64)  # A command opens a data set several times.
def _copy(address: str) -> str:
  place, blobs = list_files(address)
  address, cache = place.address, copies_directory()
  name = f"{address.rpartition('/')[2]}-{_fingerprint(blobs)}"
  directory = os.path.join(cache, name)
  try:
    make_directory(directory)
    with open(f"{directory}.lock", "w", opener=plain) as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)  # Let go of when a process ends.
      _fill(place, blobs, directory)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise _full(address, cache) from None
    raise InputError(
      f"data set {address!r} could not be copied to {directory!r}"
      f" ({error.strerror or error}): run the same command again, or give"
      " another --data_cache."
    ) from None
  _copied.add(address)
  return directory


def _fingerprint(blobs: Mapping[str, Blob]) -> str:
  """A short hash of what is there, by the checksums of the bucket."""
  digest = hashlib.sha256()
  for name in sorted(blobs):
    blob = blobs[name]
    digest.update(f"{name} {blob.bytes} {blob.md5 or blob.crc32c}\n".encode())
  return digest.hexdigest()[:16]


def _fill(place: Bucket, blobs: Mapping[str, Blob], directory: str) -> None:
  """Copies what is missing; a file has its name when it is whole.

  Raises:
    OSError: the disk or the bucket refuses.
    InputError: the disk is too small.
  """
  names = sorted(blobs, key=lambda name: (name == DATASET_FILE, name))
  missing = [n for n in names if not os.path.exists(os.path.join(directory, n))]
  size = sum(blobs[name].bytes for name in missing)
  if not missing:
    return
  if shutil.disk_usage(directory).free < size + _MARGIN:
    raise _full(place.address, os.path.dirname(directory), size)
  total = sum(blob.bytes for blob in blobs.values())
  bar = tqdm(
    total=total,
    initial=total - size,
    unit="B",
    unit_scale=True,
    desc=place.address,
    disable=not sys.stderr.isatty(),
  )
  if bar.disable:
    print(f"copying {place.address}: {size:,} bytes to {directory}", flush=True)
  with bar:
    for name in missing:
      path = os.path.join(directory, name)
      os.makedirs(os.path.dirname(path), exist_ok=True)
      place.download({name: path + PARTIAL})
      sync_file(path + PARTIAL)  # A file that has its name is not looked at.
      os.replace(path + PARTIAL, path)
      sync_directory(os.path.dirname(path))
      bar.update(blobs[name].bytes)


def _full(address: str, cache: str, size: int | None = None) -> InputError:
  needs = "more bytes than are free" if size is None else f"{size:,} bytes"
  return InputError(
    f"data set {address!r} does not fit: it needs {needs} in {cache!r}: make"
    " room, or give --data_cache a directory on a larger disk."
  )
