"""Charts of a page: arrays in, HTML out.

A chart is a <figure> that needs nothing else: inline SVG, a legend with values,
the same numbers as a table. With `report.js` the mouse or a slider moves
through the values. Colours are classes, c0, c1, ..., which `report.css` defines
for light and for dark pages. Every text is escaped here.
"""

import dataclasses
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

COLORS = 6  # Classes c0 to c5.
DASHES = 4  # Classes d0 to d3.

# The drawing, in units that are pixels at a phone's width, so that its text
# can be read there.
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 8, 42
_BUCKETS = 200  # A line has two points in each at most.
_TABLE_ROWS = 25  # Of each line, at most.
_POINTS = 2000  # Of a cloud, at most.


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
  """A line of a chart.

  Attributes:
    name: for the legend.
    x: float [N], rising.
    y: float [N]; where it is not finite, the line has a gap.
    color: number of its colour.
    dash: number of its dashes; 0 is solid.
    noisy: draw the values pale and their running mean strong.
    filled: fill down to zero.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  color: int = 0
  dash: int = 0
  noisy: bool = False
  filled: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
  """Points under the lines of a chart.

  Attributes:
    name: for the legend.
    x: float [N].
    y: float [N].
    color: number of their colour.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  color: int = 0


@dataclasses.dataclass(frozen=True)
class Axis:
  """How values become places and texts.

  Attributes:
    label: what the values are, with their unit.
    log: a logarithmic axis; values that are not above 0 are not drawn.
    percent: show shares as percentages.
    zero: has zero on it.
    most: no tick and no value lies above.
  """

  label: str
  log: bool = False
  percent: bool = False
  zero: bool = False
  most: float = math.inf

  def text(self, value: float) -> str:
    """A value as a reader wants it; `report.js` does the same."""
    if not math.isfinite(value):
      return "not measured"
    if self.percent:
      return f"{100 * value:.4g} %"
    if abs(value) >= 1e4:
      return f"{value:,.0f}"
    return f"{value:.5g}"


def chart(
  title: str,
  lines: Sequence[Line],
  x_axis: Axis,
  y_axis: Axis,
  *,
  clouds: Sequence[Cloud] = (),
  marks: Mapping[str, float] | None = None,
  note: str = "",
) -> str:
  """Draws a chart.

  Args:
    title: its caption.
    lines: may be empty, or hold nothing finite: the chart then says that there
      are no data yet.
    x_axis: of the lines.
    y_axis: likewise.
    clouds: points under the lines.
    marks: vertical lines at these x, by name.
    note: a sentence under it.

  Returns:
    A <figure>.
  """
  drawn = [
    line for line in map(_drawable(x_axis, y_axis), lines) if len(line.x)
  ]
  clouds = [_thin(cloud) for cloud in clouds if len(cloud.x)]
  if not drawn and not clouds:
    return nothing(title, note or "No data yet.")
  marks = marks or {}
  across = _Scale(
    x_axis,
    [one.x for one in (*drawn, *clouds)] + [np.array([*marks.values()])],
    (_LEFT, _WIDTH - _RIGHT),
  )
  up = _Scale(
    y_axis, [one.y for one in (*drawn, *clouds)], (_HEIGHT - _BOTTOM, _TOP)
  )
  shapes = [*_frame(across, up)]
  for cloud in clouds:
    places = zip(across.places(cloud.x), up.places(cloud.y), strict=True)
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
    shapes.append(f'<path class="cloud c{cloud.color % COLORS}" d="{dots}"/>')
  for line in drawn:
    shapes += _strokes(line, across, up)
  for name, x in marks.items():
    place = float(across.places(np.array([x]))[0])
    shapes.append(
      f'<path class="mark" d="M{place:.1f} {_TOP}V{_HEIGHT - _BOTTOM}">'
      f"<title>{html.escape(name)}</title></path>"
    )
  shapes.append(f'<path class="cursor" d="M0 {_TOP}V{_HEIGHT - _BOTTOM}"/>')
  data = _data([_thinned(line) for line in drawn], x_axis, y_axis, across)
  return "\n".join(
    [
      f'<figure class="chart" data-chart="{data}">',
      f"<figcaption>{html.escape(title)}</figcaption>",
      f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
      f' aria-label="{html.escape(_sentence(title, drawn, x_axis, y_axis))}">',
      *shapes,
      "</svg>",
      *_legend(drawn, clouds, marks, x_axis, y_axis),
      f'<p class="note">{html.escape(note)}</p>' if note else "",
      *_numbers(title, drawn, x_axis, y_axis),
      "</figure>",
    ]
  )


def nothing(title: str, why: str) -> str:
  """A figure that says why there is no chart."""
  return (
    f'<figure class="chart empty"><figcaption>{html.escape(title)}'
    f"</figcaption><p>{html.escape(why)}</p></figure>"
  )


def bar(title: str, shares: Mapping[str, float], unit: str) -> str:
  """Draws one bar of parts, and a table of them.

  Args:
    title: its caption.
    shares: amounts by name, not negative, in the order to show; not all 0.
    unit: of the amounts.
  """
  total = sum(shares.values())
  place, shapes, rows = 0.0, [], []
  for number, (name, amount) in enumerate(shares.items()):
    width = _WIDTH * amount / total
    shapes.append(
      f'<rect class="part c{number % COLORS}" x="{place:.2f}" y="0"'
      f' width="{width:.2f}" height="28"><title>{html.escape(name)}'
      f" {amount / total:.1%}</title></rect>"
    )
    place += width
    rows.append([name, f"{amount:,.1f}", f"{amount / total:.1%}"])
  told = ", ".join(f"{name} {share}" for name, _, share in rows)
  label = html.escape(f"{title}: {told}")
  body = "".join(
    f'<tr><th scope="row"><i class="key c{number % COLORS}"></i>'
    f"{html.escape(name)}</th><td>{amount}</td><td>{share}</td></tr>"
    for number, (name, amount, share) in enumerate(rows)
  )
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
    f'<svg viewBox="0 0 {_WIDTH} 28" role="img" aria-label="{label}">'
    f"{''.join(shapes)}</svg><table><thead><tr><th scope='col'>part</th>"
    f"<th scope='col'>{html.escape(unit)}</th><th scope='col'>share</th></tr>"
    f"</thead><tbody>{body}</tbody></table></figure>"
  )


def table(
  caption: str,
  columns: Sequence[str],
  rows: Sequence[Sequence[str]],
) -> str:
  """A table that scrolls by itself where it is too wide.

  Args:
    caption: what it shows.
    columns: their headings.
    rows: texts; the first of each is its heading.
  """
  head = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in columns)
  body = "".join(
    f'<tr><th scope="row">{html.escape(first)}</th>'
    + "".join(f"<td>{html.escape(one)}</td>" for one in rest)
    + "</tr>"
    for first, *rest in rows
  )
  label = html.escape(caption)
  return (
    f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
    f"<table><caption>{label}</caption><thead><tr>{head}</tr></thead>"
    f"<tbody>{body}</tbody></table></div>"
  )


def thin_indices(values: np.ndarray, buckets: int) -> np.ndarray:
  """Chooses points that draw the same line: the extremes of each bucket.

  Args:
    values: finite, [N].
    buckets: number of runs of neighbours; two points are kept of each.

  Returns:
    Rising indices, int64, the first and the last point among them; at most
    2 x buckets + 2.
  """
  count = len(values)
  if count <= 2 * buckets:
    return np.arange(count)
  edges = np.linspace(0, count, buckets + 1).astype(np.int64)
  kept = {0, count - 1}
  for begin, end in zip(edges[:-1], edges[1:], strict=True):
    part = values[begin:end]
    kept |= {begin + int(part.argmin()), begin + int(part.argmax())}
  return np.array(sorted(kept), np.int64)


def _drawable(x_axis: Axis, y_axis: Axis) -> Callable[[Line], Line]:
  """Without the points that the axes cannot show."""

  def clean(line: Line) -> Line:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    keep &= (x > 0) | (not x_axis.log)
    keep &= (y > 0) | (not y_axis.log)
    return dataclasses.replace(line, x=x[keep], y=y[keep])

  return clean


def _thin(cloud: Cloud) -> Cloud:
  """Evenly chosen points of a cloud that has too many."""
  step = -(-len(cloud.x) // _POINTS)
  return dataclasses.replace(cloud, x=cloud.x[::step], y=cloud.y[::step])


def _thinned(line: Line) -> Line:
  kept = thin_indices(line.y, _BUCKETS)
  return dataclasses.replace(line, x=line.x[kept], y=line.y[kept])


class _Scale:
  """Maps values of an axis to places on the drawing."""

  def __init__(
    self, axis: Axis, values: Sequence[np.ndarray], ends: tuple[float, float]
  ):
    self.axis, self.ends = axis, ends
    every = np.concatenate([np.asarray(one, np.float64) for one in values])
    low, high = float(every.min()), float(every.max())
    if axis.zero:
      low, high = min(low, 0.0), max(high, 0.0)
    if axis.log:
      if low == high:
        low, high = low / 2, high * 2
    else:
      margin = (high - low or abs(high) or 1.0) * 0.04
      # Along x lines fill the width; a bar that begins at 0 stands on it.
      low -= 0.0 if ends[0] == _LEFT or (axis.zero and low == 0) else margin
      high += 0.0 if ends[0] == _LEFT and low < high else margin
    self.low, self.high = low, min(high, max(axis.most, low + 1e-9))

  def places(self, values: np.ndarray) -> np.ndarray:
    low, high = self.low, self.high
    if self.axis.log:
      low, high, values = math.log(low), math.log(high), np.log(values)
    first, last = self.ends
    return first + (values - low) / (high - low) * (last - first)

  def ticks(self) -> list[float]:
    if self.axis.log:
      return _log_ticks(self.low, self.high)
    return _ticks(self.low, self.high)


def _ticks(low: float, high: float) -> list[float]:
  """About five round numbers between two."""
  rough = (high - low) / 5
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


def _short(value: float, axis: Axis) -> str:
  """The text of a tick."""
  if axis.percent:
    return f"{100 * value:.3g} %"
  size = abs(value)
  for power, letter in ((9, "G"), (6, "M"), (3, "k")):
    if size >= 10**power * 0.9999:
      return f"{value / 10**power:.3g}{letter}"
  if 0 < size < 1e-3:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
  return f"{0.0 if size < 1e-12 else value:.4g}"


def _frame(across: _Scale, up: _Scale):
  """Grid lines, ticks and names of both axes."""
  floor = _HEIGHT - _BOTTOM
  for value in up.ticks():
    y = float(up.places(np.array([value]))[0])
    yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
    yield (
      f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
      f"{_short(value, up.axis)}</text>"
    )
  for value in across.ticks():
    x = float(across.places(np.array([value]))[0])
    # The outermost texts stay inside the drawing.
    anchor = "end" if x > _WIDTH - _RIGHT - 12 else "middle"
    yield f'<path class="grid" d="M{x:.1f} {_TOP}V{floor}"/>'
    yield (
      f'<text class="tick" x="{x:.1f}" y="{floor + 16}" text-anchor="{anchor}">'
      f"{_short(value, across.axis)}</text>"
    )
  middle = (_LEFT + _WIDTH - _RIGHT) / 2
  yield (
    f'<text class="label" x="{middle:.0f}" y="{_HEIGHT - 6}"'
    f' text-anchor="middle">{html.escape(across.axis.label)}</text>'
  )


def _strokes(line: Line, across: _Scale, up: _Scale):
  """The paths of a line."""
  look = f"c{line.color % COLORS} d{line.dash % DASHES}"
  x, y, window = line.x, line.y, len(line.x) // 50
  if line.noisy and window > 1:
    yield f'<path class="pale {look}" d="{_path(x, y, across, up)}"/>'
    x, y = running_mean(x, window), running_mean(y, window)
  path = _path(x, y, across, up)
  if line.filled:
    left, right = across.places(x[[0, -1]])
    floor = float(up.places(np.zeros(1))[0])
    yield (
      f'<path class="fill {look}" d="{path}V{floor:.1f}H{left:.1f}Z"/>'
      if right >= left
      else ""
    )
  yield f'<path class="line {look}" d="{path}"/>'
  if len(x) <= 40 and not line.filled:  # Single evaluations would be lost.
    places = zip(across.places(x), up.places(y), strict=True)
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)
    yield f'<path class="dot {look}" d="{dots}"/>'


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Means of each `window` neighbours, [N] to [N - window + 1]."""
  sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  return (sums[window:] - sums[:-window]) / window


def _path(x, y, across: _Scale, up: _Scale) -> str:
  kept = thin_indices(y, _BUCKETS)
  places = zip(across.places(x[kept]), up.places(y[kept]), strict=True)
  return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)


def _data(lines: Sequence[Line], x_axis: Axis, y_axis: Axis, scale) -> str:
  """What `report.js` needs, as the value of an attribute."""
  content = {
    "label": x_axis.label,
    "log": x_axis.log,
    "low": scale.low,
    "high": scale.high,
    "left": _LEFT,
    "right": _WIDTH - _RIGHT,
    "width": _WIDTH,
    "percent": [x_axis.percent, y_axis.percent],
    "lines": [
      {"name": line.name, "x": _rounded(line.x), "y": _rounded(line.y)}
      for line in lines
    ],
  }
  return html.escape(json.dumps(content, separators=(",", ":")))


def _rounded(values: np.ndarray) -> list[float | int]:
  """Numbers to six digits, whole ones without a point, to be short."""
  rounded = (float(f"{value:.6g}") for value in values)
  return [int(one) if one.is_integer() else one for one in rounded]


def _legend(lines, clouds, marks, x_axis: Axis, y_axis: Axis):
  yield '<ul class="legend">'
  for line in lines:
    yield (
      f'<li><i class="key c{line.color % COLORS} d{line.dash % DASHES}"></i>'
      f"{html.escape(line.name)}"
      f" <output>{y_axis.text(line.y[-1])}</output></li>"
    )
  for cloud in clouds:
    yield (
      f'<li><i class="key dots c{cloud.color % COLORS}"></i>'
      f"{html.escape(cloud.name)}</li>"
    )
  for name, x in marks.items():
    yield (
      f'<li><i class="key mark"></i>{html.escape(name)} {x_axis.text(x)}</li>'
    )
  yield "</ul>"
  if lines:
    # Shown by `report.js`, without which it would do nothing.
    yield '<div class="slider" hidden=""></div>'


def _sentence(title: str, lines, x_axis: Axis, y_axis: Axis) -> str:
  """The chart for who cannot see it."""
  parts = [
    f"{line.name} from {y_axis.text(line.y[0])} at {x_axis.text(line.x[0])} to"
    f" {y_axis.text(line.y[-1])} at {x_axis.text(line.x[-1])}, least"
    f" {y_axis.text(line.y.min())}, most {y_axis.text(line.y.max())}"
    for line in lines
  ]
  return f"{title}, over {x_axis.label}: {'; '.join(parts)}"


def _numbers(title: str, lines: Sequence[Line], x_axis: Axis, y_axis: Axis):
  """The lines as a table, at most so many rows of each."""
  if not lines:
    return
  columns = []
  for line in lines:
    rows = np.linspace(0, len(line.x) - 1, min(len(line.x), _TABLE_ROWS))
    rows = rows.round().astype(int)
    columns.append(dict(zip(line.x[rows], line.y[rows], strict=True)))
  every = sorted({x for column in columns for x in column})
  rows = [
    [
      x_axis.text(x),
      *(y_axis.text(one[x]) if x in one else "" for one in columns),
    ]
    for x in every
  ]
  names = [x_axis.label, *(line.name for line in lines)]
  yield f"<details><summary>Numbers: {html.escape(title)}</summary>"
  yield table(title, names, rows)
  yield "</details>"
