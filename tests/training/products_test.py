"""What a run leaves for people, and for whom it does not."""

import os
import re

import numpy as np
import pytest

from jamsface_jax.data.sources import NoiseSource
from jamsface_jax.errors import InputError
from jamsface_jax.head.parameters import ANGULAR, COSINE
from jamsface_jax.run.components import make_head
from jamsface_jax.run.margin_curve import read_curve
from jamsface_jax.run.progress import StepProgress
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.products import Products, measure_margins

SETTINGS = replaced(Settings(), {"head.learn_cosine": False})
SOURCE = NoiseSource(12, 37, 32)
HEAD = make_head(SETTINGS, 12, 37)
# Of 12 real classes and of padded ones, which count for nothing.
FALLING = np.concatenate([-SOURCE.class_sizes, np.full(4, 9)]).astype("float32")
MARGINS = {ANGULAR: FALLING, COSINE: FALLING}


@pytest.fixture
def run_directory(tmp_path):
  run = RunDirectory(str(tmp_path / "w"))
  check_or_save(SETTINGS, run)
  return run


def products(run):
  return Products(run, SOURCE, HEAD, StepProgress(9, 0, quiet=False))


def test_margins_are_measured_among_real_classes():
  sizes = SOURCE.class_sizes
  over_images = -(sizes.astype(float) ** 2).sum() / sizes.sum()
  assert measure_margins(MARGINS, sizes, HEAD) == {
    "train/margin_angular_image_mean": pytest.approx(over_images),
    "train/margin_angular_rank": pytest.approx(-1),
    "train/margin_angular_by_size": pytest.approx(1),
    "train/margin_cosine_image_mean": pytest.approx(over_images),
  }


def test_margins_that_are_made_anew_are_measured_too():
  anew = {"margin_rule": "concentration", "learn_angular": False}
  settings = replaced(SETTINGS, {f"head.{k}": v for k, v in anew.items()})
  found = measure_margins(
    MARGINS, SOURCE.class_sizes, make_head(settings, 12, 37)
  )
  for kind in ("angular", "cosine"):
    assert found[f"train/margin_{kind}_rank"] == pytest.approx(-1)
    assert found[f"train/margin_{kind}_by_size"] == pytest.approx(1)


def test_margins_by_class_size_are_written_and_read_again(run_directory):
  products(run_directory).write_report(3, MARGINS, [])
  path = run_directory.margin_curve.path
  for kind in ("angular", "cosine"):
    points = read_curve(path, kind)
    assert [n for n, _ in points] == sorted({*SOURCE.class_sizes.tolist()})
    assert all(value == -n for n, value in points)


def test_a_table_of_margins_that_is_not_there(tmp_path):
  with pytest.raises(InputError, match="is no file: give the margins.csv"):
    read_curve(str(tmp_path / "margins.csv"), "angular")


@pytest.mark.parametrize(
  "lines, complaint",
  [
    (["images,angular"], "the first line must be"),
    (["images,classes,angular,cosine"], "has no line below its header"),
    (["images,classes,angular,cosine", "2,1,0.1"], ":2: has 3 fields"),
    (["images,classes,angular,cosine", "2,1,x,0.1"], ":2: '2,1,x,0.1' is not"),
    (["images,classes,angular,cosine", "0,1,0.1,0.1"], "at least 1"),
    (["images,classes,angular,cosine", "2,1,nan,0.1"], "is not of numbers"),
    (
      ["images,classes,angular,cosine", "2,1,0.1,0.1", "2,1,0.1,0.1"],
      ":3: 2 images come after 2: sort the lines",
    ),
  ],
)
def test_other_tables_of_margins_are_refused(tmp_path, lines, complaint):
  path = tmp_path / "margins.csv"
  path.write_text("\n".join([*lines, ""]))
  with pytest.raises(InputError, match=re.escape(complaint)):
    read_curve(str(path), "angular")


def test_page_and_card_are_written_but_not_over_an_edited_card(
  run_directory, capsys
):
  products(run_directory).write_report(3, MARGINS, [])
  assert "<html" in run_directory.report.read_text()
  assert run_directory.results.read_json()["embeddings"] == {"step": 3}
  assert list(run_directory.classes.read_json()["margins"]) == ["angular"]
  assert "[author]" in run_directory.model_card.read_text()
  run_directory.model_card.write_text("mine")
  products(run_directory).write_report(6, MARGINS, [])
  assert run_directory.model_card.read_text() == "mine"
  assert run_directory.results.read_json()["embeddings"] == {"step": 6}
  assert capsys.readouterr().out == ""


def test_what_goes_wrong_is_said(run_directory, capsys):
  run_directory.metrics.write_text("no metrics\n")
  products(run_directory).write_report(3, MARGINS, [])
  out = capsys.readouterr().out
  assert out.startswith("step 3: report.html was not written (")
  assert out.endswith("; the run goes on.\n")
  with pytest.raises(InputError, match="is not an object of numbers"):
    products(run_directory).plot(MARGINS, [])


def test_a_process_that_does_not_write_leaves_nothing(run_directory):
  before = os.listdir(run_directory.path)
  silent = products(run_directory.without_writing())
  silent.plot(MARGINS, [])
  silent.write_report(3, MARGINS, [])
  assert os.listdir(run_directory.path) == before
