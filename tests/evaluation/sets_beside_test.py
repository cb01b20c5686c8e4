"""Recipes evaluate on the sets that lie beside their training data."""

import os

import pytest

from jamsface_jax.data import records
from jamsface_jax.evaluation.sets_beside import choose_beside
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.training import summary


@pytest.fixture
def folder(tmp_path):
  """Two data sets, and a folder that is none."""
  for name in ("lfw", "agedb_30"):
    (tmp_path / name).mkdir()
    (tmp_path / name / records.INDEX_FILE).write_bytes(b"")
  (tmp_path / "cfp_fp").mkdir()
  return tmp_path


def settings(folder, **changes):
  beside = "lfw,cfp_fp,agedb_30"
  changes = {"evaluation.beside": beside, **changes}
  data = {"data.directory": f"{folder}/ms1m_v3/,elsewhere/casia"}
  return replaced(Settings(), data | changes)


def test_those_that_are_there_are_taken_and_the_others_named(folder):
  chosen, missing = choose_beside(settings(folder))
  assert chosen.evaluation.data == f"{folder}/lfw,{folder}/agedb_30"
  assert missing == [os.path.join(folder, "cfp_fp")]
  text = summary.not_evaluated(missing)
  assert f"{folder}/cfp_fp" in text and "data_prep.from_bin" in text


@pytest.mark.parametrize(
  "changes",
  [
    {"evaluation.data": "data/lfw"},
    {"evaluation.beside": ""},
    {"data.directory": ""},
  ],
)
def test_what_is_set_is_left_alone(folder, changes):
  given = settings(folder, **changes)
  assert choose_beside(given) == (given, [])
