"""From metrics to pictures: arrays in, PNG files out.

Figures are drawn with matplotlib's objects on the Agg canvas: no window, no
pyplot, no state shared with whoever else draws.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure, ticker
from matplotlib.backends import backend_agg

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.rank_correlation import rank_correlation
from jamsface_jax.metrics.roc import RocLine
from jamsface_jax.metrics.score_counts import EDGES, ScoreCounts
from jamsface_jax.protocols.results import cmc
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.reports.charts import running_mean
from jamsface_jax.run.metrics_file import matching

# Okabe and Ito's colours, told apart with every kind of colour vision
# (https://jfly.uni-koeln.de/color/), in order of use; yellow is too pale.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
INK, PALE = "#333333", "#DDDDDD"
_DASHES = ("-", "--", ":", "-.")  # Where there are more lines than colours.

# Panels of `plot_training`: title, metrics, whether single steps are noisy.
_PANELS = (
  ("Loss", ("train/loss", "train/cross_entropy"), True),
  ("Accuracy (train: without margin)", ("train/accuracy", "/accuracy"), True),
  (
    "Mean margin (radians; cosine)",
    ("train/margin_angular_mean", "train/margin_cosine_mean"),
    False,
  ),
  (
    "Cosine to the true class and the hardest other",
    ("train/true_cosine", "train/hardest_cosine"),
    True,
  ),
  ("Learning rate", ("train/learning_rate",), False),
  ("Images per second", ("train/images_per_second",), True),
  ("Share of time waiting for data", ("train/data_wait_fraction",), True),
)


def plot_training(
  metrics: Mapping[str, tuple[np.ndarray, np.ndarray]],
  path: str | pathlib.Path,
) -> pathlib.Path:
  """Draws how a run went, one small panel a quantity.

  Where single steps are noisy, a pale line has every value and a strong one
  their mean over a fiftieth of the run. Panels without data are left out.

  Args:
    metrics: as `metric_log.read_metrics` returns them.
    path: the PNG file to write.

  Returns:
    `path`.

  Raises:
    InputError: none of the metrics of a training run is there.
  """
  panels = [
    (title, names, noisy)
    for title, patterns, noisy in _PANELS
    if (names := matching(metrics, patterns))
  ]
  if not panels:
    raise InputError(
      "metrics: none of the metrics of a training run is among them; give the"
      " metrics.jsonl of a run that has logged a step."
    )
  columns = min(len(panels), 3 if len(panels) > 4 else 2)
  rows = -(-len(panels) // columns)
  canvas = _figure(4.2 * columns, 2.9 * rows)
  axes = canvas.subplots(rows, columns, squeeze=False).ravel()
  for ax, (title, names, noisy) in zip(axes, panels, strict=False):
    _style(ax, title, "step")
    for color, name in zip(_colors(len(names)), names, strict=True):
      _plot_series(ax, *metrics[name], name, color, noisy)
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    if len(names) > 1:
      ax.legend(labelcolor=INK, frameon=False, fontsize=8)
    if title == "Images per second":
      ax.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
      _start_at_zero(ax)
  for ax in axes[len(panels) :]:
    ax.set_axis_off()
  return _save(canvas, path)


def _plot_series(ax, steps, values, name, color, noisy):
  finite = np.isfinite(values)
  steps, values = steps[finite], values[finite]
  window = len(steps) // 50
  if noisy and window > 1:
    ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
    steps, values = running_mean(steps, window), running_mean(values, window)
  marker = "o" if len(steps) <= 40 else None
  ax.plot(
    steps,
    values,
    color=color,
    linewidth=1.6,
    marker=marker,
    markersize=3.5,
    label=name,
  )


def plot_roc(
  lines: Mapping[str, RocLine], path: str | pathlib.Path
) -> pathlib.Path:
  """Draws ROC curves over a logarithmic FAR.

  Each curve begins at the smallest FAR that its negative pairs can measure.

  Args:
    lines: at least one, by the name to show.
    path: the PNG file to write.

  Returns:
    `path`.
  """
  canvas = _figure(6.4, 4.6)
  ax = canvas.subplots()
  _style(ax, "Verification", "false accept rate (FAR)")
  ax.set_ylabel("true accept rate (TAR)", color=INK, fontsize=9)
  for number, (name, line) in enumerate(lines.items()):
    style = _DASHES[number // len(COLORS) % len(_DASHES)]
    ax.plot(
      line.fars,
      line.tars,
      color=COLORS[number % len(COLORS)],
      linestyle=style,
      label=f"{name}   AUC {line.auc:.4f}",
    )
  ax.set_xscale("log")
  smallest = min(line.fars[0] for line in lines.values())
  ax.set_xlim(smallest, 1)
  ax.set_ylim(0, 1.01)
  ax.grid(axis="x", color=PALE, linewidth=0.6)
  ax.legend(labelcolor=INK, frameon=False, fontsize=9)
  return _save(canvas, path)


def plot_scores(
  score_counts: ScoreCounts,
  threshold: float | None,
  path: str | pathlib.Path,
) -> pathlib.Path:
  """Draws the cosines of positive and of negative pairs, and the threshold.

  Args:
    score_counts: of the cosines.
    threshold: the cosine from which on a pair is accepted; None for none.
    path: the PNG file to write.

  Returns:
    `path`.
  """
  canvas = _figure(6.4, 3.8)
  ax = canvas.subplots()
  _style(ax, "Similarity of pairs", "cosine")
  ax.set_ylabel("share of the pairs of a kind", color=INK, fontsize=9)
  filled = np.flatnonzero(
    score_counts.positive_counts + score_counts.negative_counts
  )
  for counts, color, name in (
    (score_counts.negative_counts, VERMILION, "different people"),
    (score_counts.positive_counts, BLUE, "same person"),
  ):
    ax.stairs(
      counts / counts.sum(),
      EDGES,
      fill=True,
      facecolor=color + "59",  # 35 % opaque, so that both show.
      edgecolor=color,
      linewidth=1.2,
      label=f"{name} ({counts.sum():,} pairs)",
    )
  ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  ax.set_xlim(min(EDGES[filled[0]], -0.2), 1)
  ax.set_ylim(bottom=0)
  if threshold is not None:
    ax.axvline(
      threshold,
      color=INK,
      linewidth=1.2,
      linestyle="--",
      label=f"threshold {threshold:.3f}",
    )
  ax.legend(labelcolor=INK, frameon=False, fontsize=9)
  return _save(canvas, path)


def plot_cmc(
  lines: Mapping[str, np.ndarray], path: str | pathlib.Path
) -> pathlib.Path:
  """Draws cumulative match characteristics.

  Args:
    lines: the share of mated probes found up to rank 1, 2, ... K, [K] each, by
      the name to show; at least one.
    path: the PNG file to write.

  Returns:
    `path`.
  """
  canvas = _figure(6.4, 4.6)
  ax = canvas.subplots()
  _style(ax, "Identification", "rank")
  ax.set_ylabel("mated probes found", color=INK, fontsize=9)
  for color, (name, rates) in zip(
    _colors(len(lines)), lines.items(), strict=True
  ):
    ax.plot(
      np.arange(1, len(rates) + 1),
      rates,
      color=color,
      marker="o",
      markersize=3,
      label=f"{name}   rank 1 {rates[0]:.2%}",
    )
  ax.set_xscale("log")
  ax.xaxis.set_major_formatter(ticker.ScalarFormatter())
  ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  ax.legend(labelcolor=INK, frameon=False, fontsize=9)
  return _save(canvas, path)


def plot_hardest(
  score_counts: ScoreCounts, path: str | pathlib.Path
) -> pathlib.Path:
  """Draws the cosines of the pairs that came out worst, by their numbers.

  Args:
    score_counts: has them.
    path: the PNG file to write.

  Returns:
    `path`.
  """
  canvas = _figure(9.0, 4.6)
  panels = (
    ("One person, least alike", score_counts.hardest_positives, BLUE),
    ("Two people, most alike", score_counts.hardest_negatives, VERMILION),
  )
  for ax, (title, pairs, color) in zip(
    canvas.subplots(1, 2), panels, strict=True
  ):
    _style(ax, title, "cosine")
    ax.grid(visible=False, axis="y")
    places = np.arange(len(pairs.scores))
    ax.hlines(places, 0, pairs.scores, color=PALE, linewidth=1)
    ax.plot(pairs.scores, places, "o", color=color, markersize=4)
    ax.axvline(0, color=INK, linewidth=0.6)
    names = zip(pairs.first, pairs.second, strict=True)
    ax.set_yticks(places, [f"{i} - {j}" for i, j in names])
    ax.set_ylabel("numbers of the two", color=INK, fontsize=9)
    ax.invert_yaxis()  # The worst on top.
  return _save(canvas, path)


def plot_margins(
  class_sizes: np.ndarray,
  angular: np.ndarray,
  cosine: np.ndarray,
  path: str | pathlib.Path,
) -> pathlib.Path:
  """Draws each class's two margins against the number of its images.

  A point is a class; the line joins the medians of classes of similar size. The
  titles have Spearman's rank correlation of margin and class size.

  Args:
    class_sizes: images of each class, [C], at least 1.
    angular: the margins in radians, [C].
    cosine: the margins in the cosine, [C].
    path: the PNG file to write.

  Returns:
    `path`.
  """
  class_sizes = np.asarray(class_sizes)
  canvas = _figure(9.0, 3.8)
  panels = (
    ("Angular margin", "radians", np.asarray(angular), BLUE),
    ("Cosine margin", "cosine", np.asarray(cosine), GREEN),
  )
  for ax, (title, unit, margins, color) in zip(
    canvas.subplots(1, 2), panels, strict=True
  ):
    correlation = rank_correlation(class_sizes, margins)
    shown = "undefined" if np.isnan(correlation) else f"{correlation:+.2f}"
    _style(
      ax, f"{title}: rank correlation {shown}", "images of the class (log)"
    )
    ax.set_ylabel(unit, color=INK, fontsize=9)
    ax.scatter(
      class_sizes,
      margins,
      s=9,
      color=color,
      # The more classes, the more transparent, lest they merge into a blot.
      alpha=float(np.clip(12 / len(class_sizes) ** 0.5, 0.05, 0.5)),
      linewidths=0,
      label=f"a class ({len(class_sizes):,})",
    )
    ax.plot(
      *_medians(class_sizes, margins),
      color=VERMILION,
      linewidth=1.8,
      marker="o",
      markersize=4,
      label="median of similar sizes",
    )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    _start_at_zero(ax)
    legend = ax.legend(labelcolor=INK, frameon=False, fontsize=9)
    legend.legend_handles[0].set_alpha(0.7)
  return _save(canvas, path)


def _medians(sizes, margins):
  """Median size and margin of the classes in 12 equal parts of log size."""
  edges = np.geomspace(sizes.min(), sizes.max() + 1, 13)
  part = np.digitize(sizes, edges[1:-1])
  parts = [part == p for p in np.unique(part)]
  return (
    [np.median(sizes[classes]) for classes in parts],
    [np.median(margins[classes]) for classes in parts],
  )


def _colors(count):
  """`count` colours, from the start again where there are not enough."""
  return [COLORS[i % len(COLORS)] for i in range(count)]


def _figure(width, height):
  """An empty figure of this size in inches."""
  canvas = figure.Figure((width, height), dpi=150, layout="constrained")
  backend_agg.FigureCanvasAgg(canvas)
  return canvas


def _style(ax, title, x_label):
  """Leaves of the frame what reading a value needs."""
  ax.set_title(title, loc="left", color=INK, fontsize=10)
  ax.set_xlabel(x_label, color=INK, fontsize=9)
  ax.spines[["top", "right"]].set_visible(False)
  ax.spines[["left", "bottom"]].set_color(INK)
  ax.tick_params(colors=INK, labelsize=8)
  ax.grid(axis="y", color=PALE, linewidth=0.6)
  ax.set_axisbelow(True)


def _start_at_zero(ax):
  """Has zero on the vertical axis, so that heights compare as amounts."""
  low, high = ax.get_ylim()
  low = min(low, 0)
  ax.set_ylim(low, high + 0.05 * (high - low))


def _save(canvas, path):
  path = pathlib.Path(path)
  canvas.savefig(path, format="png")
  return path


def plot_evaluations(
  directory: str,
  evaluations: Sequence[Evaluation],
  others: Mapping[str, RocLine],
) -> None:
  """Draws the ROC of all sets together, and scores, hardest pairs and CMC.

  Args:
    directory: made if missing.
    evaluations: of all sets, perhaps none.
    others: further ROC curves, by the name to show.
  """
  if not evaluations:
    return
  # Here, since what draws takes as long to import as all the rest.
  from jamsface_jax.reports import pictures

  os.makedirs(directory, exist_ok=True)

  def place(name: str) -> str:
    return os.path.join(directory, name.replace("/", "_") + ".png")

  score_counts = {
    one.name: one.score_counts for one in evaluations if one.score_counts
  }
  lines = {k: RocLine.of(t.curve) for k, t in score_counts.items()}
  lines |= others
  if lines:
    pictures.plot_roc(lines, place("roc"))
  for one in evaluations:
    if one.score_counts:
      pictures.plot_scores(
        one.score_counts, one.threshold, place(f"scores_{one.name}")
      )
      pictures.plot_hardest(one.score_counts, place(f"hardest_{one.name}"))
    if one.searches:
      pictures.plot_cmc(
        {name: cmc(found) for name, found in one.searches.items()},
        place(f"cmc_{one.name}"),
      )
