"""What a run leaves for people, and for whom it does not."""

import os

import numpy as np
import pytest

from jamsface_jax.data.sources import NoiseSource
from jamsface_jax.errors import InputError
from jamsface_jax.head.parameters import ANGULAR, COSINE
from jamsface_jax.run.components import make_head
from jamsface_jax.run.progress import StepProgress
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.products import Products, rank_margins

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


def test_learned_margins_are_ranked_among_real_classes():
  ranks = rank_margins(MARGINS, SOURCE.class_sizes, HEAD)
  assert ranks == {"train/margin_angular_rank": pytest.approx(-1)}


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
