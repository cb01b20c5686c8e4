"""How a viewer turns an image: its EXIF orientation, whatever its format.

Cameras store what the sensor saw and note how it was held. The note is a tag of
TIFF (TIFF 6.0, 'Orientation'), in a file of its own or in a block of another
format: in JPEG a segment APP1 (EXIF 2.3, 4.7.2), in PNG a chunk eXIf (PNG
specification, third edition), in WebP a chunk EXIF (RFC 9649). AVIF and HEIC
have boxes for it, see `heif_header`.
"""

import struct
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from jamsface_jax.data.heif_header import read_header

UPRIGHT = 1
ORIENTATION_TAG = 0x0112
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}

_EXIF = b"Exif\0\0"  # Before the block in JPEG, and by some writers in WebP.
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_PNG_START = b"\x89PNG\r\n\x1a\n"
_NUMBERS = {3: "H", 4: "I"}  # Kinds of numbers, as `struct` has them.

_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
  2: lambda p: p[:, ::-1],
  3: lambda p: p[::-1, ::-1],
  4: lambda p: p[::-1],
  5: lambda p: p.transpose(1, 0, 2),
  6: lambda p: np.rot90(p, -1),
  7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
  8: lambda p: np.rot90(p, 1),
}

# By quarters against the clock, and whether it is flipped then.
_OF_BOXES = {
  (0, False): UPRIGHT,
  (1, False): 8,
  (2, False): 3,
  (3, False): 6,
  (0, True): 4,
  (1, True): 5,
  (2, True): 2,
  (3, True): 7,
}


def stated_orientation(data: bytes) -> int:
  """The EXIF orientation that an image states, or what equals it.

  Args:
    data: an encoded image.

  Returns:
    1 to 8; 1, which is upright, where nothing sound is said.
  """
  try:
    if data[:2] == b"\xff\xd8":
      block = _block_of_jpeg(data) if _EXIF in data else b""
    elif data[:8] == _PNG_START:
      block = _block_of_png(data) if b"eXIf" in data else b""
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
      block = _block_of_webp(data) if b"EXIF" in data else b""
    elif header := read_header(data):
      return _OF_BOXES[header.quarters, header.flipped]
    else:
      block = data
    if block[:4] not in TIFF_ORDERS:
      return UPRIGHT
    return _orientation(block, TIFF_ORDERS[block[:4]])
  except struct.error:  # Cut off.
    return UPRIGHT


def swaps_sides(orientation: int) -> bool:
  """Whether an image turned like that has its height for its width."""
  return orientation >= 5


def turn(
  pixels: UInt8[np.ndarray, "h w 3"], orientation: int
) -> UInt8[np.ndarray, "i j 3"]:
  """Turns pixels as they are stored to what a viewer shows.

  Args:
    pixels: uint8 [H, W, 3].
    orientation: 1 to 8.

  Returns:
    uint8 [H, W, 3], or [W, H, 3] if it `swaps_sides`; contiguous.
  """
  if orientation == UPRIGHT:
    return pixels
  return np.ascontiguousarray(_TURNS[orientation](pixels))


def _orientation(block: bytes, order: str) -> int:
  """The tag in the first directory of a TIFF block."""
  (at,) = struct.unpack_from(f"{order}I", block, 4)
  (count,) = struct.unpack_from(f"{order}H", block, at)
  for entry in range(at + 2, at + 2 + 12 * count, 12):
    tag, kind = struct.unpack_from(f"{order}HH", block, entry)
    if tag == ORIENTATION_TAG and kind in _NUMBERS:
      number = f"{order}{_NUMBERS[kind]}"
      (value,) = struct.unpack_from(number, block, entry + 8)
      return value if value in _TURNS else UPRIGHT
  return UPRIGHT


def _block_of_jpeg(data: bytes) -> bytes:
  """Goes through the segments before the first scan."""
  at = 2
  while at < len(data):
    mark, kind, length = struct.unpack_from(">BBH", data, at)
    if mark != 0xFF or kind == _START_OF_SCAN:
      return b""
    if kind == 0xFF:  # Filling.
      at += 1
      continue
    body = at + 4
    if kind == _APP1 and data[body : body + len(_EXIF)] == _EXIF:
      return data[body + len(_EXIF) : at + 2 + length]
    at += 2 + length
  return b""


def _block_of_png(data: bytes) -> bytes:
  at = len(_PNG_START)
  while at < len(data):
    length, kind = struct.unpack_from(">I4s", data, at)
    if kind == b"eXIf":
      return data[at + 8 : at + 8 + length].removeprefix(_EXIF)
    at += 12 + length
  return b""


def _block_of_webp(data: bytes) -> bytes:
  at = 12
  while at < len(data):
    kind, length = struct.unpack_from("<4sI", data, at)
    if kind == b"EXIF":
      return data[at + 8 : at + 8 + length].removeprefix(_EXIF)
    at += 8 + length + length % 2
  return b""
