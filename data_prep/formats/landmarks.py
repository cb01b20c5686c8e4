"""Five landmarks and the transform that brings them to the standard place.

Landmarks are the left eye, right eye, nose tip, left and right corner of the
mouth, left and right as the viewer sees them, in pixels (x to the right, y
down, pixel centres at whole numbers) of the upright image.
"""

import os
import re

import cv2
import numpy as np
from jaxtyping import Float, Float64, UInt8

from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import (
  NotTextError,
  read_lines,
  split_fields,
)

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
_NUMBERS = 10  # Two a landmark.


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


def read_landmarks(path: str) -> dict[str, Float64[np.ndarray, "5 2"]]:
  """Reads landmarks of many images from a text file.

  Each line has an image's relative path and ten numbers, separated by tabs,
  else by commas, else by blanks: x1 y1 ... x5 y5, or as a header says, whose
  columns begin or end in x or y (`lefteye_x`, `P1X`, `x1`; first all x, then
  all y is a possible order). A first line that is only a number, as CelebA has
  it, is skipped. A path may lack its extension, as VGGFace2's do; an eleventh
  number, the score of IJB's detector, may follow and is left out.

  Args:
    path: the file, UTF-8.

  Returns:
    Maps paths as written to float64 [5, 2].

  Raises:
    InputError: unreadable, or a line that does not fit; names file and line.
  """
  try:
    rows = [
      (line.number, _fields(line.text))
      for line in read_lines(path)
      if line.text.strip()
    ]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"--landmarks {path!r} cannot be read ({error}): give a text file with a"
      " path and ten numbers a line."
    ) from None
  if rows and len(rows[0][1]) == 1 and rows[0][1][0].isdigit():
    del rows[0]  # CelebA counts its images first.
  order = np.arange(_NUMBERS)
  if rows and _numbers(rows[0][1][1:]) is None:
    number, header = rows.pop(0)
    # CelebA's header has no name for the first column.
    names = header if len(header) == _NUMBERS else header[1:]
    order = _column_order(path, number, names)
  landmarks = {}
  for number, fields in rows:
    numbers = _numbers(fields[1:])
    if numbers is None or len(numbers) not in (_NUMBERS, _NUMBERS + 1):
      raise InputError(
        f"--landmarks {path}:{number} is not a path and ten numbers: correct"
        " the line."
      )
    points = numbers[order].reshape(-1, 2)
    if (points == points[0]).all():
      raise InputError(
        f"--landmarks {path}:{number} has five times the same point: correct or"
        " delete the line."
      )
    if fields[0] in landmarks:
      raise InputError(
        f"--landmarks {path}:{number} names {fields[0]!r} a second time: keep"
        " one line an image."
      )
    landmarks[fields[0]] = points
  if not landmarks:
    raise InputError(
      f"--landmarks {path!r} has no landmarks: give a path and ten numbers a"
      " line."
    )
  return landmarks


def find_landmarks(
  landmarks: dict[str, np.ndarray], image: str
) -> np.ndarray | None:
  """Looks an image up by its relative path, with or without extension."""
  found = landmarks.get(image)
  return landmarks.get(os.path.splitext(image)[0]) if found is None else found


def count_outside(
  landmarks: Float[np.ndarray, "5 2"], height: int, width: int
) -> int:
  """How many of the landmarks lie outside an image.

  Args:
    landmarks: float [5, 2], in pixels.
    height: of the image.
    width: of the image.
  """
  inside = (landmarks > -1) & (landmarks < np.array([width, height]))
  return int((~inside.all(axis=1)).sum())


def _fields(line: str) -> list[str]:
  return [field.strip('"') for field in split_fields(line.strip())]


def _numbers(fields: list[str]) -> np.ndarray | None:
  """The fields as finite numbers, or None."""
  try:
    numbers = np.array([float(field) for field in fields])
  except ValueError:
    return None
  return numbers if np.isfinite(numbers).all() else None


def _column_order(path: str, number: int, names: list[str]) -> np.ndarray:
  """The columns of x1, y1, ..., x5, y5, by the names of the ten."""
  axes = {"x": [], "y": []}
  for column, name in enumerate(names):
    match = re.search("[xy]$|^[xy]", name.lower())
    if match:
      axes[match.group()].append(column)
  if [len(axis) for axis in axes.values()] != [_NUMBERS // 2] * 2:
    raise InputError(
      f"--landmarks {path}:{number} is neither ten numbers nor a header of five"
      " x and five y: name the columns x1, y1, ..., x5, y5."
    )
  return np.stack([axes["x"], axes["y"]], axis=1).ravel()
