"""Draws figures for the page: inline SVG that needs nothing else.

Under each drawing are a legend with values and the same numbers as a table.
With `report.js` the mouse or a slider moves through the values. Colours are
classes, c0, c1, ..., which `report.css` defines for light and for dark pages.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64, Real

from jamsface_jax.reports.figure import (
  COLORS,
  DASHES,
  Axis,
  Cloud,
  Figure,
  Line,
)
from jamsface_jax.reports.markup import Html, element, folded, joined, table

# The drawing, in units that are pixels at a phone's width, so that its text
# can be read there.
_WIDTH, _HEIGHT = 360, 258
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 26, 42
_FLOOR = _HEIGHT - _BOTTOM
_BUCKETS = 200  # A line has two points in each at most.
_TABLE_ROWS = 25  # Of each line, at most.
_POINTS = 2000  # Of a cloud, at most.


def draw(figure: Figure) -> Html:
  """Draws a figure.

  Returns:
    A <figure>; if nothing of it can be drawn, one that says so.
  """
  if figure.is_empty:
    return nothing(figure.title, figure.note or "No data yet.")
  figure = figure.drawable()
  (left, right), (low, high) = figure.spans()
  across = _Scale(figure.x, left, right, _LEFT, _WIDTH - _RIGHT)
  up = _Scale(figure.y, low, high, _FLOOR, _TOP)
  # What the legend, the slider and the table have values of.
  lines = [*(bars.outline for bars in figure.bars), *figure.lines]
  return element(
    "figure",
    joined(
      [
        element("figcaption", figure.title),
        element(
          "svg",
          joined(_shapes(figure, across, up)),
          viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
          role="img",
          aria_label=_sentence(figure, lines),
        ),
        *_legend(figure, lines),
        element("p", figure.note, class_="note") if figure.note else "",
        _numbers(figure, lines),
      ]
    ),
    class_="chart",
    data_chart=_data(figure, lines, across),
  )


def nothing(title: str, why: str) -> Html:
  """A figure that says why there is no drawing."""
  return element(
    "figure",
    element("figcaption", title),
    element("p", why),
    class_="chart empty",
  )


def draw_shares(title: str, amounts: Mapping[str, float], unit: str) -> Html:
  """Draws one bar of parts, and a table of them.

  Args:
    title: its caption.
    amounts: by name, not negative, in the order to show; not all 0.
    unit: the unit of the amounts.
  """
  total = sum(amounts.values())
  place, parts, rows, told = 0.0, [], [], []
  for number, (name, amount) in enumerate(amounts.items()):
    width, share = _WIDTH * amount / total, f"{amount / total:.1%}"
    color = f"c{number % COLORS}"
    parts.append(
      element(
        "rect",
        element("title", f"{name} {share}"),
        class_=f"part {color}",
        x=f"{place:.2f}",
        y="0",
        width=f"{width:.2f}",
        height="28",
      )
    )
    key = element("i", class_=f"key {color}")
    rows.append(
      element(
        "tr",
        element("th", key, name, scope="row"),
        element("td", f"{amount:,.1f}"),
        element("td", share),
      )
    )
    place += width
    told.append(f"{name} {share}")
  head = [element("th", one, scope="col") for one in ("part", unit, "share")]
  return element(
    "figure",
    element("figcaption", title),
    element(
      "svg",
      *parts,
      viewBox=f"0 0 {_WIDTH} 28",
      role="img",
      aria_label=f"{title}: {', '.join(told)}",
    ),
    element(
      "table",
      element("thead", element("tr", *head)),
      element("tbody", *rows),
    ),
    class_="chart",
  )


def thin_indices(
  values: Real[np.ndarray, " n"], buckets: int
) -> Int64[np.ndarray, " kept"]:
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


@dataclasses.dataclass(frozen=True)
class _Scale:
  """Maps values of an axis to places on the drawing.

  Attributes:
    axis: the axis.
    low: the value at `first`.
    high: the value at `last`.
    first: a place.
    last: another.
  """

  axis: Axis
  low: float
  high: float
  first: float
  last: float

  def places(
    self, values: Real[np.ndarray, "..."]
  ) -> Float64[np.ndarray, "..."]:
    """Places of values."""
    ends = np.array([self.low, self.high], np.float64)
    if self.axis.log:
      ends, values = np.log(ends), np.log(values)
    share = (values - ends[0]) / (ends[1] - ends[0])
    return self.first + share * (self.last - self.first)

  def place(self, value: float) -> float:
    """The place of one value."""
    return float(self.places(np.array([value], np.float64))[0])

  def ticks(self) -> list[tuple[float, str]]:
    """Places and texts of the ticks."""
    return [
      (self.place(value), self.axis.tick_text(value))
      for value in self.axis.ticks(self.low, self.high)
    ]


def _shapes(figure: Figure, across: _Scale, up: _Scale) -> Iterator[Html]:
  """All that is drawn, from the back to the front."""
  yield from _frame(across, up)
  for cloud in map(_thin, figure.clouds):
    color = f"c{cloud.color % COLORS}"
    if cloud.ends is not None:
      yield _stroke(f"line {color}", _intervals(cloud, cloud.ends, across, up))
    yield _stroke(f"cloud {color}", _dots(cloud.x, cloud.y, across, up))
  for bars in figure.bars:
    outline, look = bars.outline, f"c{bars.color % COLORS} d0"
    path = _path(outline, across, up)
    first, last = across.places(bars.edges[[0, -1]])
    floor = up.place(0.0)
    yield _stroke(f"fill {look}", f"{path}V{floor:.1f}H{first:.1f}Z")
    yield _stroke(f"line {look}", path)
  for line in figure.lines:
    look = f"c{line.color % COLORS} d{line.dash % DASHES}"
    mean = line.mean
    if mean:
      yield _stroke(f"pale {look}", _path(line, across, up))
      line = mean
    yield _stroke(f"line {look}", _path(line, across, up))
    if line.has_dots:
      yield _stroke(f"dot {look}", _dots(line.x, line.y, across, up))
  for name, x in figure.marks.items():
    path = f"M{across.place(x):.1f} {_TOP}V{_FLOOR}"
    yield element("path", element("title", name), class_="mark", d=path)
  yield _stroke("cursor", f"M0 {_TOP}V{_FLOOR}")


def _frame(across: _Scale, up: _Scale) -> Iterator[Html]:
  """Grid lines, ticks and names of both axes."""
  for y, text in up.ticks():
    yield _stroke("grid", f"M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}")
    yield element(
      "text",
      text,
      class_="tick",
      x=_LEFT - 6,
      y=f"{y + 4:.1f}",
      text_anchor="end",
    )
  for x, text in across.ticks():
    yield _stroke("grid", f"M{x:.1f} {_TOP}V{_FLOOR}")
    yield element(
      "text",
      text,
      class_="tick",
      x=f"{x:.1f}",
      y=_FLOOR + 16,
      # The outermost texts stay inside the drawing.
      text_anchor="end" if x > _WIDTH - _RIGHT - 12 else "middle",
    )
  yield element("text", up.axis.label, class_="label", x=4, y=_TOP - 12)
  yield element(
    "text",
    across.axis.label,
    class_="label",
    x=f"{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}",
    y=_HEIGHT - 6,
    text_anchor="middle",
  )


def _stroke(look: str, path: str) -> Html:
  return element("path", class_=look, d=path)


def _path(line: Line, across: _Scale, up: _Scale) -> str:
  kept = thin_indices(line.y, _BUCKETS)
  places = zip(
    across.places(line.x[kept]), up.places(line.y[kept]), strict=True
  )
  return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)


def _dots(
  x: Real[np.ndarray, " n"],
  y: Real[np.ndarray, " n"],
  across: _Scale,
  up: _Scale,
) -> str:
  """Strokes without length, whose round ends are dots."""
  places = zip(across.places(x), up.places(y), strict=True)
  return "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)


def _intervals(
  cloud: Cloud, ends: Real[np.ndarray, "n 2"], across: _Scale, up: _Scale
) -> str:
  """A level stroke for the interval of each point."""
  places = zip(across.places(ends), up.places(cloud.y), strict=True)
  return "".join(f"M{a:.1f} {y:.1f}H{b:.1f}" for (a, b), y in places)


def _thin(cloud: Cloud) -> Cloud:
  """Evenly chosen points of a cloud that has too many."""
  step = -(-len(cloud.x) // _POINTS)
  return dataclasses.replace(
    cloud,
    x=cloud.x[::step],
    y=cloud.y[::step],
    ends=None if cloud.ends is None else cloud.ends[::step],
  )


def _data(figure: Figure, lines: Sequence[Line], across: _Scale) -> str:
  """What `report.js` needs, as JSON."""
  content = {
    "label": figure.x.label,
    "log": figure.x.log,
    "low": across.low,
    "high": across.high,
    "left": _LEFT,
    "right": _WIDTH - _RIGHT,
    "width": _WIDTH,
    "percent": [figure.x.percent, figure.y.percent],
    "start": figure.start,
    "lines": [
      {
        "name": line.name,
        "x": _rounded(line.x[kept]),
        "y": _rounded(line.y[kept]),
      }
      for line in lines
      for kept in [thin_indices(line.y, _BUCKETS)]
    ],
  }
  return json.dumps(content, separators=(",", ":"))


def _rounded(values: Real[np.ndarray, " n"]) -> list[float | int]:
  """Numbers to six digits, whole ones without a point, to be short."""
  rounded = (float(f"{value:.6g}") for value in values)
  return [int(one) if one.is_integer() else one for one in rounded]


def _legend(figure: Figure, lines: Sequence[Line]) -> Iterator[Html]:
  items = [
    element(
      "li",
      element("i", class_=f"key c{line.color % COLORS} d{line.dash % DASHES}"),
      f"{line.name} ",
      element("output", figure.y.text(_value_at_start(line, figure.start))),
    )
    for line in lines
  ]
  items += [
    element(
      "li",
      element("i", class_=f"key dots c{cloud.color % COLORS}"),
      cloud.name,
    )
    for cloud in figure.clouds
    if cloud.name
  ]
  items += [
    element("li", element("i", class_="key mark"), f"{name} {figure.x.text(x)}")
    for name, x in figure.marks.items()
    if name
  ]
  yield element("ul", joined(items), class_="legend")
  if lines:
    # Shown by `report.js`, without which it would do nothing.
    yield element("div", class_="slider", hidden="")


def _value_at_start(line: Line, start: float | None) -> float:
  """The value that `report.js` begins with, of the point nearest to it."""
  if start is None:
    return float(line.y[-1])
  return float(line.y[np.abs(line.x - start).argmin()])


def _sentence(figure: Figure, lines: Sequence[Line]) -> str:
  """The figure for who cannot see it."""
  parts = []
  for line in lines:
    xs = [figure.x.text(float(line.x[k])) for k in (0, -1)]
    ys = [figure.y.text(float(line.y[k])) for k in (0, -1)]
    ends = [figure.y.text(float(y)) for y in (line.y.min(), line.y.max())]
    parts.append(
      f"{line.name} from {ys[0]} at {xs[0]} to {ys[1]} at {xs[1]}, least"
      f" {ends[0]}, most {ends[1]}"
    )
  return f"{figure.title}, over {figure.x.label}: {'; '.join(parts)}"


def _numbers(figure: Figure, lines: Sequence[Line]) -> Html | str:
  """The lines as a table, at most so many rows of each."""
  if not lines:
    return ""
  columns = []
  for line in lines:
    rows = np.linspace(0, len(line.x) - 1, min(len(line.x), _TABLE_ROWS))
    rows = rows.round().astype(int)
    x, y = line.x[rows].tolist(), line.y[rows].tolist()
    columns.append(dict(zip(x, y, strict=True)))
  every = sorted({x for column in columns for x in column})
  rows = [
    [
      figure.x.text(x),
      *(figure.y.text(one[x]) if x in one else "" for one in columns),
    ]
    for x in every
  ]
  names = [figure.x.label, *(line.name for line in lines)]
  return folded(f"Numbers: {figure.title}", table(figure.title, names, rows))
