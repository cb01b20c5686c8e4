"""Plots of a run and of an evaluation hold the numbers, and are pictures."""

import pathlib
import subprocess
import sys

import cv2
import matplotlib
import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.identification import Identification
from jamsface_jax.metrics.roc import RocLine, roc
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.reports import figures, plots, png
from jamsface_jax.storage.run_directory import PictureFolder, RunFile


@pytest.fixture
def drawn(monkeypatch):
  """The axes of what was drawn, by name of the file."""
  axes = {}
  save = png.save

  def keep(sheet, file):
    save(sheet, file)
    axes[pathlib.Path(file.path).name] = sheet.axes

  monkeypatch.setattr(png, "save", keep)
  return axes


def check_picture(path, width):
  picture = cv2.imread(str(path))
  assert path.suffix == ".png"
  assert picture.shape[1] == round(width)
  assert picture.std() > 5  # Ink on white.


def test_training_panels_show_the_metrics(tmp_path, drawn):
  rng = np.random.default_rng(0)
  steps = np.arange(1, 501) * 10
  metrics = {
    name: (steps, rng.random(500))
    for name in (
      "train/loss",
      "train/cross_entropy",
      "train/accuracy",
      "train/learning_rate",
      "train/images_per_second",
    )
  }
  evaluated = np.array([2000, 4000]), np.array([0.7, 0.8])
  metrics["lfw/accuracy"] = metrics["cfp_fp/accuracy"] = evaluated
  metrics["lfw/accuracy_std"] = metrics["lfw/auc"] = evaluated
  metrics["train/loss"][1][7] = np.nan
  path = tmp_path / "training.png"
  plots.plot_training(RunFile(str(path)), metrics)
  check_picture(path, 3 * 4.5 * 150)
  panels = drawn["training.png"]
  lines = [
    {
      line.get_label(): line.get_xydata().T
      for line in ax.get_lines()
      if not line.get_label().startswith("_")
    }
    for ax in panels
  ]
  assert [list(names) for names in lines] == [
    ["train/loss", "train/cross_entropy"],
    ["train/accuracy"],
    ["lfw/accuracy", "cfp_fp/accuracy"],
    ["train/learning_rate"],
    ["train/images_per_second"],
    [],  # The place that is left over.
  ]
  assert not panels[5].axison
  np.testing.assert_array_equal(lines[2]["lfw/accuracy"], evaluated)
  np.testing.assert_array_equal(
    lines[3]["train/learning_rate"], metrics["train/learning_rate"]
  )
  # Means of ten neighbours, of loss without the value that is not finite.
  finite = np.delete(metrics["train/loss"][1], 7)
  means = np.lib.stride_tricks.sliding_window_view(finite, 9).mean(axis=1)
  np.testing.assert_allclose(lines[0]["train/loss"][1], means)
  values = metrics["train/accuracy"]
  means = [
    np.lib.stride_tricks.sliding_window_view(v, 10).mean(axis=1) for v in values
  ]
  np.testing.assert_allclose(lines[1]["train/accuracy"], means)
  # All steps behind them, pale.
  (pale,) = [
    line for line in panels[1].get_lines() if line.get_label()[0] == "_"
  ]
  np.testing.assert_array_equal(pale.get_xydata().T, values)


def test_a_panel_for_every_kind_of_metric(tmp_path, drawn):
  names = [
    name
    for curves in figures.TRAINING
    for name in curves.metrics
    if name != "/accuracy"
  ]
  metrics = {
    name: (np.array([1, 2]), np.array([0.5, 0.1 * place]))
    for place, name in enumerate(names, 1)
  }
  path = tmp_path / "training.png"
  plots.plot_training(RunFile(str(path)), metrics)
  check_picture(path, 3 * 4.5 * 150)
  panels = drawn["training.png"]
  shown = [line.get_label() for ax in panels for line in ax.get_lines()]
  assert sorted(shown) == sorted(metrics)


def test_a_log_without_training_is_refused(tmp_path):
  metrics = {"lfw/auc": (np.array([1]), np.array([0.5]))}
  with pytest.raises(InputError, match="none of the metrics"):
    plots.plot_training(RunFile(str(tmp_path / "training.png")), metrics)


def make_pairs(seed, count, positives):
  rng = np.random.default_rng(seed)
  same = np.arange(count) % positives == 0
  scores = np.clip(rng.normal(same * 0.5, 0.2), -1, 1)
  first, second = rng.integers(0, 100, (2, count))
  return scores, same, count_scores(scores, same, first, second), first, second


def evaluated(name, **fields):
  return Evaluation(
    name=name, headline="", metrics={}, intervals={}, facts={}, **fields
  )


def test_roc_lines_are_tar_at_far(tmp_path, drawn):
  scores, same, many, *_ = make_pairs(1, 4000, 2)
  *_, few, _, _ = make_pairs(2, 40, 2)
  plots.plot_evaluations(
    PictureFolder(str(tmp_path)),
    [evaluated("a/many", score_counts=many)],
    {"few": RocLine.of(few.curve)},
  )
  assert sorted(one.name for one in tmp_path.iterdir()) == [
    "hardest_a_many.png",
    "roc.png",
    "scores_a_many.png",
  ]
  check_picture(tmp_path / "roc.png", 6.4 * 150)
  (ax,) = drawn["roc.png"]
  many_line, few_line = ax.get_lines()
  fars, tars = many_line.get_xydata().T
  assert fars[0] == 1 / 2000
  assert fars[-1] == 1
  assert {0.001, 0.01, 0.1} < set(fars)
  assert few_line.get_xdata()[0] == 1 / 20
  assert ax.get_xscale() == "log"
  assert ax.get_xlim() == (1 / 2000, 1)
  negatives = np.sort(scores[~same])[::-1]
  for place in (0, 100, 500, 900):
    # Just above the first negative that may not pass.
    threshold = negatives[int(fars[place] * 2000 + 1e-9)]
    wanted = np.mean(scores[same] > threshold)
    assert tars[place] == pytest.approx(wanted)
  auc = roc(scores, same).auc()
  assert many_line.get_label() == f"a/many: TAR (AUC {auc:.4f})"


def test_ticks_say_what_they_stand_at(tmp_path, drawn):
  *_, score_counts, _, _ = make_pairs(1, 4000, 2)
  plots.plot_evaluations(
    PictureFolder(str(tmp_path)),
    [evaluated("a", score_counts=score_counts)],
    {},
  )
  (ax,) = drawn["roc.png"]
  texts = [one.get_text() for one in ax.get_xticklabels()]
  assert texts == ["0.001", "0.01", "0.1", "1"]
  np.testing.assert_allclose(ax.get_xticks(), [float(one) for one in texts])
  shares = [one.get_text() for one in ax.get_yticklabels()]
  assert shares[-1] == "100 %" and ax.get_ylim()[1] == 1
  np.testing.assert_allclose(
    100 * ax.get_yticks(), [float(one.removesuffix(" %")) for one in shares]
  )


def test_more_roc_lines_than_colours_differ(tmp_path, drawn):
  line = RocLine(np.array([0.1, 1]), np.array([0.5, 1]), 0.5)
  *_, score_counts, _, _ = make_pairs(2, 40, 2)
  others = {str(i): line for i in range(23)}
  plots.plot_evaluations(
    PictureFolder(str(tmp_path)),
    [evaluated("a", score_counts=score_counts)],
    others,
  )
  (ax,) = drawn["roc.png"]
  styles = {(one.get_color(), one.get_linestyle()) for one in ax.get_lines()}
  assert len(styles) == 24


@pytest.mark.parametrize("threshold", [0.25, None])
def test_histograms_count_each_kind(tmp_path, drawn, threshold):
  scores, same, score_counts, *_ = make_pairs(2, 900, 3)
  one = evaluated("a", score_counts=score_counts, threshold=threshold)
  plots.plot_evaluations(PictureFolder(str(tmp_path)), [one], {})
  check_picture(tmp_path / "scores_a.png", 6.4 * 150)
  (ax,) = drawn["scores_a.png"]
  negative, positive = ax.patches
  assert negative.get_label() == "two people (600 pairs)"
  assert positive.get_label() == "one person (300 pairs)"
  assert negative.get_facecolor()[:3] != positive.get_facecolor()[:3]
  every, edges = np.histogram(scores, 200, (-1, 1))
  filled = np.flatnonzero(every)
  first, last = filled[0], filled[-1]  # What is empty at both ends is left out.
  for patch, kind in ((negative, ~same), (positive, same)):
    counts, _ = np.histogram(scores[kind], 200, (-1, 1))
    drawn_heights, drawn_edges, _ = patch.get_data()
    np.testing.assert_allclose(
      drawn_heights, counts[first : last + 1] / kind.sum()
    )
    np.testing.assert_allclose(drawn_edges, edges[first : last + 2], atol=1e-12)
  marked = [list(line.get_xdata()) for line in ax.get_lines()]
  assert marked == ([] if threshold is None else [[0.25, 0.25]])


def test_hardest_pairs_have_their_numbers(tmp_path, drawn):
  scores, same, score_counts, first, second = make_pairs(3, 900, 3)
  plots.plot_evaluations(
    PictureFolder(str(tmp_path)),
    [evaluated("a", score_counts=score_counts)],
    {},
  )
  check_picture(tmp_path / "hardest_a.png", 9.0 * 150)
  left, right = drawn["hardest_a.png"]
  order = np.argsort(scores)
  lowest = [i for i in order if same[i]][:20]
  highest = [i for i in order[::-1] if not same[i]][:20]
  for ax, wanted in ((left, lowest), (right, highest)):
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"{first[i]} - {second[i]}" for i in wanted]
    (points,) = ax.collections
    np.testing.assert_array_equal(
      points.get_offsets(), np.c_[scores[wanted], ax.get_yticks()]
    )
    assert ax.yaxis_inverted()
    assert ax.get_xlim()[0] <= 0 <= ax.get_xlim()[1]


def test_cmc_is_drawn_from_rank_1(tmp_path, drawn):
  nobody = np.array([], np.float32)
  found = Identification(
    ranks=np.array([2, 1, 3, 1]),
    mate_scores=np.full(4, 0.5, np.float32),
    subjects=np.arange(4),
    other_scores=nobody,
    other_subjects=nobody.astype(int),
    gallery_size=3,
  )
  one = evaluated("lfw", searches={"all": found})
  plots.plot_evaluations(PictureFolder(str(tmp_path)), [one], {})
  assert [p.name for p in tmp_path.iterdir()] == ["cmc_lfw.png"]
  check_picture(tmp_path / "cmc_lfw.png", 6.4 * 150)
  (line,) = drawn["cmc_lfw.png"][0].get_lines()
  np.testing.assert_array_equal(
    line.get_xydata(), np.c_[[1, 2, 3], [0.5, 0.75, 1.0]]
  )
  assert line.get_label() == "all: found (rank 1 50.00%)"


def test_margins_against_class_size(tmp_path, drawn):
  rng = np.random.default_rng(3)
  sizes = np.r_[1, 2000, rng.integers(2, 300, 198)]
  angular = 0.5 - 0.05 * np.log(sizes)
  path = tmp_path / "margins.png"
  margins = {"angular": angular, "cosine": np.full(200, 0.2)}
  plots.plot_margins(RunFile(str(path)), sizes, margins)
  check_picture(path, 9.0 * 150)
  left, right = drawn["margins.png"]
  assert left.get_title(loc="left") == (
    "Angular margin: rank correlation with class size -1.00"
  )
  assert right.get_title(loc="left").endswith("class size undefined")
  points = left.collections[0].get_offsets()
  order = np.argsort(-sizes, kind="stable")
  np.testing.assert_allclose(points, np.c_[sizes, angular][order], atol=1e-6)
  assert left.get_xscale() == "log"
  assert left.get_ylim()[0] == 0
  # Margin falls with size alone: its medians lie on the same straight line,
  # up to the mean of two middle classes.
  medians, high, low = left.get_lines()
  middle_sizes, middle_margins = medians.get_xydata().T
  np.testing.assert_allclose(
    middle_margins, 0.5 - 0.05 * np.log(middle_sizes), atol=2e-3
  )
  assert middle_sizes[0] == 1
  assert middle_sizes[-1] == 2000
  assert 8 <= len(middle_sizes) <= 12
  assert (high.get_ydata() >= middle_margins).all()
  assert (low.get_ydata() <= middle_margins).all()


def test_classes_of_one_size_can_be_drawn(tmp_path, drawn):
  margins = {"angular": np.linspace(0, 0.4, 5)}
  plots.plot_margins(RunFile(str(tmp_path / "m.png")), np.full(5, 7), margins)
  median, *_ = drawn["m.png"][0].get_lines()
  np.testing.assert_allclose(median.get_xydata(), [[7, 0.2]])


def test_drawing_leaves_no_global_state(tmp_path):
  before = dict(matplotlib.rcParams)
  *_, score_counts, _, _ = make_pairs(4, 40, 2)
  plots.plot_evaluations(
    PictureFolder(str(tmp_path)),
    [evaluated("a", score_counts=score_counts)],
    {},
  )
  assert dict(matplotlib.rcParams) == before
  code = (
    "import sys; import jamsface_jax.reports.plots;"
    "assert 'matplotlib' not in sys.modules;"
    "import jamsface_jax.reports.png;"
    "assert 'matplotlib.pyplot' not in sys.modules;"
    "assert 'jax' not in sys.modules"
  )
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
