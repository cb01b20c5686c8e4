"""Five landmarks and the transform that brings them to the standard place.

Landmarks are the left eye, right eye, nose tip, left and right corner of the
mouth, left and right as the viewer sees them, in pixels (x to the right, y
down, pixel centres at whole numbers) of the upright image.
"""

import cv2
import numpy as np
from jaxtyping import Float, Float64, UInt8

# ArcFace's (https://arxiv.org/abs/1801.07698), for 112 x 112 pixels.
TEMPLATE = np.array(
  [
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
  ]
)
TEMPLATE_SIZE = 112


def similarity_transform(
  source: Float64[np.ndarray, "p 2"], target: Float64[np.ndarray, "p 2"]
) -> Float64[np.ndarray, "2 3"]:
  """Fits a rotation, a scale and a shift by least squares.

  The optimum of Umeyama 1991 (https://doi.org/10.1109/34.88573) without
  reflection. In two dimensions it is linear: with points as complex numbers,
  target = a source + b, where a turns and scales and b shifts.

  Args:
    source: float64 [P, 2], not all the same point.
    target: float64 [P, 2].

  Returns:
    float64 [2, 3]: the matrix M with target = M @ (x, y, 1).

  Raises:
    ValueError: the source points coincide.
  """
  z, w = (points @ np.array([1, 1j]) for points in (source, target))
  centred = z - z.mean()
  spread = np.vdot(centred, centred).real
  if not spread > 0:
    raise ValueError("the landmarks coincide")
  a = np.vdot(centred, w - w.mean()) / spread
  b = w.mean() - a * z.mean()
  return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_face(
  pixels: UInt8[np.ndarray, "h w 3"],
  landmarks: Float[np.ndarray, "5 2"],
  size: int,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Cuts out a face so that its landmarks lie where the template has them.

  Args:
    pixels: uint8 [H, W, 3].
    landmarks: float [5, 2], in pixels of this image.
    size: height and width of the result; the template is scaled to it.

  Returns:
    uint8 [size, size, 3]; black where the image has no pixels.

  Raises:
    ValueError: the landmarks coincide.
  """
  # Scaled about the corner of the first pixel, which is at -1/2.
  target = (TEMPLATE + 0.5) * (size / TEMPLATE_SIZE) - 0.5
  matrix = similarity_transform(np.asarray(landmarks, np.float64), target)
  # Bilinear sampling of a face more than twice as large as wanted would skip
  # pixels: shrink by a whole factor first, each pixel the mean of a block.
  factor = int(0.5 / np.hypot(matrix[0, 0], matrix[1, 0]))
  if factor > 1:
    pixels = _shrink(pixels, factor)
    # x = factor (x' + 1/2) - 1/2
    matrix[:, 2] += matrix[:, :2].sum(axis=1) * (factor - 1) / 2
    matrix[:, :2] *= factor
  return cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_LINEAR)


def _shrink(
  pixels: UInt8[np.ndarray, "h w 3"], factor: int
) -> UInt8[np.ndarray, "i j 3"]:
  """Means of blocks of factor x factor pixels; the border is repeated."""
  down, right = (-length % factor for length in pixels.shape[:2])
  pixels = cv2.copyMakeBorder(pixels, 0, down, 0, right, cv2.BORDER_REPLICATE)
  shape = (pixels.shape[1] // factor, pixels.shape[0] // factor)
  return cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
