"""Axes: where they end, where their ticks are and what they say."""

import math

import numpy as np
import pytest

from jamsface_jax.reports.figure import Axis, Cloud, Figure, Line

PLAIN = Axis("")


def values(*numbers):
  return [np.array(numbers)]


@pytest.mark.parametrize(
  ("axis", "shown", "padded", "span"),
  [
    (PLAIN, (2, 12), False, (2, 12)),
    (PLAIN, (2, 12), True, (1.6, 12.4)),
    (PLAIN, (5, 5), False, (5, 5.2)),
    (PLAIN, (0, 0), True, (-0.04, 0.04)),
    (Axis("", zero=True), (2, 10), True, (0, 10.4)),
    (Axis("", zero=True), (-10, -2), False, (-10, 0)),
    (Axis("", most=1.0), (0.5, 1.0), True, (0.48, 1)),
    (Axis("", log=True), (0.01, 1), True, (0.01, 1)),
    (Axis("", log=True), (8, 8), True, (4, 16)),
    (Axis("", names=("a", "b", "c")), (0, 2), True, (2.5, -0.5)),
  ],
)
def test_ends(axis, shown, padded, span):
  got = axis.span(values(*map(float, shown)), padded=padded)
  assert got == pytest.approx(span)


def test_ends_are_of_all_that_is_shown():
  several = [np.array([3.0]), np.array([]), np.array([[1.0], [7.0]])]
  assert PLAIN.span(several, padded=False) == (1, 7)


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_round_and_inside(seed):
  rng = np.random.default_rng(seed)
  low = rng.normal() * 10.0 ** rng.integers(-4, 6)
  high = low + 10.0 ** rng.uniform(-4, 6)
  ticks = PLAIN.ticks(low, high)
  assert 2 <= len(ticks) <= 6
  room = 1e-6 * (high - low)
  assert low - room <= ticks[0] and ticks[-1] <= high + room
  (step,) = set(np.round(np.diff(ticks) / (high - low), 6))
  mantissa = step * (high - low)
  mantissa /= 10.0 ** math.floor(math.log10(mantissa) + 1e-6)
  assert min(abs(mantissa - one) for one in (1, 2, 2.5, 5, 10)) < 1e-3


@pytest.mark.parametrize(
  ("low", "high", "ticks"),
  [
    (1e-4, 1, [1e-4, 1e-3, 1e-2, 1e-1, 1]),
    (1e-12, 1, [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1]),
    (3, 100, [5, 10, 20, 50, 100]),
    (4, 16, [5, 10]),
  ],
)
def test_ticks_of_a_logarithm(low, high, ticks):
  assert Axis("", log=True).ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
  ("axis", "value", "text"),
  [
    (PLAIN, 0.25, "0.25"),
    (PLAIN, 1500.0, "1.5k"),
    (PLAIN, 2e6, "2M"),
    (PLAIN, 3e9, "3G"),
    (PLAIN, 0.0005, "5e-4"),
    (PLAIN, 0.0, "0"),
    (Axis("", percent=True), 0.125, "12.5 %"),
    (Axis("", percent=True), 0.000015, "1.5e-3 %"),
    (Axis("", names=("a", "b")), 1.0, "b"),
  ],
)
def test_texts_of_ticks(axis, value, text):
  assert axis.tick_text(value) == text


@pytest.mark.parametrize("percent", [False, True])
@pytest.mark.parametrize("most", [0.3, 0.47, 0.7, 1.1])
@pytest.mark.parametrize("power", range(-7, 8))
def test_ticks_have_room_beside_the_drawing(power, most, percent):
  axis = Axis("", percent=percent)
  ticks = axis.ticks(0.0, most * 10.0 ** (min(power, 0) if percent else power))
  texts = [axis.tick_text(tick) for tick in ticks]
  # A letter is 6.6 wide; svg.py keeps 62 for a tick and the gap after it.
  assert max(map(len, texts)) <= 8, texts
  assert len(set(texts)) == len(texts)


def test_what_cannot_be_shown_is_left_out_with_all_that_is_its_own():
  cloud = Cloud(
    "",
    np.array([0.0, 1.0, 2.0]),
    np.array([1.0, np.nan, 3.0]),
    ends=np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]),
  )
  line = Line("", np.array([0, 1, 2]), np.array([1.0, 2.0, np.inf]))
  figure = Figure("", Axis("", log=True), PLAIN, [line], clouds=[cloud])
  (kept,) = figure.drawable().clouds
  assert (kept.x.tolist(), kept.y.tolist()) == ([2], [3])
  assert kept.ends.tolist() == [[4, 5]]
  (kept,) = figure.drawable().lines
  assert (kept.x.tolist(), kept.y.tolist()) == ([1], [2])
  assert not figure.is_empty
  assert Figure("", PLAIN, PLAIN, [line], marks={"a": 1.0}).is_empty is False
  assert Figure("", PLAIN, PLAIN, marks={"a": 1.0}).is_empty


def test_marks_and_intervals_are_on_the_axis():
  cloud = Cloud("", np.array([2.0]), np.array([1.0]), ends=np.array([[1.0, 3]]))
  figure = Figure("", PLAIN, PLAIN, clouds=[cloud], marks={"a": 7.0})
  (low, high), _ = figure.spans()
  assert low < 1 and high > 7  # Intervals do not touch the ends.
  line = Line("", np.array([1.0, 5.0]), np.array([0.0, 1.0]))
  assert Figure("", PLAIN, PLAIN, [line]).spans()[0] == (1, 5)
