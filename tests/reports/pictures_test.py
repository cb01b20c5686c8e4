"""The pictures hold the numbers, and the files are pictures."""

import pathlib
import subprocess
import sys

import cv2
import matplotlib
import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.roc import RocLine, roc
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.reports import pictures


@pytest.fixture
def drawn(monkeypatch):
  """The figures as they are saved, by name of the file."""
  figures = {}
  save = pictures._save

  def keep(canvas, path):
    saved = save(canvas, path)
    figures[saved.name] = canvas
    return saved

  monkeypatch.setattr(pictures, "_save", keep)
  return figures


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
    )
  }
  evaluated = np.array([2000, 4000]), np.array([0.7, 0.8])
  metrics["lfw/accuracy"] = metrics["cfp_fp/accuracy"] = evaluated
  metrics["lfw/accuracy_std"] = metrics["lfw/auc"] = evaluated
  metrics["train/loss"][1][7] = np.nan
  path = pictures.plot_training(metrics, tmp_path / "training.png")
  check_picture(path, 2 * 4.2 * 150)
  panels = drawn["training.png"].axes
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
    ["train/accuracy", "lfw/accuracy", "cfp_fp/accuracy"],
    ["train/learning_rate"],
    [],  # The place that is left over.
  ]
  assert not panels[3].axison
  np.testing.assert_array_equal(lines[1]["lfw/accuracy"], evaluated)
  np.testing.assert_array_equal(
    lines[2]["train/learning_rate"], metrics["train/learning_rate"]
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


def test_six_panels_for_a_run_with_margins(tmp_path, drawn):
  names = [name for _, names, _ in pictures._PANELS for name in names]
  metrics = {
    name: (np.array([1, 2]), np.array([0.5, 0.4]))
    for name in names
    if name != "/accuracy"
  }
  path = pictures.plot_training(metrics, tmp_path / "training.png")
  check_picture(path, 3 * 4.2 * 150)
  panels = drawn["training.png"].axes
  shown = [line.get_label() for ax in panels for line in ax.get_lines()]
  assert sorted(shown) == sorted(metrics)


def test_a_log_without_training_is_refused(tmp_path):
  metrics = {"lfw/auc": (np.array([1]), np.array([0.5]))}
  with pytest.raises(InputError, match="none of the metrics"):
    pictures.plot_training(metrics, tmp_path / "training.png")


def make_pairs(seed, count, positives):
  rng = np.random.default_rng(seed)
  same = np.arange(count) % positives == 0
  scores = np.clip(rng.normal(same * 0.5, 0.2), -1, 1)
  first, second = rng.integers(0, 100, (2, count))
  return scores, same, count_scores(scores, same, first, second), first, second


def test_roc_lines_are_tar_at_far(tmp_path, drawn):
  scores, same, many, *_ = make_pairs(1, 4000, 2)
  *_, few, _, _ = make_pairs(2, 40, 2)
  lines = {
    "many": RocLine.of(many.curve),
    "few": RocLine.of(few.curve),
  }
  path = pictures.plot_roc(lines, tmp_path / "roc.png")
  check_picture(path, 6.4 * 150)
  (ax,) = drawn["roc.png"].axes
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
  assert many_line.get_label() == f"many   AUC {roc(scores, same).auc():.4f}"


def test_more_roc_lines_than_colours_differ(tmp_path, drawn):
  line = RocLine(np.array([0.1, 1]), np.array([0.5, 1]), 0.5)
  pictures.plot_roc({str(i): line for i in range(13)}, tmp_path / "roc.png")
  (ax,) = drawn["roc.png"].axes
  styles = {(one.get_color(), one.get_linestyle()) for one in ax.get_lines()}
  assert len(styles) == 13


@pytest.mark.parametrize("threshold", [0.25, None])
def test_histograms_count_each_kind(tmp_path, drawn, threshold):
  scores, same, score_counts, *_ = make_pairs(2, 900, 3)
  path = pictures.plot_scores(score_counts, threshold, tmp_path / "scores.png")
  check_picture(path, 6.4 * 150)
  (ax,) = drawn["scores.png"].axes
  negative, positive = ax.patches
  assert negative.get_label() == "different people (600 pairs)"
  assert positive.get_label() == "same person (300 pairs)"
  for patch, kind in ((negative, ~same), (positive, same)):
    counts, edges = np.histogram(scores[kind], 200, (-1, 1))
    drawn_heights, drawn_edges, _ = patch.get_data()
    np.testing.assert_allclose(drawn_heights, counts / kind.sum())
    np.testing.assert_allclose(drawn_edges, edges, atol=1e-12)
  marked = [list(line.get_xdata()) for line in ax.get_lines()]
  assert marked == ([] if threshold is None else [[0.25, 0.25]])


def test_hardest_pairs_have_their_numbers(tmp_path, drawn):
  scores, same, score_counts, first, second = make_pairs(3, 900, 3)
  check_picture(
    pictures.plot_hardest(score_counts, tmp_path / "h.png"), 9.0 * 150
  )
  left, right = drawn["h.png"].axes
  order = np.argsort(scores)
  lowest = [i for i in order if same[i]][:20]
  highest = [i for i in order[::-1] if not same[i]][:20]
  for ax, wanted in ((left, lowest), (right, highest)):
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"{first[i]} - {second[i]}" for i in wanted]
    points = ax.get_lines()[0].get_xdata()
    np.testing.assert_array_equal(points, scores[wanted])
    assert ax.yaxis_inverted()


def test_cmc_is_drawn_from_rank_1(tmp_path, drawn):
  rates = np.array([0.5, 0.75, 1.0])
  path = pictures.plot_cmc({"lfw": rates}, tmp_path / "cmc.png")
  check_picture(path, 6.4 * 150)
  (line,) = drawn["cmc.png"].axes[0].get_lines()
  np.testing.assert_array_equal(line.get_xydata(), np.c_[[1, 2, 3], rates])
  assert line.get_label() == "lfw   rank 1 50.00%"


def test_margins_against_class_size(tmp_path, drawn):
  rng = np.random.default_rng(3)
  sizes = np.r_[1, 2000, rng.integers(2, 300, 198)]
  angular = 0.5 - 0.05 * np.log(sizes)
  path = pictures.plot_margins(
    sizes, angular, np.full(200, 0.2), tmp_path / "margins.png"
  )
  check_picture(path, 9.0 * 150)
  left, right = drawn["margins.png"].axes
  assert left.get_title(loc="left").endswith("rank correlation -1.00")
  assert right.get_title(loc="left").endswith("rank correlation undefined")
  points = left.collections[0].get_offsets()
  np.testing.assert_array_equal(points, np.c_[sizes, angular])
  assert left.get_xscale() == "log"
  # Margin falls with size alone: its medians lie on the same straight line,
  # up to the mean of two middle classes.
  (line,) = left.get_lines()
  middle_sizes, middle_margins = line.get_xydata().T
  np.testing.assert_allclose(
    middle_margins, 0.5 - 0.05 * np.log(middle_sizes), atol=2e-3
  )
  assert middle_sizes[0] == 1
  assert middle_sizes[-1] == 2000
  assert 8 <= len(middle_sizes) <= 12


def test_classes_of_one_size_can_be_drawn(tmp_path, drawn):
  margins = np.linspace(0, 0.4, 5)
  pictures.plot_margins(np.full(5, 7), margins, margins, tmp_path / "m.png")
  (line,) = drawn["m.png"].axes[0].get_lines()
  np.testing.assert_allclose(line.get_xydata(), [[7, 0.2]])


def test_drawing_leaves_no_global_state(tmp_path):
  before = dict(matplotlib.rcParams)
  *_, score_counts, _, _ = make_pairs(4, 40, 2)
  pictures.plot_scores(score_counts, 0.5, tmp_path / "s.png")
  assert dict(matplotlib.rcParams) == before
  code = (
    "import sys; import jamsface_jax.reports.pictures;"
    "assert 'matplotlib.pyplot' not in sys.modules;"
    "assert 'jax' not in sys.modules"
  )
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
