"""The margins of a run by class size, as a table: written, and begun with."""

import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jamsface_jax.errors import InputError
from jamsface_jax.storage.csv_tables import read_csv
from jamsface_jax.storage.run_directory import RunFile

# Images of a class, how many have so many, and the means of their margins.
_HEADER = ("images", "classes", "angular", "cosine")


def write_curve(
  file: RunFile,
  class_sizes: Int[np.ndarray, " c"],
  margins: Mapping[str, Float[np.ndarray, " c"]],
) -> None:
  """Writes the mean margins of each class size, whole or not at all.

  Args:
    file: the file to write.
    class_sizes: images of each class.
    margins: "angular" (radians) and "cosine", of each class.
  """
  sizes, of_class, counts = np.unique(
    class_sizes, return_inverse=True, return_counts=True
  )
  columns = [
    np.bincount(of_class, margins[kind].astype(np.float64)) / counts
    for kind in _HEADER[2:]
  ]
  lines = [
    f"{size},{count},{angular:.6f},{cosine:.6f}"
    for size, count, angular, cosine in zip(
      sizes, counts, *columns, strict=True
    )
  ]
  file.write_text("\n".join([",".join(_HEADER), *lines, ""]))


def read_curve(path: str, kind: str) -> tuple[tuple[float, float], ...]:
  """Reads what `write_curve` wrote, or who writes such a table by hand.

  Args:
    path: the file.
    kind: "angular" or "cosine".

  Returns:
    Pairs of images, rising, and margin.

  Raises:
    InputError: no such file, or no such table.
  """
  if not os.path.isfile(path):
    raise InputError(
      f"head.margin_curve={path!r} is no file: give the margins.csv of a run,"
      " or a table like it."
    )
  column, points = _HEADER.index(kind), []
  for where, fields in read_csv(path, _HEADER):
    try:
      images, value = float(fields[0]), float(fields[column])
    except ValueError:
      images = value = np.nan
    if not (images >= 1 and np.isfinite([images, value]).all()):
      raise InputError(
        f"{where}: {','.join(fields)!r} is not of numbers, images first and at"
        f" least 1: write {','.join(_HEADER)}."
      )
    if points and images <= points[-1][0]:
      raise InputError(
        f"{where}: {images:g} images come after {points[-1][0]:g}: sort the"
        " lines by images, each once."
      )
    points.append((images, value))
  if not points:
    raise InputError(f"{path}: has no line below its header: give one a size.")
  return tuple(points)
