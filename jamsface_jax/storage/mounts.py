"""Which file systems can hold a run: mounted buckets cannot."""

import os
import re

from jamsface_jax.errors import InputError
from jamsface_jax.storage.plain_file import plain

MOUNTS = "/proc/self/mountinfo"

# By the type of the file system, or by what is mounted where the type is no
# more than "fuse".
_BUCKETS = re.compile(
  r"(?:fuse\.)?(gcsfuse|mountpoint-s3|s3fs|goofys|geesefs|rclone|blobfuse2?)"
)


def refuse_mounted_bucket(path: str, flag: str) -> None:
  """Refuses to keep a run in a bucket that is mounted as a directory.

  A checkpoint counts from the instant when its directory, which holds others,
  gets its name; metrics are appended to; a lock keeps others out. gcsfuse
  refuses such a rename in buckets without a hierarchical namespace, Mountpoint
  for S3 every rename of a directory and appending, and none locks across hosts.

  Args:
    path: where the run would be, there or not.
    flag: what the path was given by.

  Raises:
    InputError: it is on such a mount.
  """
  mounted = _mounted_bucket(os.path.realpath(path))
  if mounted:
    raise InputError(
      f"{flag}={path!r} is on {mounted}, a mounted bucket, where checkpoints"
      " cannot be renamed nor files locked: give the address of the bucket,"
      " gs://BUCKET/RUN, or a file system such as NFS or Lustre."
    )


def _mounted_bucket(path: str) -> str | None:
  """What a path lies on, if that is a bucket; see proc(5) for the table."""
  try:
    with open(MOUNTS, encoding="utf-8", opener=plain) as file:
      lines = file.read().splitlines()
  except OSError:  # Not Linux.
    return None
  longest, kind = "", None
  for line in lines:
    before, _, after = line.partition(" - ")
    where, of = before.split()[4:5], after.split()[:2]
    if not where or len(of) < 2:
      continue
    # Blanks and the like are written as three octal digits.
    point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), where[0])
    inside = f"{path}/".startswith(f"{point.rstrip('/')}/")
    if inside and len(point) >= len(longest):  # A later one hides an earlier.
      found = _BUCKETS.fullmatch(of[0])
      if of[0] == "fuse":
        found = _BUCKETS.match(of[1])
      longest, kind = point, found and found[1]
  return kind
