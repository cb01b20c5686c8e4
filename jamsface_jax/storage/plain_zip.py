"""Opens zip archives that a stranger may have made.

An entry of the list at the end of an archive costs 46 bytes, and may point to
any part of it: a thousand members may share the same bytes, or a few bytes say
that they unpack to terabytes.
"""

import os
import zipfile

_MOST = 20  # Times the bytes of the file; weights hardly shrink at all.
_SMALL = 2**20  # Bytes that no such rule is needed for.


class UnsoundZipError(ValueError):
  """An archive that is damaged or larger than it looks; says how."""


def open_zip(path: str) -> zipfile.ZipFile:
  """Opens an archive whose members lie apart.

  Together they unpack to 20 times the bytes of the file at most, or to 1 MiB.
  `zipfile` reads no more of a member than the list says.

  Args:
    path: the file.

  Raises:
    UnsoundZipError: it is damaged, or members overlap, or are larger.
    OSError: it cannot be read.
  """
  try:
    archive = zipfile.ZipFile(path)
  except OSError:
    raise
  except Exception as error:  # zipfile has many for damage.
    raise UnsoundZipError(f"it is damaged: {error}") from None
  size = os.path.getsize(path)
  members = sorted(archive.infolist(), key=lambda one: one.header_offset)
  packed = sum(one.compress_size for one in members)
  unpacked = sum(one.file_size for one in members)
  ends = [one.header_offset + one.compress_size for one in members]
  starts = [one.header_offset for one in members[1:]]
  overlap = any(
    end > start for end, start in zip(ends, [*starts, size], strict=False)
  )
  if overlap or packed > size:
    archive.close()
    raise UnsoundZipError("it is damaged: its members overlap")
  if unpacked > max(_MOST * size, _SMALL):
    archive.close()
    raise UnsoundZipError(
      f"its {size} bytes would unpack to {unpacked}, more than {_MOST} times as"
      " many"
    )
  return archive
