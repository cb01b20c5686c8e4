"""Figures tell runs apart alike, whatever a run has of them."""

import numpy as np
import pytest

from jamsface_jax.metrics.roc import RocLine
from jamsface_jax.metrics.score_counts import EDGES
from jamsface_jax.reports import figures, svg
from jamsface_jax.reports.figure import COLORS, DASHES, distinct_dash

METRICS = {
  "train/loss": (np.array([1, 2]), np.array([3.0, 2.0])),
  "train/cross_entropy": (np.array([1, 2]), np.array([3.0, 1.0])),
}
LINE = RocLine(np.array([0.1, 1.0]), np.array([0.5, 1.0]), 0.7)
RATES = {"one": np.array([0.5, 1.0]), "two": np.array([0.7, 0.8])}
TENTHS = [
  {"smallest": 2, "largest": 2, "accuracy": 0.1, "adjusted_accuracy": 0.3},
  {"smallest": 3, "largest": 9, "accuracy": 0.6, "adjusted_accuracy": 0.5},
]
TAIL = {"rank": [1, 2], "size": [9, 2]}


def drawn(**of_runs):
  """One figure of each kind that compares runs, by what a run has or not."""

  def having(content, nothing):
    return {run: content if has else nothing for run, has in of_runs.items()}

  return [
    figures.training_figures(having(METRICS, {}))[0],
    figures.roc_figure("", having(LINE, None)),
    figures.cmc_figure("", having(RATES, {})),
    figures.class_size_figure("", having(TENTHS, [])),
    figures.tail_figure(having(TAIL, None)),
  ]


def test_a_run_keeps_its_colour_in_all_figures():
  for figure in drawn(a=False, b=True, c=True):
    runs = {line.name[:3] for line in figure.lines}
    assert runs == {"b: ", "c: "}
    for line in figure.lines:
      assert line.color == {"b": 1, "c": 2}[line.name[0]], line
    looks = [(line.color, line.dash) for line in figure.lines]
    assert len(set(looks)) == len(looks)


def test_one_run_has_a_colour_for_each_line():
  for figure in drawn(a=True):
    assert [line.color for line in figure.lines] == [*range(len(figure.lines))]
    assert not any(line.name.startswith("a: ") for line in figure.lines)


def test_figures_without_a_run_that_has_them_are_empty():
  assert all(figure.is_empty for figure in drawn(a=False, b=False))
  assert not any(figure.is_empty for figure in drawn(a=False, b=True))


def test_why_a_curve_is_missing():
  notes = {
    one.title: one.note for one in figures.training_figures({"a": METRICS})
  }
  assert notes["Loss"] == ""
  assert "no step was logged" in notes["Learning rate"]
  assert "evaluation.data" in notes["Accuracy on test sets"]


def test_the_poorest_and_the_richest_classes_are_named():
  figure = figures.class_size_figure("", {"a": TENTHS})
  assert figure.note == (
    "The poorest have 2 images, the richest 3 to 9 images to train on."
  )


@pytest.mark.parametrize("kind", ["angular", "cosine"])
def test_bands_of_margins(kind):
  bands = [
    {"size": 1.0, "low": 0.1, "median": 0.2, "high": 0.3},
    {"size": 9.0, "low": 0.0, "median": 0.1, "high": 0.2},
  ]
  sample = {"size": [1, 9], "margin": [0.2, 0.1]}
  one = {"rank_correlation": -1.0, "bands": bands, "sample": sample}
  figure = figures.margin_figure(kind, one, 1184)
  (cloud,) = figure.clouds
  assert cloud.name.startswith("a class (2 of 1,184: ")
  (cloud,) = figures.margin_figure(kind, one, 2).clouds
  assert cloud.name == "a class (all 2)"
  assert {line.name: line.y.tolist() for line in figure.lines} == {
    "median": [0.2, 0.1],
    "a tenth is above": [0.3, 0.2],
    "a tenth is below": [0.1, 0.0],
  }
  assert all(line.x.tolist() == [1, 9] for line in figure.lines)
  assert figure.x.log and not figure.y.log
  assert figure.y.label == {"angular": "radians", "cosine": "cosine"}[kind]


def test_lines_differ_as_long_as_they_can():
  looks = {(n % COLORS, distinct_dash(n) % DASHES) for n in range(24)}
  assert len(looks) == 24 == COLORS * DASHES


def test_what_is_the_same_is_drawn_once():
  """Loss and cross-entropy, where nothing rewards margins."""
  steps = np.arange(1, 4)
  loss, other = np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 1.5])
  run = {"train/loss": (steps, loss), "train/cross_entropy": (steps, loss)}
  first = figures.training_figures({"a": run})[0]
  assert [x.name for x in first.lines] == ["train/loss = train/cross_entropy"]
  run["train/cross_entropy"] = steps, other
  first = figures.training_figures({"a": run})[0]
  assert len(first.lines) == 2
  # Two runs that went alike are two runs.
  both = figures.training_figures({"a": run, "b": run})[0]
  assert len(both.lines) == 4


def test_every_axis_has_a_name_and_steps_are_whole():
  for figure in figures.training_figures({"a": {}}):
    assert figure.x.label and figure.y.label, figure.title
    assert figure.x.whole
  for low, high in ((1, 2), (0, 3), (1, 400), (0.9, 1.1)):
    ticks = figures._STEP.ticks(low, high)
    assert ticks and all(one == int(one) for one in ticks), (low, high)


def test_a_roc_starts_where_readers_look():
  fars = np.array([1e-4, 1e-3, 1e-2, 1.0])
  line = RocLine(fars, np.array([0.5, 0.7, 0.9, 1.0]), 0.9)
  figure = figures.roc_figure("ROC", {"a": line})
  drawn = str(svg.draw(figure))
  assert ">70 %</output>" in drawn
  assert "&quot;start&quot;:0.001" in drawn or '"start":0.001' in drawn
  scores = figures.scores_figure(
    "Scores", np.ones(len(EDGES) - 1), np.ones(len(EDGES) - 1), 0.25
  )
  assert scores.start == 0.25


def test_how_far_images_are_from_their_class_by_its_size():
  metrics = {
    "train/miss@16": (np.array([5, 9]), np.array([0.4, 0.02])),
    "train/miss@2": (np.array([5, 9]), np.array([0.9, 0.2])),
    "train/loss": METRICS["train/loss"],
  }
  (line,) = figures.miss_figure(metrics).lines
  assert line.x.tolist() == [2, 16] and line.y.tolist() == [0.2, 0.02]
  assert figures.miss_figure(METRICS).lines == []
