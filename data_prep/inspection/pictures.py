"""Pictures of a data set: its long tail, and some of its faces."""

import itertools
from collections.abc import (
  Sequence,
)

import cv2
import numpy as np
from matplotlib import figure
from matplotlib.backends import backend_agg

from data_prep.inspection.survey import read_records
from jamsface_jax.data import decoding, records
from jamsface_jax.storage.whole_file import written_whole

_TILES, _TILE_SIZE = 8, 112  # Of the contact sheet: a side, pixels.


def plot_class_sizes(class_sizes: Sequence[int], path: str) -> None:
  """Draws the long tail: images of a class by its rank, both logarithmic.

  Args:
    class_sizes: images of each class, [C].
    path: the PNG file to write.
  """
  sizes = np.sort(np.asarray(class_sizes))[::-1]
  canvas = figure.Figure((6.4, 4.0), dpi=150, layout="constrained")
  backend_agg.FigureCanvasAgg(canvas)
  ax = canvas.subplots()
  ax.plot(np.arange(1, len(sizes) + 1), sizes, drawstyle="steps-mid")
  ax.set_xscale("log")
  ax.set_yscale("log")
  ax.set_xlabel("rank of the class")
  ax.set_ylabel("images of the class")
  ax.set_title(f"{sizes.sum():,} images of {len(sizes):,} classes", loc="left")
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(color="#DDDDDD", linewidth=0.6)
  with written_whole(path, "wb") as file:
    canvas.savefig(file, format="png")


def draw_contact_sheet(reader: records.RecordReader, path: str) -> None:
  """Draws images from evenly spaced places of the data set."""
  count = min(_TILES**2, len(reader))
  ids = np.linspace(0, len(reader) - 1, count).round().astype(int)
  rows = -(-count // _TILES)
  sheet = np.full((rows * _TILE_SIZE, _TILES * _TILE_SIZE, 3), 255, np.uint8)
  for tile, record in enumerate(
    itertools.chain.from_iterable(read_records(reader, [int(i)]) for i in ids)
  ):
    try:
      pixels = decoding.decode_image(b"" if record is None else record.image)
    except decoding.DecodingError:
      continue  # Stays white.
    scale = _TILE_SIZE / max(pixels.shape[:2])
    height, width = (max(1, int(n * scale)) for n in pixels.shape[:2])
    y, x = (_TILE_SIZE * n for n in divmod(tile, _TILES))
    sheet[y : y + height, x : x + width] = cv2.resize(
      pixels, (width, height), interpolation=cv2.INTER_AREA
    )
  _, data = cv2.imencode(".png", np.ascontiguousarray(sheet[:, :, ::-1]))
  with written_whole(path, "wb") as file:
    file.write(data)
