"""From encoded bytes to RGB pixels."""

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

# Decoding threads are ours; OpenCV's own would fight with them.
cv2.setNumThreads(1)
# A broken image is reported by us, with its name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_JPEG_START = b"\xff\xd8"


class DecodingError(ValueError):
  """These bytes are not a whole image; the message says why."""


def decode_image(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes an image as it is.

  Args:
    data: a JPEG, PNG, WebP or BMP file, colour or grey.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    DecodingError: not an image, or a truncated one.
  """
  if data[:2] == _JPEG_START:
    try:
      # Strict: a truncated file is an error, not a half-grey image.
      return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
      raise DecodingError(f"broken JPEG: {error}") from None
  pixels = None
  if data:
    # As stored, whatever EXIF says: `simplejpeg` does the same.
    how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
  if pixels is None:
    raise DecodingError("not a JPEG, PNG, WebP or BMP image")
  return pixels


def decode_into(data: bytes, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
  """Decodes an image into an array, scaled to its size if need be.

  Args:
    data: an encoded image.
    pixels: uint8 [H, W, 3], contiguous; becomes the image, RGB.

  Raises:
    DecodingError: not an image, or a truncated one.
  """
  image = None
  if data[:2] == _JPEG_START:
    try:
      image = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    except ValueError:
      pass  # It does not fit, or is broken: found out below.
    else:
      if image.shape == pixels.shape:
        return  # In place: nothing was copied.
      image = image.copy()  # It lies in `pixels`, which it must not overwrite.
  if image is None:
    image = decode_image(data)
  scale_into(image, pixels)


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
