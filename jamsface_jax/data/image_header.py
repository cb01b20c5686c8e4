"""What the first bytes of an image say of its size, before it is decoded.

A few bytes can promise any number of pixels, and decoders make room for them
first. JPEG is left to its decoder, whose own reader of heads is used. Formats
that are not read here are not decoded at all.
"""

import re
import struct

from jamsface_jax.data.heif_header import read_header
from jamsface_jax.data.orientation import TIFF_ORDERS

JPEG_START = b"\xff\xd8"
FORMATS = (
  "JPEG, PNG, WebP, BMP, GIF, TIFF, JPEG 2000, AVIF, PBM, PGM, PPM or PAM"
)

_TIFF_SIZES = {
  1: "B",
  3: "H",
  4: "I",
}  # Kinds of numbers, as `struct` has them.
_TIFF_TAGS = {256: "width", 257: "height", 322: "tile", 323: "tile"}
# White space and comments, a number; as netpbm's documents say.
_PNM = re.compile(
  rb"P([1-6])(?:\s|#[^\r\n]*+[\r\n])++(\d{1,9})(?:\s|#[^\r\n]*+[\r\n])++(\d{1,9})\s"
)
# Of grey and of colour, a third number: what stands for white.
_PNM_MAXIMUM = re.compile(
  rb"P[2356](?:(?:\s|#[^\r\n]*+[\r\n])++(\d{1,9})){3}\s"
)
_PAM = re.compile(rb"P7\n(?:[^\n]*\n)*?ENDHDR\n")
_PAM_SIDES = re.compile(rb"^(WIDTH|HEIGHT) (\d{1,9})$", re.MULTILINE)
_SUN_RASTER = b"\x59\xa6\x6a\x95"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"  # A box around what begins as follows.
_JPEG_2000 = b"\xff\x4f\xff\x51"
_PNM_BYTES = 4096  # No head of a PNM file is longer.


def stated_size(data: bytes) -> tuple[int, int] | None:
  """The (height, width) in pixels that an image says it has.

  Of animations, the canvas. What the numbers promise need not be there.

  Args:
    data: an encoded image that is no JPEG, or its beginning; of JPEG 2000 all.

  Returns:
    Both at least 0; None if the format is unknown, or the head is cut off.
  """
  try:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
      width, height = struct.unpack_from(">II", data, 16)
    elif data[:2] == b"BM":
      width, height = _bmp(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
      width, height = _webp(data)
    elif data[:6] in (b"GIF87a", b"GIF89a"):
      width, height = struct.unpack_from("<HH", data, 6)
    elif data[:4] in TIFF_ORDERS:
      width, height = _tiff(data, TIFF_ORDERS[data[:4]])
    elif data[:4] == _SUN_RASTER:
      width, height = struct.unpack_from(">II", data, 4)
    elif data[:4] == _JPEG_2000 or data[:12] == _JP2:
      width, height = _jpeg_2000(data)
    elif header := read_header(data):
      width, height = header.width, header.height
    elif match := _PAM.match(data[:_PNM_BYTES]):
      sides = dict(_PAM_SIDES.findall(match[0]))
      width, height = int(sides[b"WIDTH"]), int(sides[b"HEIGHT"])
    elif match := _PNM.match(data[:_PNM_BYTES]):
      width, height = int(match[2]), int(match[3])
    else:
      return None
  except (struct.error, KeyError):
    return None
  return height, width


def stated_maximum(data: bytes) -> int | None:
  """The number that stands for white, where an image says so.

  Args:
    data: an encoded image.

  Returns:
    1 to 65,534; None of formats that do not say it, and where OpenCV knows: at
    the largest of 8 or of 16 bits, and of small ones in text.
  """
  match = _PNM_MAXIMUM.match(data[:_PNM_BYTES])
  if match is None:
    return None
  maximum, is_text = int(match[1]), data[1:2] in b"23"
  known = maximum == 0 or maximum == 255 or maximum >= 65535
  return None if known or (is_text and maximum < 255) else maximum


def _bmp(data: bytes) -> tuple[int, int]:
  """Of a Windows bitmap, or one of OS/2, whose head has 12 bytes."""
  if struct.unpack_from("<I", data, 14)[0] == 12:
    return struct.unpack_from("<HH", data, 18)
  width, height = struct.unpack_from("<ii", data, 18)
  return abs(width), abs(height)  # Below 0: the lines come in another order.


def _webp(data: bytes) -> tuple[int, int]:
  """RFC 9649: lossy, lossless, or with a canvas."""
  kind = data[12:16]
  if kind == b"VP8 ":
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
  if kind == b"VP8L":
    (bits,) = struct.unpack_from("<I", data, 21)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  if kind == b"VP8X":
    sides = data[24:27], data[27:30]
    if len(sides[1]) == 3:
      width, height = (int.from_bytes(side, "little") + 1 for side in sides)
      return width, height
  raise KeyError(kind)


def _jpeg_2000(data: bytes) -> tuple[int, int]:
  """ITU-T T.800, A.5.1: what the pixels are of, whatever a box around says."""
  at = data.find(_JPEG_2000)
  if at < 0 or data.rstrip(b"\0")[-2:] != b"\xff\xd9":
    raise KeyError("cut off")  # Its decoder fills up what is missing.
  right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
  return max(right - left, 0), max(bottom - top, 0)


def _tiff(data: bytes, order: str) -> tuple[int, int]:
  """TIFF 6.0: numbers of the first directory.

  A tile may be larger than the image, and is decoded whole: then it counts.
  """
  (at,) = struct.unpack_from(f"{order}I", data, 4)
  (count,) = struct.unpack_from(f"{order}H", data, at)
  found = {"width": 0, "height": 0, "tile": 0}
  for entry in range(at + 2, at + 2 + 12 * count, 12):
    tag, kind = struct.unpack_from(f"{order}HH", data, entry)
    if tag in _TIFF_TAGS:
      number = f"{order}{_TIFF_SIZES[kind]}"
      (value,) = struct.unpack_from(number, data, entry + 8)
      # Of several, readers differ in which they take.
      name = _TIFF_TAGS[tag]
      found[name] = max(found[name], value)
  return max(found["width"], found["tile"]), max(found["height"], found["tile"])
