"""Launches are noted one a line and read back."""

import json
import pathlib
import shlex
import subprocess
import sys

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.run import launches as launches_lib
from jamsface_jax.run.launches import commit, note_launch, read_launches
from jamsface_jax.storage.run_directory import RunDirectory

FACTS = {
  "total_steps": 12,
  "data_fingerprint": "0123",
  "parameters": 7,
  "devices": 1,
  "device_kind": "cpu",
  "platform": "cpu",
}


def test_every_launch_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "x", "--a=b c"])
  assert read_launches(RunDirectory(str(tmp_path))) == []
  note_launch(RunDirectory(str(tmp_path)), FACTS | {"first": 0})
  note_launch(RunDirectory(str(tmp_path)), FACTS | {"first": 8})
  found = read_launches(RunDirectory(str(tmp_path)))
  assert [one["first"] for one in found] == [0, 8]
  for one in found:
    assert shlex.split(one["command"]) == ["python", "-m", "x", "--a=b c"]
    assert one["versions"]["python"] == sys.version.split()[0]
    assert "jax" in one["versions"] and one["time"][:2] == "20"


def test_a_line_cut_off_is_left_out_another_is_refused(tmp_path):
  note_launch(RunDirectory(str(tmp_path)), FACTS | {"first": 0})
  path = tmp_path / "starts.jsonl"
  whole = path.read_text()
  path.write_text(whole + '{"first": 8, "comm')
  assert len(read_launches(RunDirectory(str(tmp_path)))) == 1
  for other in ("7", "{}", json.dumps({"first": 0, "time": "2026"})):
    path.write_text(f"{other}\n{whole}")
    with pytest.raises(InputError, match="starts.jsonl:1: is not a start"):
      read_launches(RunDirectory(str(tmp_path)))


def test_the_commit_is_that_of_this_code(tmp_path, monkeypatch):
  def git(*command):
    subprocess.run(
      ["git", "-c", "user.name=a", "-c", "user.email=b", *command],
      cwd=tmp_path,
      check=True,
      capture_output=True,
    )

  place = tmp_path / "package" / "starts.py"
  place.parent.mkdir()
  place.write_bytes(pathlib.Path(launches_lib.__file__).read_bytes())
  monkeypatch.setattr(launches_lib, "__file__", str(place))
  assert commit() is None  # No repository.
  git("init", "--quiet")
  git("commit", "--quiet", "--allow-empty", "--message=x")
  assert commit() is None  # That of something else.
  git("add", ".")
  git("commit", "--quiet", "--message=y")
  head = subprocess.run(
    ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True
  ).stdout
  assert head.startswith(commit()) and len(commit()) == 12
  place.write_text("other")
  assert commit() == f"{head[:12]}-dirty"
