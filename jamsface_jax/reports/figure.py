"""What a figure shows, whoever draws it.

A figure is described once: `svg` draws it for the page, `png` for papers. Both
ask here which values an axis can show, how far it goes, where its ticks are and
what they say, so that the two drawings tell the same.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Real

COLORS = 6  # Colours that a drawing tells apart.
DASHES = 4  # Likewise of dashes; the first is solid.

_FEW = 40  # Points; of a line with no more each is shown.


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
  """A line through points; those that are not finite are left out.

  Attributes:
    name: for the legend.
    x: places, rising.
    y: values.
    color: number of its colour.
    dash: number of its dashes; 0 is solid.
    noisy: single values jump: they are drawn pale and their running mean
      strong.
  """

  name: str
  x: Real[np.ndarray, " n"]
  y: Real[np.ndarray, " n"]
  color: int = 0
  dash: int = 0
  noisy: bool = False

  @property
  def mean(self) -> "Line | None":
    """The running mean over a fiftieth of a noisy line; None if it is short."""
    window = len(self.x) // 50
    if not self.noisy or window < 2:
      return None
    return dataclasses.replace(
      self, x=running_mean(self.x, window), y=running_mean(self.y, window)
    )

  @property
  def has_dots(self) -> bool:
    """Whether points are few, so that single evaluations would be lost."""
    return len(self.x) <= _FEW


@dataclasses.dataclass(frozen=True, eq=False)
class Bars:
  """A histogram.

  Attributes:
    name: for the legend.
    edges: ends of the bars, rising; one more than there are bars.
    heights: height of each bar, from 0 on.
    color: number of their colour.
  """

  name: str
  edges: Real[np.ndarray, " edges"]
  heights: Real[np.ndarray, " n"]
  color: int = 0

  @property
  def outline(self) -> Line:
    """The line along their tops, [2 n]."""
    return Line(
      self.name,
      np.repeat(self.edges, 2)[1:-1],
      np.repeat(self.heights, 2),
      self.color,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
  """Points on their own, under the lines.

  Attributes:
    name: for the legend; "" for none.
    x: places.
    y: values.
    color: number of their colour.
    ends: both ends of an interval in x about each point, or None.
  """

  name: str
  x: Real[np.ndarray, " n"]
  y: Real[np.ndarray, " n"]
  color: int = 0
  ends: Real[np.ndarray, "n 2"] | None = None


@dataclasses.dataclass(frozen=True)
class Axis:
  """How values become places and texts.

  Attributes:
    label: what the values are, with their unit.
    log: a logarithmic axis; values that are not above 0 are not drawn.
    percent: show shares as percentages.
    zero: has zero on it.
    most: no tick and no value lies above.
    whole: its values are whole numbers, and so are its ticks.
    names: the names of the values 0, 1, ..., if the axis is a list of things;
      the first stands on top.
  """

  label: str
  log: bool = False
  percent: bool = False
  zero: bool = False
  most: float = math.inf
  whole: bool = False
  names: tuple[str, ...] = ()

  def text(self, value: float) -> str:
    """A value as a reader wants it; `report.js` does the same."""
    if not math.isfinite(value):
      return "not measured"
    if self.percent:
      return f"{100 * value:.4g} %"
    if abs(value) >= 1e4:
      return f"{value:,.0f}"
    return f"{value:.5g}"

  def can_show(self, values: Real[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which values have a place on it."""
    return np.isfinite(values) & ((values > 0) | (not self.log))

  def span(
    self, values: Sequence[Real[np.ndarray, "..."]], *, padded: bool
  ) -> tuple[float, float]:
    """The values at its two ends; of a list the first one is the larger.

    Args:
      values: what is shown along it, at least one value in all.
      padded: leave some room at both ends, if it is not logarithmic.
    """
    if self.names:
      return len(self.names) - 0.5, -0.5
    low = min(float(one.min()) for one in values if one.size)
    high = max(float(one.max()) for one in values if one.size)
    if self.zero:
      low, high = min(low, 0.0), max(high, 0.0)
    if self.log:
      if low == high:
        low, high = low / 2, high * 2
    else:
      room = (high - low or abs(high) or 1.0) * 0.04
      # What begins at 0 stands on it.
      low -= room if padded and not (self.zero and low == 0) else 0.0
      high += room if padded or low == high else 0.0
    return low, min(high, max(self.most, low + 1e-9))

  def ticks(self, low: float, high: float) -> list[float]:
    """Round values from one end to the other."""
    if self.names:
      return [float(k) for k in range(len(self.names))]
    if self.log:
      ticks = _log_ticks(low, high)
    else:
      ticks = _even_ticks(low, high, least=1.0 if self.whole else 0.0)
    return [one for one in ticks if not self.whole or one == round(one)]

  def tick_text(self, value: float) -> str:
    """What a tick says, in few letters."""
    if self.names:
      return self.names[round(value)]
    if self.percent:
      return f"{_few_letters(100 * value, 1e-2)} %"
    size = abs(value)
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
      if size >= 10**power * 0.9999:
        return f"{value / 10**power:.3g}{letter}"
    return _few_letters(value, 1e-3)


def _few_letters(value: float, least: float) -> str:
  """A number of eight letters at most, by its power of ten below `least`."""
  if 0 < abs(value) < least:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
  return f"{value:.4g}"


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
  """What is drawn into one frame.

  Attributes:
    title: its caption.
    x: the axis along.
    y: the axis up.
    lines: may hold nothing that can be shown.
    bars: behind the lines.
    clouds: behind both.
    marks: vertical lines at these x, by name; "" is not in the legend.
    start: the x whose values stand beside the names of the lines, and from
      which the page's slider starts; None: the last.
    note: a sentence under it, or in its place where there is nothing to draw.
  """

  title: str
  x: Axis
  y: Axis
  lines: Sequence[Line] = ()
  bars: Sequence[Bars] = ()
  clouds: Sequence[Cloud] = ()
  marks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  start: float | None = None
  note: str = ""

  @property
  def is_empty(self) -> bool:
    """Whether nothing of it can be drawn."""
    shown = self.drawable()
    return not (shown.lines or shown.bars or shown.clouds)

  def drawable(self) -> "Figure":
    """Without the points that its axes cannot show, and what has none left."""
    lines, clouds = [], []
    for line in self.lines:
      kept = self.x.can_show(line.x) & self.y.can_show(line.y)
      if kept.any():
        lines.append(dataclasses.replace(line, x=line.x[kept], y=line.y[kept]))
    for cloud in self.clouds:
      kept = self.x.can_show(cloud.x) & self.y.can_show(cloud.y)
      if kept.any():
        ends = None if cloud.ends is None else cloud.ends[kept]
        clouds.append(
          dataclasses.replace(
            cloud, x=cloud.x[kept], y=cloud.y[kept], ends=ends
          )
        )
    bars = [one for one in self.bars if len(one.heights)]
    return dataclasses.replace(self, lines=lines, bars=bars, clouds=clouds)

  def spans(self) -> tuple[tuple[float, float], tuple[float, float]]:
    """The values at the ends of x and of y, of a figure as `drawable` gives it.

    Along x what is drawn fills the width.
    """
    drawn = [*self.lines, *self.clouds]
    ends = [one.ends for one in self.clouds if one.ends is not None]
    across = [one.x for one in drawn] + [one.edges for one in self.bars] + ends
    up = [one.y for one in drawn] + [one.heights for one in self.bars]
    marks = np.array([*self.marks.values()], np.float64)
    return (
      self.x.span([*across, marks], padded=bool(ends)),
      self.y.span(up, padded=True),
    )


def distinct_dash(number: int) -> int:
  """Dashes such that 24 lines, each with its number as colour, differ."""
  return number + number // (COLORS * DASHES // 2)


def running_mean(
  values: Real[np.ndarray, " n"], window: int
) -> Float64[np.ndarray, " m"]:
  """Means of each `window` neighbours, [N] to [N - window + 1]."""
  sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  return (sums[window:] - sums[:-window]) / window


def _even_ticks(low: float, high: float, *, least: float) -> list[float]:
  """About five round numbers between two, no nearer than `least`."""
  rough = max((high - low) / 5, least)
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [k * step for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten, every second or third if many, with 2 and 5 if few."""
  first = math.ceil(math.log10(low) - 1e-9)
  last = math.floor(math.log10(high) + 1e-9)
  powers = range(first, last + 1, max(1, -(-(last - first) // 6)))
  if last - first >= 2:
    return [10.0**k for k in powers]
  steps = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
  return [one for one in steps if low * 0.999 <= one <= high * 1.001]
