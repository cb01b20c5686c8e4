"""The figures of a run and of an evaluation, each described in one place.

Where several runs are compared, a figure has what it draws by the run's name,
and None where a run has none of it: so each run keeps its colour in all
figures. One run alone needs no name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Real

from jamsface_jax.metrics.roc import RocLine
from jamsface_jax.metrics.score_counts import EDGES, Hardest
from jamsface_jax.reports.facts import correlation_text
from jamsface_jax.reports.figure import (
  Axis,
  Bars,
  Cloud,
  Figure,
  Line,
  distinct_dash,
)
from jamsface_jax.run.metrics_file import matching

_SHARE = Axis("share that is right", percent=True, most=1.0)
_STEP = Axis("step", whole=True)
_FAR = 1e-3  # That readers look at first, if the pairs can measure it.
_NO_STEP = "No data yet: no step was logged."


class Curves(NamedTuple):
  """A figure over the steps of a run.

  Attributes:
    title: its caption.
    metrics: names and patterns, see `matching`.
    y: the axis of the values.
    noisy: whether single steps jump.
    missing: what to say where nothing was logged.
    once: metrics that agree are one line, as the loss is the cross-entropy
      where nothing rewards margins.
  """

  title: str
  metrics: tuple[str, ...]
  y: Axis
  noisy: bool
  missing: str = _NO_STEP
  once: bool = False


TRAINING = (
  Curves(
    "Loss",
    ("train/loss", "train/cross_entropy"),
    Axis("nats"),
    True,
    once=True,
  ),
  Curves(
    "Accuracy in training, without margin", ("train/accuracy",), _SHARE, True
  ),
  Curves(
    "Accuracy on test sets",
    ("/accuracy",),
    _SHARE,
    False,
    "No data yet: no test set with pairs was evaluated. Name some in"
    " evaluation.data.",
  ),
  Curves(
    "Learning rate", ("train/learning_rate",), Axis("rate", zero=True), False
  ),
  Curves(
    "Images a second",
    ("train/images_per_second",),
    Axis("images a second", zero=True),
    True,
  ),
  Curves(
    "Time spent waiting for data",
    ("train/data_wait_fraction",),
    Axis("share of the time", percent=True, zero=True, most=1.0),
    True,
  ),
  Curves(
    "Mean margin (angular in radians, cosine)",
    ("train/margin_angular_mean", "train/margin_cosine_mean"),
    Axis("margin", zero=True),
    False,
  ),
  Curves(
    "Classes with a margin at its bound",
    (
      "train/margin_angular_at_lower",
      "train/margin_angular_at_upper",
      "train/margin_cosine_at_lower",
      "train/margin_cosine_at_upper",
    ),
    Axis("share of the classes", percent=True, zero=True, most=1.0),
    False,
  ),
  Curves(
    "Cosine to the true class and to the hardest other",
    ("train/true_cosine", "train/hardest_cosine"),
    Axis("cosine"),
    True,
  ),
  Curves(
    "Angle from a class centre to the nearest other (degrees)",
    ("train/centre_angle_mean", "train/centre_angle_min"),
    Axis("degrees"),
    False,
  ),
)


def training_figures(
  runs: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> list[Figure]:
  """How runs went, a figure a quantity; those without data say so.

  Args:
    runs: the metrics of each run, as `read_metrics` returns them.
  """
  figures = []
  for curves in TRAINING:
    lines: list[Line] = []
    for number, (run, metrics) in enumerate(runs.items()):
      own: list[Line] = []
      for place, name in enumerate(matching(metrics, curves.metrics)):
        # One run: a colour a metric. Several: a colour a run.
        color = place if len(runs) == 1 else number
        line = Line(name, *metrics[name], color, place, curves.noisy)
        if not (curves.once and _name_same(own, line)):
          own.append(line)
      lines += [
        dataclasses.replace(line, name=_named(run, line.name, runs))
        for line in own
      ]
    note = "" if lines else curves.missing
    figures.append(Figure(curves.title, _STEP, curves.y, lines, note=note))
  return figures


def _name_same(lines: list[Line], line: Line) -> bool:
  """Names a line beside the one that it would hide; whether there is one."""
  for place, other in enumerate(lines):
    if np.array_equal(other.x, line.x) and np.array_equal(other.y, line.y):
      name = f"{other.name} = {line.name}"
      lines[place] = dataclasses.replace(other, name=name)
      return True
  return False


def roc_figure(title: str, lines: Mapping[str, RocLine | None]) -> Figure:
  """ROC curves over a logarithmic FAR.

  Args:
    title: its caption.
    lines: the curves by the name of the run or the set.
  """
  return Figure(
    title,
    Axis("false accept rate (FAR)", log=True),
    Axis("true accept rate (TAR)", percent=True, most=1.0),
    [
      Line(
        _named(name, f"TAR (AUC {line.auc:.4f})", lines),
        line.fars,
        line.tars,
        number,
        distinct_dash(number),
      )
      for number, (name, line) in enumerate(lines.items())
      if line
    ],
    start=_FAR,
    note="Begins at the smallest FAR that the pairs can measure.",
  )


def scores_figure(
  title: str,
  negative_counts: Real[np.ndarray, " bins"],
  positive_counts: Real[np.ndarray, " bins"],
  threshold: float | None,
) -> Figure:
  """The cosines of pairs of two people and of one, and the threshold.

  Args:
    title: its caption.
    negative_counts: pairs of two people in each bin of `EDGES`.
    positive_counts: pairs of one person in each.
    threshold: the cosine from which on a pair is accepted; None for none.
  """
  filled = np.flatnonzero(negative_counts + positive_counts)
  first, last = filled[0], filled[-1] + 1
  return Figure(
    title,
    Axis("cosine"),
    Axis("share of the pairs of a kind", percent=True, zero=True),
    bars=[
      Bars(
        f"{kind} ({round(counts.sum()):,} pairs)",
        EDGES[first : last + 1],
        counts[first:last] / counts.sum(),
        color,
      )
      for kind, counts, color in (
        ("two people", negative_counts, 1),
        ("one person", positive_counts, 0),
      )
    ],
    marks={} if threshold is None else {"threshold": threshold},
    start=threshold,
  )


def cmc_figure(
  title: str,
  runs: Mapping[str, Mapping[str, Float64[np.ndarray, " ranks"]]],
) -> Figure:
  """Cumulative match characteristics.

  Args:
    title: its caption.
    runs: by run and search, the share of mated probes found up to rank 1, 2,
      ..., at least one.
  """
  return Figure(
    title,
    Axis("rank", log=True, whole=True),
    Axis("mated probes found", percent=True, most=1.0),
    [
      Line(
        _named(run, f"{search}: found (rank 1 {rates[0]:.2%})", runs),
        np.arange(1, len(rates) + 1),
        rates,
        # One run: a colour a search. Several: a colour a run.
        place if len(runs) == 1 else number,
        place,
      )
      for number, (run, searches) in enumerate(runs.items())
      for place, (search, rates) in enumerate(searches.items())
    ],
  )


def class_size_figure(
  title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Figure:
  """How often the nearest class is right, by tenths of the classes.

  Args:
    title: its caption.
    runs: `by_class_size` of `results.json` by the name of the run, perhaps
      empty.
  """
  kinds = {"accuracy": "accuracy"}
  if len(runs) == 1:  # Of several runs it would be too many lines.
    kinds["adjusted_accuracy"] = "with log(images) / scale taken off cosines"
  lines, note = [], ""
  for number, (run, rows) in enumerate(runs.items()):
    for place, (kind, words) in enumerate(kinds.items()):
      if rows and kind in rows[0]:
        values = np.array([row[kind] for row in rows], np.float64)
        tenths = np.arange(1, len(rows) + 1)
        look = number + place
        name = words if len(runs) == 1 else f"{run}: {words}"
        lines.append(Line(name, tenths, values, look, distinct_dash(look)))
    if rows:
      note = (
        f"The poorest have {_images(rows[0])}, the richest"
        f" {_images(rows[-1])} to train on."
      )
  axis = Axis("tenth of the classes, the poorest first", whole=True)
  return Figure(title, axis, _SHARE, lines, note=note)


def margin_figure(
  kind: str, profile: Mapping[str, Any], classes: int
) -> Figure:
  """The margins of one kind against the number of images of a class.

  Args:
    kind: "angular" or "cosine".
    profile: what `class_profile.describe` says of them.
    classes: how many there are, of which the profile has some one by one.
  """
  shown = correlation_text(profile["rank_correlation"])
  bands, sample = profile["bands"], profile["sample"]
  sizes = np.array([band["size"] for band in bands], np.float64)
  units = {"angular": "radians", "cosine": "cosine"}
  return Figure(
    f"{kind.capitalize()} margin: rank correlation with class size {shown}",
    Axis("images of the class", log=True, whole=True),
    Axis(units.get(kind, kind), zero=True),
    [
      Line(name, sizes, np.array([band[key] for band in bands]), 1, dash)
      for name, key, dash in (
        ("median", "median", 0),
        ("a tenth is above", "high", 2),
        ("a tenth is below", "low", 1),
      )
    ],
    clouds=[
      Cloud(
        _shown_classes(len(sample["size"]), classes),
        np.array(sample["size"], np.float64),
        np.array(sample["margin"], np.float64),
      )
    ],
    note="JAMsFace wants poor classes to have the larger margins: a correlation"
    " below 0.",
  )


def miss_figure(
  metrics: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Figure:
  """How far images are from being sure, by the size of their class.

  Args:
    metrics: those of a run, as `read_metrics` returns them.
  """
  last = {
    int(name.partition("@")[2]): float(values[-1])
    for name, (_, values) in metrics.items()
    if name.startswith("train/miss@") and len(values)
  }
  sizes = sorted(last)
  values = np.array([last[size] for size in sizes])
  line = Line("1 - p", np.array(sizes, np.float64), values)
  return Figure(
    "How far images are from their class, margins counted",
    Axis("images of the class, from", log=True, whole=True),
    Axis("1 - p of the own class", log=True),
    [line] if sizes else [],
    note="Where learned margins rest it falls as one over the images, with a"
    " mean that is held: poor classes rest further away, with larger margins.",
  )


def _shown_classes(shown: int, classes: int) -> str:
  """What a point is, and why there are fewer than classes."""
  if shown == classes:
    return f"a class (all {classes:,})"
  return f"a class ({shown:,} of {classes:,}: all of the largest, some others)"


def tail_figure(runs: Mapping[str, Mapping[str, Any] | None]) -> Figure:
  """Images of each class, from the largest class on.

  Args:
    runs: `tail` of the class profile by the name of the run.
  """
  return Figure(
    "Long tail: images of each class",
    Axis("rank of the class by size", log=True, whole=True),
    Axis("images", log=True, whole=True),
    [
      Line(
        _named(run, "images", runs),
        np.array(tail["rank"]),
        np.array(tail["size"]),
        number,
        distinct_dash(number),
      )
      for number, (run, tail) in enumerate(runs.items())
      if tail
    ],
  )


def hardest_figures(positives: Hardest, negatives: Hardest) -> list[Figure]:
  """The cosines of the pairs that came out worst, by their numbers.

  Args:
    positives: pairs of one person that are least alike.
    negatives: pairs of two people that are most alike.
  """
  return [
    Figure(
      title,
      Axis("cosine", zero=True),
      Axis(
        "numbers of the two",
        names=tuple(
          f"{i} - {j}" for i, j in zip(pairs.first, pairs.second, strict=True)
        ),
      ),
      clouds=[Cloud("", pairs.scores, np.arange(len(pairs.scores)), color)],
    )
    for title, pairs, color in (
      ("One person, least alike", positives, 0),
      ("Two people, most alike", negatives, 1),
    )
  ]


def _named(run: str, what: str, runs: Mapping[str, Any]) -> str:
  """What a line is called: by its run too where there are several."""
  return what if len(runs) == 1 else f"{run}: {what}"


def _images(row: Mapping[str, Any]) -> str:
  if row["smallest"] == row["largest"]:
    return f"{row['largest']:,} images"
  return f"{row['smallest']:,} to {row['largest']:,} images"
