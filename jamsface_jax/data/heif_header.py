"""What the boxes of an AVIF or HEIC file say of its picture.

Both are HEIF (ISO/IEC 23008-12): boxes in boxes (ISO/IEC 14496-12, 4.2). `meta`
has the items of the file and their kinds (`iinf`), which of them is the picture
(`pitm`), and properties (`iprp`): of its size (`ispe`), and of how it is turned
(`irot`) and mirrored (`imir`) before it is shown. Exif's orientation does not
count beside these.
"""

import dataclasses
import struct
from collections.abc import Iterator

AVIF, HEIC = "AVIF", "HEIC"

# By the kind of an item: what it was encoded with.
_CODECS = {b"av01": AVIF, b"hvc1": HEIC, b"hev1": HEIC}


@dataclasses.dataclass(frozen=True)
class HeifHeader:
  """What is known of a picture before it is decoded.

  Attributes:
    format: AVIF or HEIC.
    height: in pixels, before it is turned.
    width: likewise.
    quarters: how often it is turned by 90 degrees against the clock.
    flipped: whether its upper and lower half change places afterwards.
  """

  format: str
  height: int
  width: int
  quarters: int
  flipped: bool


def read_header(data: bytes) -> HeifHeader | None:
  """Reads the header of an AVIF or HEIC image.

  Args:
    data: an encoded image, or its beginning with all of `meta`.

  Returns:
    None if it is another format or damaged.
  """
  if data[4:8] != b"ftyp":
    return None
  try:
    meta = _full(_only(memoryview(data), b"meta"))[1]
    item = _primary_item(meta)
    kinds = dict(_items(meta))
    kind = kinds[item]
    if kind not in _CODECS:  # Put together from others: as of a grid of tiles.
      kind = min(one for one in kinds.values() if one in _CODECS)
    return _header(_CODECS[kind], _properties(meta, item))
  except (struct.error, KeyError, IndexError, ValueError):
    return None


def _header(
  format: str, properties: list[tuple[bytes, memoryview]]
) -> HeifHeader:
  """Puts what the properties of a picture say together, one by one."""
  size, quarters, flipped = None, 0, False
  for name, body in properties:
    if name == b"ispe":
      size = struct.unpack_from(">II", body, 4)
    elif name == b"irot":
      # A mirror image that is turned has been turned the other way.
      quarters += -(body[0] & 3) if flipped else body[0] & 3
    elif name == b"imir":
      quarters += 2 * (body[0] & 1)  # 0: upper and lower, 1: left and right.
      flipped = not flipped
  if size is None:
    raise KeyError("ispe")
  width, height = size
  return HeifHeader(format, height, width, quarters % 4, flipped)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
  """The kind and the body of each box of a body, or of a file."""
  at = 0
  while at < len(data):
    length, kind = struct.unpack_from(">I4s", data, at)
    head = 8
    if length == 1:
      (length,) = struct.unpack_from(">Q", data, at + 8)
      head = 16
    elif length == 0:  # All that is left.
      length = len(data) - at
    if length < head:
      raise KeyError(kind)
    yield kind, data[at + head : at + length]
    at += length


def _only(data: memoryview, kind: bytes) -> memoryview:
  """The body of the first box of a kind."""
  for name, body in _boxes(data):
    if name == kind:
      return body
  raise KeyError(kind)


def _full(body: memoryview) -> tuple[int, memoryview]:
  """Version and rest of what has a version and three bytes of flags."""
  return body[0], body[4:]


def _primary_item(meta: memoryview) -> int:
  version, body = _full(_only(meta, b"pitm"))
  return struct.unpack_from(">I" if version else ">H", body)[0]


def _items(meta: memoryview) -> Iterator[tuple[int, bytes]]:
  """Number and kind of each item."""
  version, body = _full(_only(meta, b"iinf"))
  for kind, entry in _boxes(body[4 if version else 2 :]):
    version, body = _full(entry)
    if kind == b"infe" and version >= 2:
      wide = version > 2
      number, _, what = struct.unpack_from(">IH4s" if wide else ">HH4s", body)
      yield number, what


def _properties(meta: memoryview, item: int) -> list[tuple[bytes, memoryview]]:
  """Kind and content of what an item is said to have, in that order."""
  parts = _only(meta, b"iprp")
  every = list(_boxes(_only(parts, b"ipco")))
  found = []
  for kind, whole in _boxes(parts):
    if kind != b"ipma":
      continue
    version, body = _full(whole)
    number = struct.Struct(">I" if version else ">H")
    index = struct.Struct(">H" if whole[3] & 1 else ">B")
    (count,) = struct.unpack_from(">I", body)
    at = 4
    for _ in range(count):
      (one,) = number.unpack_from(body, at)
      at += number.size
      few = body[at]
      at += 1
      for place in range(at, at + few * index.size, index.size):
        (which,) = index.unpack_from(body, place)
        # The highest bit: whether a reader must know it. 0 stands for none.
        which &= (1 << 8 * index.size - 1) - 1
        if one == item and which:
          found.append(every[which - 1])
      at += few * index.size
  return found
