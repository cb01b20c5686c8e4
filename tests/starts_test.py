"""Starts are noted one a line and read back."""

import shlex
import sys

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.starts import note_start, read_starts


def test_every_start_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "x", "--a=b c"])
  assert read_starts(str(tmp_path)) == []
  note_start(str(tmp_path), {"first": 0})
  note_start(str(tmp_path), {"first": 8})
  starts = read_starts(str(tmp_path))
  assert [one["first"] for one in starts] == [0, 8]
  for one in starts:
    assert shlex.split(one["command"]) == ["python", "-m", "x", "--a=b c"]
    assert one["versions"]["python"] == sys.version.split()[0]
    assert "jax" in one["versions"] and one["time"][:2] == "20"


def test_a_line_cut_off_is_left_out_another_is_refused(tmp_path):
  note_start(str(tmp_path), {"first": 0})
  path = tmp_path / "starts.jsonl"
  whole = path.read_text()
  path.write_text(whole + '{"first": 8, "comm')
  assert len(read_starts(str(tmp_path))) == 1
  path.write_text("7\n" + whole)
  with pytest.raises(InputError, match="starts.jsonl:1: is not a start"):
    read_starts(str(tmp_path))
