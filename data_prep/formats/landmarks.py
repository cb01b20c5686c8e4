"""Five landmarks an image, in a file; in the order of `detection.alignment`."""

import os
import re
from array import array
from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
from jaxtyping import Float, Float64

from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import (
  NotTextError,
  read_lines,
  split_fields,
)

_NUMBERS = 10  # Two a landmark.


class Landmarks:
  """Five landmarks of each of many images.

  Args:
    rows: the row of each image, by its path, with or without extension.
    points: float64 [N, 5, 2], in pixels.
  """

  def __init__(
    self, rows: Mapping[str, int], points: Float64[np.ndarray, "n 5 2"]
  ):
    self._rows = rows
    self._points = points

  def find(self, image: str) -> Float64[np.ndarray, "5 2"] | None:
    """Looks an image up by its relative path."""
    row = self._rows.get(image)
    if row is None:
      row = self._rows.get(os.path.splitext(image)[0])
    return None if row is None else self._points[row]


def read_landmarks(path: str) -> Landmarks:
  """Reads landmarks of many images from a text file.

  Each line has an image's relative path and ten numbers, separated by tabs,
  else by commas, else by blanks: x1 y1 ... x5 y5, or as a header says, whose
  columns begin or end in x or y (`lefteye_x`, `P1X`, `x1`; first all x, then
  all y is a possible order). A first line that is only a number, as CelebA has
  it, is skipped. A path may lack its extension, as VGGFace2's do; an eleventh
  number, the score of IJB's detector, may follow and is left out.

  Args:
    path: the file, UTF-8.

  Raises:
    InputError: unreadable, or a line that does not fit; names file and line.
  """
  lines = _split_lines(path)
  first = next(lines, None)
  if first and len(first[1]) == 1 and first[1][0].isdigit():
    first = next(lines, None)  # CelebA counts its images first.
  order = np.arange(_NUMBERS)
  if first and _numbers(first[1][1:]) is None:
    number, header = first
    # CelebA's header has no name for the first column.
    names = header if len(header) == _NUMBERS else header[1:]
    order = _column_order(path, number, names)
    first = next(lines, None)
  rows: dict[str, int] = {}
  points = array("d")  # Of millions: 80 bytes each.
  for number, fields in chain([first] if first else [], lines):
    numbers = _numbers(fields[1:])
    if numbers is None or len(numbers) not in (_NUMBERS, _NUMBERS + 1):
      raise InputError(
        f"--landmarks {path}:{number} is not a path and ten numbers: correct"
        " the line."
      )
    if order.max() >= len(numbers):
      raise InputError(
        f"--landmarks {path}:{number} has {len(numbers)} numbers, fewer than"
        " the header names: correct the line."
      )
    five = numbers[order].reshape(-1, 2)
    if (five == five[0]).all():
      raise InputError(
        f"--landmarks {path}:{number} has five times the same point: correct or"
        " delete the line."
      )
    if fields[0] in rows:
      raise InputError(
        f"--landmarks {path}:{number} names {fields[0]!r} a second time: keep"
        " one line an image."
      )
    rows[fields[0]] = len(rows)
    points.frombytes(five.tobytes())
  if not rows:
    raise InputError(
      f"--landmarks {path!r} has no landmarks: give a path and ten numbers a"
      " line."
    )
  return Landmarks(rows, np.frombuffer(points).reshape(len(rows), -1, 2))


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


def _split_lines(path: str) -> Iterator[tuple[int, list[str]]]:
  """Yields the fields of each line that is not blank, after its number."""
  try:
    for number, text in read_lines(path):
      if line := text.strip():
        yield number, [field.strip('"') for field in split_fields(line)]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"--landmarks {path!r} cannot be read ({error}): give a text file with a"
      " path and ten numbers a line."
    ) from None


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
