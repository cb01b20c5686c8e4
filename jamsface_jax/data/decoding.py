"""From encoded bytes to RGB pixels."""

import io
import os

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from jamsface_jax.data.heif_header import HEIC, read_header
from jamsface_jax.data.image_header import (
  FORMATS,
  JPEG_START,
  stated_maximum,
  stated_size,
)
from jamsface_jax.data.orientation import (
  TIFF_ORDERS,
  UPRIGHT,
  stated_orientation,
  swaps_sides,
  turn,
)
from jamsface_jax.errors import MAX_PIXELS_VARIABLE, one_line

# Decoding threads are ours; OpenCV's own would fight with them.
cv2.setNumThreads(1)
# A broken image is reported by us, with its name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Three times as many bytes are taken for each thread that decodes.
MAX_PIXELS = 100_000_000
_SCANS = b"\xff\xda"  # Begins each scan of a JPEG.
_MOST_SCANS = 200  # A progressive one has ten.
_FEW_PIXELS = 2**20  # Where scans cost nothing.


class DecodingError(ValueError):
  """These bytes are not a whole image; the message says why."""


def decode_image(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes an image, turned as its EXIF orientation says.

  Args:
    data: an encoded image of one of `image_header.FORMATS`, colour or grey.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    DecodingError: not an image, a truncated one, or one that says that it has
      more pixels than `max_pixels`.
  """
  read_size(data)
  if data[:4] in TIFF_ORDERS:
    return _decode_with_opencv(data)  # Which turns this format, told or not.
  return turn(_decode_as_stored(data), stated_orientation(data))


def _decode_as_stored(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes an image that is no TIFF or HEIC, and does not turn it."""
  if data[:2] != JPEG_START:
    is_avif = read_header(data) is not None
    return _decode_with_pillow(data) if is_avif else _decode_with_opencv(data)
  try:
    # Strict: a truncated file is an error, not a half-grey image.
    return simplejpeg.decode_jpeg(data, colorspace="RGB")
  except ValueError as error:
    raise DecodingError(f"broken JPEG: {error}") from None
  except MemoryError:
    raise DecodingError("there is no memory for so many pixels") from None


def decode_into(data: bytes, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
  """Decodes an image into an array, scaled to its size if need be.

  Args:
    data: an encoded image.
    pixels: uint8 [H, W, 3], contiguous; becomes the image, RGB.

  Raises:
    DecodingError: as of `decode_image`.
  """
  # `simplejpeg` loses its decoder where a buffer is too small (1.9.0).
  if (
    data[:2] == JPEG_START
    and read_size(data) == pixels.shape[:2]
    and stated_orientation(data) == UPRIGHT
  ):
    try:
      simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    except ValueError as error:
      raise DecodingError(f"broken JPEG: {error}") from None
  else:
    scale_into(decode_image(data), pixels)


def decode_exactly(data: bytes, pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
  """Decodes a JPEG that is known to have the size of an array.

  Quicker than `decode_into`, which reads the head before. For data sets that
  state one size of all: where a larger image comes, memory is lost for ever.

  Args:
    data: an encoded image.
    pixels: uint8 [H, W, 3], contiguous; becomes the image, RGB.

  Returns:
    Whether it was such a JPEG, whole and upright; if not, the array may hold
    anything.
  """
  if data[:2] != JPEG_START or stated_orientation(data) != UPRIGHT:
    return False
  try:
    decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
  except ValueError:
    return False
  return decoded.shape == pixels.shape


def read_size(data: bytes) -> tuple[int, int]:
  """The (height, width) in pixels that an image says it has, once turned.

  Args:
    data: an encoded image.

  Raises:
    DecodingError: not an image, or too large a one.
  """
  if data[:2] == JPEG_START:
    try:
      height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError as error:
      raise DecodingError(f"broken JPEG: {error}") from None
    height, width = int(height), int(width)
    if height * width > _FEW_PIXELS and data.count(_SCANS) > _MOST_SCANS:
      raise DecodingError(f"a JPEG with more than {_MOST_SCANS} scans")
  else:
    if (header := read_header(data)) and header.format == HEIC:
      raise DecodingError("a HEIC image: convert it to JPEG")
    size = stated_size(data)
    if size is None:
      raise DecodingError(f"not a {FORMATS} image")
    height, width = size
  if height * width > (most := max_pixels()):
    raise DecodingError(
      f"it says that it has {width} x {height} pixels, more than {most:,}:"
      f" --max_pixels={height * width} if that is meant"
    )
  if swaps_sides(stated_orientation(data)):
    return width, height
  return height, width


def max_pixels() -> int:
  """Images that say they have more pixels than this are not decoded."""
  return int(os.environ.get(MAX_PIXELS_VARIABLE, MAX_PIXELS))


def _decode_with_opencv(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes a file of any format that `read_size` knows.

  OpenCV takes the upper eight of sixteen bits. That is wrong where less than
  sixteen are in use: where the file says what stands for white, and where all
  numbers fit into eight bits, as in files that a program widened.
  """
  white = stated_maximum(data)
  if white is None:
    pixels = _run_opencv(data, cv2.IMREAD_COLOR_RGB)
    if pixels.any():
      return pixels
    white = 255  # All of the upper bits are 0.
  deep = _run_opencv(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
  if deep.dtype not in (np.uint8, np.uint16):
    return _run_opencv(data, cv2.IMREAD_COLOR_RGB)
  if white > np.iinfo(deep.dtype).max:  # OpenCV has read another header.
    raise DecodingError(f"a broken {FORMATS} image")
  scaled = np.minimum(deep, white).astype(np.uint32) * 255 + white // 2
  return (scaled // white).astype(np.uint8)


def _decode_with_pillow(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes an AVIF file.

  OpenCV (5.0.0) has grey ones up to twenty levels otherwise than libavif, and
  refuses some of libavif's own examples.
  """
  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
      return np.array(image.convert("RGB"))
  except Image.DecompressionBombError:
    raise DecodingError("it has more pixels than Pillow decodes") from None
  except UnidentifiedImageError:
    raise DecodingError("a broken AVIF image") from None
  # SyntaxError is what Pillow says of what it cannot make sense of.
  except (OSError, RuntimeError, ValueError, MemoryError, SyntaxError) as error:
    raise DecodingError(f"broken AVIF: {_reason(error)}") from None


def _run_opencv(data: bytes, how: int) -> np.ndarray:
  """Decodes as stored; the pixels are uint8 unless `how` allows others."""
  how |= cv2.IMREAD_IGNORE_ORIENTATION
  try:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
  except (cv2.error, MemoryError) as error:
    raise DecodingError(f"OpenCV cannot decode it: {_reason(error)}") from None
  if pixels is None:
    raise DecodingError(f"a broken {FORMATS} image")
  return pixels


def _reason(error: BaseException) -> str:
  """What a decoder met, of OpenCV without the place in its code."""
  return one_line(getattr(error, "err", "") or error or "no memory")


def scale_into(
  image: UInt8[np.ndarray, "h w 3"], pixels: UInt8[np.ndarray, "i j 3"]
) -> None:
  """Scales an image into an array: by area if it shrinks, else bilinearly.

  Args:
    image: uint8 [H, W, 3], of any size.
    pixels: uint8 [h, w, 3], contiguous; becomes the image.
  """
  height, width, _ = pixels.shape
  shrinks = image.shape[0] > height
  how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  cv2.resize(image, (width, height), dst=pixels, interpolation=how)
