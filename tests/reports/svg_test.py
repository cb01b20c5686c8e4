"""Drawings say what the numbers say, and nothing that a name would inject."""

import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jamsface_jax.reports import svg
from jamsface_jax.reports.figure import Axis, Bars, Cloud, Figure, Line
from jamsface_jax.reports.markup import table
from jamsface_jax.reports.svg import draw_shares, nothing, thin_indices

STEP, VALUE = Axis("step"), Axis("")


def chart(title, lines, x, y, **more):
  return svg.draw(Figure(title, x, y, lines, **more))


def parse(figure):
  """The tree of a figure: charts are written so that XML parses them too."""
  return ElementTree.fromstring(figure)


def data_of(figure):
  return json.loads(html.unescape(parse(figure).get("data-chart")))


def points(path):
  """The corners of a path of straight lines."""
  found = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)
  return np.array(found, np.float64)


def line_paths(figure):
  tree = parse(figure)
  return [
    points(one.get("d"))
    for one in tree.iter("path")
    if one.get("class").startswith("line")
  ]


def ticks(figure, anchor):
  """Places and values of the ticks of an axis, x: "middle", y: "end"."""
  tree = parse(figure)
  side = {"middle": "x", "end": "y"}[anchor]
  return [
    (float(one.get(side)), float(one.text.rstrip(" %")))
    for one in tree.iter("text")
    if one.get("class") == "tick" and one.get("text-anchor") == anchor
  ]


def test_places_agree_with_ticks():
  x = np.array([0.0, 10, 20, 50])
  y = np.array([2.0, 8, 4, 6])
  figure = chart("Loss", [Line("a", x, y)], STEP, VALUE)
  ((places),) = line_paths(figure)
  # Between two ticks every value lies where a straight line has it.
  for places_along, values, anchor, shift in (
    (places[:, 0], x, "middle", 0),
    (places[:, 1], y, "end", 4),
  ):
    marks = sorted(ticks(figure, anchor), key=lambda one: one[1])
    at, worth = np.array(marks).T
    inside = (values >= worth[0]) & (values <= worth[-1])
    assert inside.sum() >= 2
    np.testing.assert_allclose(
      places_along[inside], np.interp(values[inside], worth, at - shift), atol=1
    )


def test_logarithmic_places():
  x = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
  figure = chart("ROC", [Line("a", x, x)], Axis("FAR", log=True), VALUE)
  ((places),) = line_paths(figure)
  steps = np.diff(places[:, 0])
  np.testing.assert_allclose(steps, steps[0], atol=0.2)
  assert (steps > 20).all()
  worth = [one for _, one in ticks(figure, "middle")]
  assert worth == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1], rel=1e-9)


def test_what_an_axis_cannot_show_is_left_out():
  x = np.array([0.0, 1, 2, 3, 4])
  y = np.array([1.0, np.nan, np.inf, 0.0, 2])
  log = Axis("", log=True)
  assert len(line_paths(chart("t", [Line("a", x, y)], STEP, VALUE))[0]) == 3
  assert len(line_paths(chart("t", [Line("a", x, y)], log, log))[0]) == 1


def test_data_are_the_values():
  x, y = np.arange(1, 8) * 5, np.linspace(0.1, 0.9, 7) ** 2
  data = data_of(chart("t", [Line("a", x, y)], STEP, Axis("", percent=True)))
  (line,) = data["lines"]
  assert line["x"] == x.tolist()
  np.testing.assert_allclose(line["y"], y, rtol=1e-5)
  assert data["percent"] == [False, True]


@pytest.mark.parametrize("count", [1, 2, 399, 400, 401, 5000, 100_003])
def test_thinning_keeps_the_extremes(count):
  values = np.random.default_rng(count).normal(size=count)
  kept = thin_indices(values, 200)
  assert (np.diff(kept) > 0).all()
  assert kept[0] == 0 and kept[-1] == count - 1
  assert len(kept) <= 402
  assert values[kept].min() == values.min()
  assert values[kept].max() == values.max()
  if count > 402:  # Each bucket too: a spike anywhere is seen.
    spike = values.copy()
    spike[count // 3] = 100
    assert count // 3 in thin_indices(spike, 200)


def test_long_lines_make_short_files():
  steps = np.arange(1, 200_001)
  noise = np.random.default_rng(0).normal(size=200_000)
  figure = chart("t", [Line("a", steps, noise, noisy=True)], STEP, VALUE)
  assert len(figure) < 40_000


def test_noisy_lines_have_their_mean_too():
  x = np.arange(500.0)
  figure = chart("t", [Line("a", x, x % 2, noisy=True)], STEP, VALUE)
  classes = [one.get("class") for one in parse(figure).iter("path")]
  assert "pale c0 d0" in classes
  ((mean),) = line_paths(figure)
  # Ten neighbours of 0, 1, 0, 1, ... have the mean one half.
  assert np.ptp(mean[:, 1]) < 0.2


def test_bars_stand_on_zero_and_are_as_high_as_they_are():
  bars = Bars("a", np.array([0.0, 1, 2]), np.array([1, 3]))
  text = chart("t", [], STEP, Axis("", zero=True), bars=[bars])
  (line,) = data_of(text)["lines"]
  assert (line["x"], line["y"]) == ([0, 1, 1, 2], [1, 1, 3, 3])
  ((places),) = line_paths(text)
  at, worth = np.array(sorted(ticks(text, "end"), key=lambda one: one[1])).T
  np.testing.assert_allclose(
    places[:, 1], np.interp([1, 1, 3, 3], worth, at - 4), atol=0.2
  )
  figure = parse(text)
  (path,) = [p for p in figure.iter("path") if p.get("class")[:4] == "fill"]
  floor = float(re.search(r"V([\d.]+)H", path.get("d"))[1])
  (mark,) = [
    float(one.get("y")) - 4
    for one in figure.iter("text")
    if one.text == "0" and one.get("text-anchor") == "end"
  ]
  assert floor == pytest.approx(mark, abs=0.11)


def test_the_table_has_the_numbers():
  lines = [
    Line("a", np.array([1, 2, 3]), np.array([0.5, 0.25, 0.125])),
    Line("b", np.array([2, 4]), np.array([7.0, 8])),
  ]
  tree = parse(chart("t", lines, STEP, VALUE))
  rows = [[cell.text or "" for cell in row] for row in tree.iter("tr")]
  assert rows == [
    ["step", "a", "b"],
    ["1", "0.5", ""],
    ["2", "0.25", "7"],
    ["3", "0.125", ""],
    ["4", "", "8"],
  ]


def test_long_tables_are_thinned_but_end_at_the_last():
  x = np.arange(1.0, 1001)
  tree = parse(chart("t", [Line("a", x, x)], STEP, VALUE))
  rows = [row[0].text for row in tree.iter("tr")]
  assert rows[1] == "1" and rows[-1] == "1000" and len(rows) == 26


def test_it_is_told_to_who_cannot_see_it():
  line = Line("loss", np.array([10, 20, 30]), np.array([9.0, 1.0, 2.0]))
  tree = parse(chart("Loss", [line], STEP, VALUE))
  svg = tree.find("svg")
  assert svg.get("role") == "img"
  assert svg.get("aria-label") == (
    "Loss, over step: loss from 9 at 10 to 2 at 30, least 1, most 9"
  )


def test_clouds_are_thinned_and_marks_named():
  cloud = Cloud("a class", np.arange(1.0, 50_001), np.arange(1.0, 50_001))
  figure = chart(
    "t", [], Axis("x", log=True), VALUE, clouds=[cloud], marks={"here": 10.0}
  )
  tree = parse(figure)
  (dots,) = [p for p in tree.iter("path") if p.get("class") == "cloud c0"]
  assert dots.get("d").count("h0") == 2000
  assert "here 10" in "".join(tree.itertext())


@pytest.mark.parametrize("y", [[], [np.nan, np.nan]])
def test_no_data_say_so(y):
  line = Line("a", np.arange(len(y)), np.array(y))
  assert "No data yet." in chart("t", [line], STEP, VALUE)
  figure = chart("t", [line], STEP, VALUE, note="Evaluate first.")
  assert "Evaluate first." in figure and "<svg" not in figure


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-9, 123456.0])
def test_lines_of_one_value_can_be_drawn(value):
  for x in ([7.0], [1.0, 2.0]):
    line = Line("a", np.array(x), np.full(len(x), value))
    for axis in (VALUE, Axis("", zero=True), Axis("", percent=True)):
      ((places),) = line_paths(chart("t", [line], STEP, axis))
      assert np.isfinite(places).all() and (places >= 0).all()


@pytest.mark.parametrize(
  ("axis", "value", "text"),
  [
    (VALUE, 0.0001234567, "0.00012346"),
    (VALUE, 123456.7, "123,457"),
    (Axis("", percent=True), 0.98765432, "98.77 %"),
    (VALUE, math.nan, "not measured"),
  ],
)
def test_texts_of_values(axis, value, text):
  assert axis.text(value) == text


EVIL = "</title><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def test_names_are_escaped():
  line = Line(EVIL, np.arange(3), np.arange(3))
  bars = Bars(EVIL, np.arange(3), np.arange(2))
  cloud = Cloud(EVIL, np.arange(1.0, 4), np.arange(3.0))
  every = [
    chart(
      EVIL,
      [line],
      Axis(EVIL),
      Axis(EVIL),
      bars=[bars],
      clouds=[cloud],
      marks={EVIL: 1.0},
      note=EVIL,
    ),
    nothing(EVIL, EVIL),
    draw_shares(EVIL, {EVIL: 1.0}, EVIL),
    table(EVIL, [EVIL], [[EVIL, EVIL]]),
  ]
  for figure in every:
    tree = parse(figure)  # Which a stray quote or bracket would break.
    assert {one.tag for one in tree.iter()}.isdisjoint({"script", "img"})
    assert all(
      not k.startswith("on") for one in tree.iter() for k in one.keys()
    )
    assert EVIL in "".join(tree.itertext())
  assert [one["name"] for one in data_of(every[0])["lines"]] == [EVIL, EVIL]


def test_bars_share_the_width():
  tree = parse(draw_shares("t", {"a": 3.0, "b": 1.0, "c": 0.0}, "seconds"))
  widths = [float(one.get("width")) for one in tree.iter("rect")]
  assert widths[0] == pytest.approx(3 * widths[1]) and widths[2] == 0
  assert "a 75.0%, b 25.0%, c 0.0%" in tree.find("svg").get("aria-label")


def test_intervals_and_names_of_a_list():
  cloud = Cloud(
    "",
    np.array([2.5, 6.0]),
    np.arange(2),
    ends=np.array([[2.0, 3.0], [5.0, 8.0]]),
  )
  text = chart("t", [], VALUE, Axis("", names=("a<", "b")), clouds=[cloud])
  tree = parse(text)
  (path,) = [p for p in tree.iter("path") if p.get("class") == "line c0"]
  levels = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)", path.get("d"))
  levels = np.array(levels, np.float64)
  at, worth = np.array(ticks(text, "middle")).T
  places = np.polyval(np.polyfit(worth, at, 1), [[2, 3], [5, 8]])
  np.testing.assert_allclose(levels[:, [0, 2]], places, atol=0.3)
  names = {
    one.text: float(one.get("y")) - 4
    for one in tree.iter("text")
    if one.get("text-anchor") == "end" and one.text in ("a<", "b")
  }
  assert names["a<"] < names["b"]  # The first stands on top.
  np.testing.assert_allclose(levels[:, 1], [names["a<"], names["b"]], atol=0.1)
  assert not list(tree.iter("li"))  # Without a name it is in no legend.
