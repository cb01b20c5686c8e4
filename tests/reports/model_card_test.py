"""The model card says what the run's files say, in the form of the hub."""

import dataclasses
import json
import re

import pytest
import yaml
from conftest import assert_one_sentence
from report_test import evaluation, make_run, synthetic_copy

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.groups import GroupResult
from jamsface_jax.protocols import results
from jamsface_jax.reports import model_card
from jamsface_jax.run import launches
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.storage.run_directory import RunDirectory

SECTIONS = [
  "Model",
  "Intended use",
  "Out of scope",
  "How to use it",
  "Training data",
  "Training",
  "Evaluation",
  "Limits and risks",
  "Ethics and law",
  "Versions",
  "Citation",
]


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  return make_run(
    tmp_path / "w", command=["--config=configs/x.py"], monkeypatch=monkeypatch
  )


def written(workdir):
  run = RunDirectory(str(workdir))
  model_card.write(run, run.model_card)
  text = run.model_card.read_text()
  _, head, body = text.split("---\n", 2)
  assert not re.search(r"\$\w", body)  # Nothing of the template is left.
  return yaml.safe_load(head), body


def rows_below(body, title):
  """The cells of the first table of a section."""
  section = re.split(r"^#+ ", body.split(f"# {title}\n", 1)[1], flags=re.M)[0]
  lines = [line for line in section.splitlines() if line.startswith("|")]
  return [
    [cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")]
    for line in lines
  ][2:]


def test_the_head_is_what_the_hub_accepts(workdir):
  """By the rules of the hub's documentation of model cards."""
  head, body = written(workdir)
  assert head["license"] == "unknown"
  assert {"library_name", "pipeline_tag"} < set(head)
  assert all(isinstance(tag, str) for tag in head["tags"])
  (model,) = head["model-index"]
  (result,) = model["results"]
  assert model["name"] == "w" and result["task"]["type"]
  assert re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", result["dataset"]["type"])
  assert result["metrics"] == [
    {"type": "accuracy", "value": 0.91},
    {"type": "accuracy_std", "value": 0.01},
  ]
  assert re.findall(r"^## (.*)$", body, re.M) == SECTIONS


def test_numbers_are_those_of_the_run(workdir):
  _, body = written(workdir)
  assert "Trained for 100 steps." in body
  assert "\npython -m main --config=configs/x.py\n" in body
  assert rows_below(body, "### lfw".strip("# ")) == [
    ["lfw/accuracy", "0.910000", "0.9000 to 0.9200"],
    ["lfw/accuracy_std", "0.010000", ""],
  ]
  data = dict(rows_below(body, "Training data"))
  sizes = [max(200 // k, 1) for k in range(1, 101)]
  assert data["identities"] == "100" and data["images"] == str(sum(sizes))
  share = sum(sizes[:10]) / sum(sizes)
  assert data["images of the largest tenth"] == f"{share:.1%} of all"
  assert f"here they have {min(sizes)} to {max(sizes)}" in body
  assert "angular, rank correlation with the number of images -1.00" in body
  versions = dict(rows_below(body, "Versions"))
  (start,) = launches.read_launches(RunDirectory(str(workdir)))
  assert versions["commit"] == (start["commit"] or "not known")
  assert versions["jax"] == start["versions"]["jax"]
  assert dict(rows_below(body, "Training"))["head.scale"] == "32.0"
  assert "**[author]**" in body


def test_the_last_start_and_all_hours_count(workdir):
  (start,) = launches.read_launches(RunDirectory(str(workdir)))
  start |= {"command": "python -m main --again", "commit": "abc1234"}
  RunDirectory(str(workdir)).launches.append_line(json.dumps(start))
  (workdir / "goodput.json").write_text('{"step": 7000.0, "startup": 200.0}')
  _, body = written(workdir)
  assert "\npython -m main --again\n" in body
  assert dict(rows_below(body, "Versions"))["commit"] == "abc1234"
  assert "Wall time of all starts: 2.00 h." in body


def test_what_was_not_measured_is_said(workdir):
  _, body = written(workdir)
  assert "There are no intervals" not in body
  metrics = {"lfw/accuracy": 0.9, "lfw/tar@1e-5": None}
  one = dataclasses.replace(evaluation("lfw"), metrics=metrics, intervals={})
  results.write_results(
    RunDirectory(str(workdir)).results, [one], {"step": 100}
  )
  _, body = written(workdir)
  assert "There are no intervals" in body
  assert ["lfw/tar@1e-5", "not measured", ""] in rows_below(body, "lfw")


def test_groups_of_people(workdir):
  _, body = written(workdir)
  assert "no test set has groups of people" in body
  groups = [
    GroupResult("x|y", 7, 40, 1300, {"fmr@1e-1": 0.2}, {"fmr@1e-1": (0.1, 1)})
  ]
  one = dataclasses.replace(evaluation("lfw"), groups=groups)
  results.write_results(
    RunDirectory(str(workdir)).results, [one], {"step": 100}
  )
  _, body = written(workdir)
  assert "no test set has groups of people" not in body
  assert "| number | group x\\|y |" in body
  assert ["fmr@1e-1", "0.2000 [0.1000, 1.0000]"] in rows_below(
    body, "Groups of people"
  )


def test_a_card_that_was_edited_stays(workdir, run):
  path = workdir / "model_card.md"
  directory = RunDirectory(str(workdir))
  assert not model_card.is_edited(directory.model_card)
  written(workdir)
  assert not model_card.is_edited(directory.model_card)
  for change in ("mine", ""):
    text = path.read_text().replace("**[author]** name", change, 1)
    if not change:
      text = "all of it is mine\n"
    path.write_text(text)
    with pytest.raises(InputError, match="was edited"):
      model_card.write(directory, directory.model_card)
    assert path.read_text() == text
  done = run("jamsface_jax.model_card", workdir)
  assert_one_sentence(done, "model_card.md' was edited", "--output")
  other = workdir / "README.md"
  flags = f"--workdir={workdir}", f"--output={other}"
  done = run("jamsface_jax.model_card", *flags)
  assert done.returncode == 0 and "[author]" in done.stdout
  assert "91.00%" in other.read_text()


def test_a_run_that_has_just_begun(tmp_path):
  check_or_save(Settings(), RunDirectory(str(tmp_path)))
  head, body = written(tmp_path)
  assert "model-index" not in head
  assert "After 0 steps." in body and "Not evaluated" in body
  assert "images of noise" in body


def test_people_are_told_from_drawings(dataset, tmp_path, monkeypatch):
  settings = {"data.directory": f"{dataset},/gone"}
  workdir = make_run(tmp_path / "w", monkeypatch=monkeypatch, **settings)
  rows = dict(rows_below(written(workdir)[1], "Training data"))
  assert rows[f"people of {dataset}"] == "people"
  assert rows["people of /gone"].startswith("not known")
  synthetic_copy(dataset, tmp_path / "drawn", True)
  assert model_card._people(str(tmp_path / "drawn")).startswith("nobody")


def test_it_needs_no_work_directory_to_say_what_is_wrong(run, tmp_path):
  done = run("jamsface_jax.model_card", tmp_path)
  assert_one_sentence(done, "is not a work directory")
