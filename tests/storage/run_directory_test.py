"""The nouns of a run's directory: what they write, and what they do not."""

import json
import os

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.storage.run_directory import (
  EvaluationDirectory,
  RunDirectory,
  RunFile,
)


def run_at(path):
  return RunDirectory(str(path))


def test_what_is_written_is_read_back(tmp_path):
  file = run_at(tmp_path).config
  assert not file.exists()
  with pytest.raises(FileNotFoundError):
    file.read_text()
  file.write_json({"a": [1, "é"]}, indent=1)
  assert file.exists() and file.read_json() == {"a": [1, "é"]}
  assert file.read_lines()[0] == "{\n"
  with pytest.raises(ValueError, match="JSON"):
    file.write_json(float("nan"))
  assert file.read_json() == {"a": [1, "é"]}
  assert os.listdir(tmp_path) == ["config.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
  file = RunFile(str(tmp_path / "x"))
  file.write_text("before")
  with pytest.raises(KeyError), file.written_whole("wb") as stream:
    stream.write(b"after")
    raise KeyError
  assert file.read_text() == "before"


def test_lines_are_appended_and_may_be_cut_off(tmp_path):
  file = run_at(tmp_path).metrics
  file.append_line("one")
  file.append_line("two")
  with open(file.path, "a") as stream:
    stream.write("thr")
  assert file.read_lines() == ["one\n", "two\n", "thr"]
  file.sync()


def test_without_writing_reads_and_drops_what_is_written(tmp_path):
  run_at(tmp_path).config.write_text("{}")
  before = sorted(os.listdir(tmp_path))
  run = run_at(tmp_path).without_writing()
  assert not run.writes and run.config.read_text() == "{}"
  run.config.write_text("other")
  run.results.write_json([1])
  run.metrics.append_line("1")
  run.metrics.sync()
  run.plots.create()
  with run.plots.picture("a").written_whole("wb") as stream:
    stream.write(b"x")
  with run_at(tmp_path).held(), run.held():  # Another holds it.
    pass
  run_at(tmp_path / "new").without_writing().create()
  assert sorted(os.listdir(tmp_path)) == before
  assert run.config.read_text() == "{}"
  # Every process says what it knows of a loss that is not finite.
  run.not_finite(7, 1).write_json({"step": 7})
  name = "not_finite_7_process_1.json"
  assert json.loads((tmp_path / name).read_text()) == {"step": 7}


def test_a_directory_is_there_whole_or_not_at_all(tmp_path):
  run = run_at(tmp_path / "deep" / "w")
  with run.created_whole() as partial:
    partial.config.write_text("{}")
    assert not run.exists()
  assert run.config.read_text() == "{}"
  assert os.listdir(tmp_path / "deep") == ["w"]
  other = run_at(tmp_path / "v/")
  with pytest.raises(KeyError), other.created_whole():
    raise KeyError
  assert not other.exists()
  message = "v.partial' is left of an import that was interrupted"
  with pytest.raises(InputError, match=message), other.created_whole():
    pass


@pytest.mark.parametrize("flag", ["--workdir", "--fine_tune_from"])
def test_addresses_are_refused_by_the_flag_that_gave_them(flag):
  with pytest.raises(InputError, match=f"{flag}='s3://b/r' is an address"):
    RunDirectory("s3://b/r", flag=flag)


def test_pictures_of_sets_lie_in_one_folder(tmp_path):
  folder = EvaluationDirectory.beside(str(tmp_path / "e.npy")).plots
  assert folder.picture("roc_a/b").path == str(
    tmp_path / "evaluation" / "roc_a_b.png"
  )


def test_what_lies_in_the_wrong_place_is_set_aside(tmp_path, capsys):
  run = run_at(tmp_path)
  (tmp_path / "metrics.jsonl").mkdir()
  (tmp_path / "plots").write_text("a file")
  (tmp_path / "summary.txt").write_text("as it should be")
  run.set_misplaced_aside()
  assert sorted(os.listdir(tmp_path)) == [
    "metrics.jsonl.set_aside",
    "plots.set_aside",
    "summary.txt",
  ]
  assert capsys.readouterr().err.count("moved to") == 2
