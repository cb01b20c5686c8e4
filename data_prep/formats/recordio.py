"""Reads MXNet's RecordIO without MXNet.

A file is a row of parts, each a magic number, a word with a flag (3 bits) and a
length (29 bits), that many bytes, and padding to a multiple of 4. A record is
one part or, where it holds the magic number at a multiple of 4, several: the
number is cut out, and ends a part. An image record begins with a header (flag,
label, two ids); a flag above 0 says that so many float32 labels follow, and the
rest is the encoded image. Records without image bytes but with several labels
are tables, as InsightFace writes them: the record with key 0 says where images
end, the others where each identity's images begin and end.

Facts: dmlc-core `src/recordio.cc`, MXNet `python/mxnet/recordio.py`,
InsightFace `recognition/arcface_mxnet/common/rec_builder.py`.
"""

import os
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from jamsface_jax.errors import InputError
from jamsface_jax.storage.plain_file import plain

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
_PART = struct.Struct("<II")  # Magic, flag << 29 | length.
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # Flags of a part.
_HEADER = struct.Struct("<IfQQ")  # Number of labels (0: one), label, ids.
_TWO_LABELS = struct.Struct("<ff")
# InsightFace writes the class, perhaps with more behind it; im2rec of detection
# at least two numbers and five for each box.
_MOST_LABELS = 3
_HEAD_BYTES = _HEADER.size + _TWO_LABELS.size
_BLOCK_BYTES = 2**20  # Read at once, so that small records cost few calls.
_LINE_BYTES = 128  # No line of an index is longer.
# Work for each byte of the file: a byte that is gone through is one, a part is
# 64. The smallest records of a sound file come to 3, the smallest parts to 7.
_MOST_WORK, _PART_WORK = 8, 64
_LEAST_BYTES = 2**16  # Smaller files cost nothing.


class Image(NamedTuple):
  """An image record.

  Attributes:
    key: its key in the index; without an index, its number in the file.
    offset: its first byte in the file.
    end: the byte after it and its padding.
    label: its class, the first label if it has several.
    start: where the image begins in the record's bytes.
    length: number of the record's bytes.
  """

  key: int
  offset: int
  end: int
  label: int
  start: int
  length: int


class Table(NamedTuple):
  """A record with labels and no image, see `Image`; the header has key 0.

  Its key without an index is the first of its ids, which InsightFace sets to
  the key: the header is the last record of the file as often as the first.
  """

  key: int
  offset: int
  end: int
  labels: tuple[float, float]


class Damage(NamedTuple):
  """A place that holds no readable record; the reason names file and byte."""

  key: int
  offset: int
  end: int
  reason: str


class _BrokenError(Exception):
  """No record can be read at an offset."""


class RecordFile:
  """A `.rec` file; use as a context manager.

  Args:
    path: the file.
    index_path: its `.idx`, lines of key and offset; None to find the records
      by going through the file.

  Attributes:
    size: bytes in the file.
  """

  def __init__(self, path: str, index_path: str | None):
    self.path = path
    self.index_path = index_path
    try:
      self._file = open(path, "rb", buffering=0, opener=plain)
      self.size = os.fstat(self._file.fileno()).st_size
    except OSError as error:
      raise InputError(
        f"{path!r} cannot be read ({error.strerror}): give a RecordIO file."
      ) from None
    self._block = b""
    self._block_offset = 0
    self._work_left = _MOST_WORK * (self.size + _LEAST_BYTES)

  def __enter__(self) -> "RecordFile":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._file.close()

  def records(self) -> Iterator[Image | Table | Damage]:
    """Yields what the index lists, or the file holds, in that order.

    Only the heads of the records are looked at, and memory does not grow.
    After a damaged place reading goes on at the index's next line, or at the
    next place in the file where a record can start.

    Raises:
      InputError: the index cannot be read.
    """
    if self.index_path is None:
      yield from self._scan()
    else:
      yield from self._follow(self.index_path)

  def read_image(self, image: Image) -> bytes:
    """Returns the encoded image of a record; threads may call it."""
    if image.end - image.offset < _PART.size + image.length + 4:  # One part.
      begin = image.offset + _PART.size
      return self._fetch(begin + image.start, image.length - image.start)
    data = self._fetch(image.offset, image.end - image.offset)
    parts = []
    position = 0
    while position < len(data):
      _, word = _PART.unpack_from(data, position)
      length = word & (2**_LENGTH_BITS - 1)
      position += _PART.size
      parts.append(data[position : position + length])
      position += length + -length % 4
    return _MAGIC_BYTES.join(parts)[image.start :]

  def _scan(self) -> Iterator[Image | Table | Damage]:
    """All records in the order of the file."""
    offset = key = 0
    while offset < self.size:
      record = self._record(key, offset)
      if isinstance(record, Damage) and record.end == offset:
        end = self._next_start(offset + 1)
        # What no index lists has no other name than its place.
        reason = f"{record.reason}; it goes on at byte {end}"
        record = record._replace(end=end, reason=reason)
      yield record
      offset = record.end
      key += 1

  def _follow(self, path: str) -> Iterator[Image | Table | Damage]:
    """The records that an index lists."""
    try:
      with open(path, "rb", opener=plain) as file:
        number = 0
        while line := file.readline(_LINE_BYTES):
          number += 1
          try:
            key, offset = map(int, line.split())
          except ValueError:
            raise InputError(
              f"line {number} of {path!r} is no key and offset: copy the file"
              " again, or delete it to find the records without it."
            ) from None
          if 0 <= offset < self.size:
            yield self._record(key, offset)
          else:
            reason = (
              f"line {number} of {path!r} points to byte {offset} of"
              f" {self.path!r}, which has {self.size} bytes"
            )
            yield Damage(key, offset, offset, reason)
    except OSError as error:
      raise InputError(
        f"{path!r} cannot be read ({error.strerror}): mend it, or delete it to"
        " find the records without it."
      ) from None

  def _count_work(self, count: int) -> None:
    """Refuses a file in which the same bytes are gone through over and over.

    An index may point to one large record in each of its lines, and what looks
    like records may lie within others.
    """
    self._work_left -= count
    if self._work_left < 0:
      index = f" by {self.index_path!r}" if self.index_path else ""
      raise InputError(
        f"{self.path!r} is gone through again and again{index}, as no sound"
        " file is: copy it again, and its index."
      )

  def _record(self, key: int, offset: int) -> Image | Table | Damage:
    """What begins at an offset; a damage of unknown extent ends there."""
    end = offset
    try:
      head, length, end = self._head(offset)
      self._count_work(end - offset)  # Which will be copied.
      if length < _HEADER.size:
        raise _BrokenError(f"{length} bytes are too few for an image record")
      flag, label, first_id, _ = _HEADER.unpack_from(head)
      start = _HEADER.size + 4 * flag
      if length < start:
        raise _BrokenError(f"{length} bytes are too few for {flag} labels")
      if length == start and flag > 1:
        labels = _TWO_LABELS.unpack_from(head, _HEADER.size)
        key = first_id if self.index_path is None else key
        return Table(key, offset, end, labels)
      if length == start:
        raise _BrokenError("the record has no image")
      if flag > _MOST_LABELS:
        raise _BrokenError(
          f"the image has {flag} labels, as those of detection have, and not a"
          " class"
        )
      if flag:
        label = struct.unpack_from("<f", head, _HEADER.size)[0]
      if not (label >= 0 and label.is_integer()):
        raise _BrokenError(f"label {label:g} is no class number")
      return Image(key, offset, end, int(label), start, length)
    except _BrokenError as error:
      reason = f"byte {offset} of {self.path!r}: {error}"
      return Damage(key, offset, end, reason)

  def _head(self, offset: int) -> tuple[bytes, int, int]:
    """Goes through the parts of a record.

    Returns:
      Its first bytes, the number of its bytes, where it ends in the file.
    """
    position, length, head = offset, 0, b""
    expected = (_WHOLE, _FIRST)
    while True:
      flag, size = self._part(position)
      if flag not in expected:
        raise _BrokenError(f"the part at byte {position} has wrong flag {flag}")
      position += _PART.size
      if len(head) < _HEAD_BYTES:
        head += self._read(position, min(size, _HEAD_BYTES - len(head)))
      length += size
      position += size + -size % 4
      if flag in (_WHOLE, _LAST):
        break
      # The magic number between two parts was cut out.
      if len(head) < _HEAD_BYTES:
        head += _MAGIC_BYTES
      length += 4
      expected = (_MIDDLE, _LAST)
    end = min(position, self.size)  # Some writers leave out the last padding.
    if not self._is_boundary(end) and self._holds_start(offset, end):
      raise _BrokenError(f"its length is wrong, no record starts at {end}")
    return head, length, end

  def _part(self, position: int) -> tuple[int, int]:
    """Flag and length of the part at a position."""
    self._count_work(_PART_WORK)
    if self.size - position < _PART.size:
      raise _BrokenError("the file ends within this record")
    magic, word = _PART.unpack(self._read(position, _PART.size))
    if magic != _MAGIC:
      raise _BrokenError(f"no magic number at byte {position}")
    flag, length = word >> _LENGTH_BITS, word & (2**_LENGTH_BITS - 1)
    if position + _PART.size + length > self.size:
      raise _BrokenError(
        f"{length} bytes at byte {position + _PART.size} reach past the end of"
        f" the file at byte {self.size}"
      )
    return flag, length

  def _is_boundary(self, position: int) -> bool:
    """Whether a part, or nothing, follows at a position."""
    if self.size - position < _PART.size:
      return position == self.size
    return self._read(position, len(_MAGIC_BYTES), ahead=0) == _MAGIC_BYTES

  def _starts(self, begin: int, end: int) -> Iterator[int]:
    """Places where a record may start, whatever lies around them."""
    step = _BLOCK_BYTES - len(_MAGIC_BYTES) + 1  # A number may straddle two.
    for offset in range(begin, end, step):
      count = min(_BLOCK_BYTES, self.size - offset)
      self._count_work(min(count, end - offset))
      block = self._read(offset, count)
      at = block.find(_MAGIC_BYTES)
      while 0 <= at and offset + at < end:
        try:
          flag, _ = self._part(offset + at)
        except _BrokenError:
          flag = None
        if flag in (_WHOLE, _FIRST):
          yield offset + at
        at = block.find(_MAGIC_BYTES, at + 1)

  def _holds_start(self, offset: int, end: int) -> bool:
    """Whether the record at an offset swallows the start of another."""
    starts = self._starts(offset + 4, end)
    return any(self._is_sure(start, offset) for start in starts)

  def _next_start(self, offset: int) -> int:
    """The first place from an offset on where to go on; the end if none."""
    starts = self._starts(offset, self.size)
    return next((p for p in starts if self._is_sure(p, 0)), self.size)

  def _is_sure(self, start: int, base: int) -> bool:
    """Tells a start from bytes that look like one by chance.

    No record holds the magic number at a multiple of 4 from its beginning. But
    bytes lost or added shift what follows: then another must follow.
    """
    if (start - base) % 4 == 0:
      return True
    _, length = self._part(start)
    return self._is_boundary(start + _PART.size + length + -length % 4)

  def _read(
    self, offset: int, count: int, *, ahead: int = _BLOCK_BYTES
  ) -> bytes:
    """Bytes of the file; the caller has seen that it has them."""
    begin = offset - self._block_offset
    if 0 <= begin and begin + count <= len(self._block):
      return self._block[begin : begin + count]
    block = self._fetch(offset, max(count, ahead), least=count)
    if ahead:
      self._block, self._block_offset = block, offset
    return block[:count]

  def _fetch(
    self, offset: int, count: int, *, least: int | None = None
  ) -> bytes:
    """Bytes of the file: `count`, or fewer at its end but not below `least`."""
    try:
      data = os.pread(self._file.fileno(), count, offset)
    except OSError as error:
      raise InputError(
        f"{self.path!r} cannot be read at byte {offset} ({error.strerror}):"
        " copy it to a sound disk."
      ) from None
    if len(data) < (count if least is None else least):
      raise InputError(
        f"{self.path!r} became shorter while it was read: wait until it is"
        " complete."
      )
    return data
