"""Draws figures into PNG files, for papers.

Figures are drawn with matplotlib's objects on the Agg canvas: no window, no
pyplot, no state shared with whoever else draws.
"""

from collections.abc import Sequence
from typing import BinaryIO, cast

import numpy as np
from matplotlib import figure as matplotlib_figure
from matplotlib import image, ticker
from matplotlib.axes import Axes
from matplotlib.backends import backend_agg

from jamsface_jax.reports.figure import (
  COLORS,
  DASHES,
  Bars,
  Cloud,
  Figure,
  Line,
)
from jamsface_jax.storage.run_directory import RunFile

# Okabe and Ito's colours, told apart with every kind of colour vision
# (https://jfly.uni-koeln.de/color/), in order of use; yellow is too pale.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK, _PALE = "#333333", "#DDDDDD"
_STYLES = ("-", "--", ":", "-.")
_DPI = 150


def draw(
  file: RunFile,
  panels: Sequence[Figure],
  *,
  columns: int | None = None,
  size: tuple[float, float] | None = None,
) -> None:
  """Draws figures beside and below each other.

  Args:
    file: the PNG file to write.
    panels: at least one.
    columns: how many figures stand beside each other; None for two, or for
      three if there are more than four.
    size: width and height of each in inches; None for what suits their number.
  """
  if columns is None:
    columns = min(len(panels), 3 if len(panels) > 4 else 2)
  width, height = size or ((6.4, 4.6) if len(panels) == 1 else (4.5, 3.6))
  rows = -(-len(panels) // columns)
  sheet = matplotlib_figure.Figure(
    (width * columns, height * rows), dpi=_DPI, layout="constrained"
  )
  places = sheet.subplots(rows, columns, squeeze=False).ravel()
  for ax, figure in zip(places, panels, strict=False):
    _draw_panel(ax, figure.drawable())
  for ax in places[len(panels) :]:
    ax.set_axis_off()
  save(sheet, file)


def save(sheet: matplotlib_figure.Figure, file: RunFile) -> None:
  """Writes what is drawn as a PNG file."""
  # `savefig` draws all of it once before, for the layout alone: a seventh more.
  canvas = backend_agg.FigureCanvasAgg(sheet)
  canvas.draw()
  with file.written_whole("wb") as stream:
    pixels = canvas.buffer_rgba()
    image.imsave(cast("BinaryIO", stream), pixels, format="png", dpi=_DPI)


def _draw_panel(ax: Axes, figure: Figure) -> None:
  _draw_frame(ax, figure)
  if figure.is_empty:
    why = figure.note or "No data yet."
    ax.text(0.05, 0.5, why, color=_INK, wrap=True, transform=ax.transAxes)
    return
  for cloud in figure.clouds:
    _draw_cloud(ax, cloud)
  for bars in figure.bars:
    _draw_bars(ax, bars)
  for line in figure.lines:
    _draw_line(ax, line)
  for name, x in figure.marks.items():
    label = f"{name} {figure.x.text(x)}" if name else ""
    ax.axvline(x, color=_INK, linewidth=1.2, linestyle="--", label=label)
  _draw_axes(ax, figure)
  _draw_legend(ax)


def _draw_legend(ax: Axes) -> None:
  handles, labels = ax.get_legend_handles_labels()
  if not labels:
    return
  beside = len(labels) > 6  # There is no room for so many among the lines.
  ax.legend(
    handles,
    labels,
    labelcolor=_INK,
    frameon=False,
    fontsize=8,
    handlelength=3,
    loc="upper left" if beside else "best",
    bbox_to_anchor=(1, 1) if beside else None,
  )


def _draw_frame(ax: Axes, figure: Figure) -> None:
  """Leaves of the frame what reading a value needs."""
  ax.set_title(figure.title, loc="left", color=_INK, fontsize=10, wrap=True)
  ax.set_xlabel(figure.x.label, color=_INK, fontsize=9)
  ax.set_ylabel(figure.y.label, color=_INK, fontsize=9)
  ax.spines[["top", "right"]].set_visible(False)
  ax.spines[["left", "bottom"]].set_color(_INK)
  ax.tick_params(colors=_INK, labelsize=8)
  ax.grid(color=_PALE, linewidth=0.6)
  ax.set_axisbelow(True)


def _draw_axes(ax: Axes, figure: Figure) -> None:
  """Gives both axes the ends, the ticks and the texts that they have."""
  if figure.x.log:
    ax.set_xscale("log")
  if figure.y.log:
    ax.set_yscale("log")
  for axis, (low, high), place, set_ends in zip(
    (figure.x, figure.y),
    figure.spans(),
    (ax.xaxis, ax.yaxis),
    (ax.set_xlim, ax.set_ylim),
    strict=True,
  ):
    ticks = axis.ticks(low, high)
    place.set_major_locator(ticker.FixedLocator(ticks))
    place.set_major_formatter(
      ticker.FixedFormatter([axis.tick_text(one) for one in ticks])
    )
    place.set_minor_locator(ticker.NullLocator())
    set_ends(low, high)


def _draw_cloud(ax: Axes, cloud: Cloud) -> None:
  color = PALETTE[cloud.color % COLORS]
  marker, size = "o", 14
  if cloud.ends is not None:
    ax.hlines(cloud.y, *cloud.ends.T, colors=color, linewidth=1.6)
    marker, size = "D", 28
  ax.scatter(
    cloud.x,
    cloud.y,
    s=size,
    marker=marker,
    color=color,
    # The more points, the more transparent, lest they merge into a blot.
    alpha=float(np.clip(12 / len(cloud.x) ** 0.5, 0.05, 0.9)),
    linewidths=0,
    clip_on=False,  # Dots at the ends of an axis are whole.
    label=cloud.name,
  )


def _draw_bars(ax: Axes, bars: Bars) -> None:
  color = PALETTE[bars.color % COLORS]
  ax.stairs(
    bars.heights,
    bars.edges,
    fill=True,
    facecolor=color + "59",  # 35 % opaque, so that those behind show.
    edgecolor=color,
    linewidth=1.2,
    label=bars.name,
  )


def _draw_line(ax: Axes, line: Line) -> None:
  color = PALETTE[line.color % COLORS]
  mean = line.mean
  if mean:
    ax.plot(line.x, line.y, color=color, linewidth=0.6, alpha=0.25)
    line = mean
  ax.plot(
    line.x,
    line.y,
    color=color,
    linestyle=_STYLES[line.dash % DASHES],
    linewidth=1.6,
    marker="o" if line.has_dots else None,
    markersize=3.5,
    clip_on=False,
    label=line.name,
  )
