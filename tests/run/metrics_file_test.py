"""What a run logged is read back, torn lines included."""

import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.run.metrics_file import drop_after, read_metrics, read_scores
from jamsface_jax.storage.run_directory import RunFile


def test_read_metrics(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text(
    '{"step": 10, "train/loss": 3.5}\n'
    '{"step": 20, "train/loss": 3, "lfw/tar@1e-4": null}\n'
    "\n"
    '{"step": 30, "train/loss": NaN}\n'
    '{"step": 20, "train/loss": 2.5, "lfw/accuracy": 0.5}\n'  # Resumed.
    '{"step": 40, "train/lo'
  )
  metrics = read_metrics(RunFile(str(path)))
  assert set(metrics) == {"train/loss", "lfw/accuracy", "lfw/tar@1e-4"}
  wanted = {
    "train/loss": ([10, 20, 30], [3.5, 2.5, np.nan]),
    "lfw/accuracy": ([20], [0.5]),
    "lfw/tar@1e-4": ([20], [np.nan]),
  }
  for name, (steps, values) in wanted.items():
    assert metrics[name][0].dtype == np.int64
    np.testing.assert_array_equal(metrics[name][0], steps)
    np.testing.assert_array_equal(metrics[name][1], values)


@pytest.mark.parametrize(
  "line", ["{", "[1]", '{"train/loss": 1}', '{"step": 1, "a": "b"}', "7"]
)
def test_broken_metrics_are_refused(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "a": 2}\n' + line + "\n")
  with pytest.raises(InputError, match="metrics.jsonl:2: is not an object"):
    read_metrics(RunFile(str(path)))
  path.write_text('{"step": 1, "a": 2}\n' + line)  # Cut off.
  assert list(read_metrics(RunFile(str(path)))) == ["a"]


def test_missing_metrics_are_refused(tmp_path):
  with pytest.raises(InputError, match="No such file"):
    read_metrics(RunFile(str(tmp_path / "metrics.jsonl")))


LINES = [
  '{"step": 1, "train/loss": 3.0}\n',
  '{"step": 2, "train/loss": 2.0}\n',
  '{"step": 2, "lfw/auc": 0.5, "lfw/eer": null}\n',
  '{"step": 3, "train/loss": 1.0, "lfw/auc": null}\n',
  '{"step": 4, "lfw/auc": 0.9}\n',
  '{"step": 5, "lfw/auc": 1.0',  # Torn.
]


def test_lines_after_the_step_to_go_on_from_are_dropped(tmp_path):
  file = RunFile(str(tmp_path / "metrics.jsonl"))
  assert drop_after(file, 2) == set() and not file.exists()
  file.write_text("".join(LINES))
  assert drop_after(file, 9) == set()
  assert file.read_lines() == LINES[:5]
  assert drop_after(file, 2) == {"step", "train/loss", "lfw/auc", "lfw/eer"}
  assert file.read_lines() == LINES[:3]


def test_lines_of_finished_steps_that_are_lost_are_missed(tmp_path, capsys):
  """Half a file is left, of which the last line is torn."""
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 2, "train/loss": 2.0}\n{"step": 3, "tra')
  assert drop_after(RunFile(str(path)), 2)  # A kill did it, after step 2.
  assert capsys.readouterr().err == ""
  path.write_text('{"step": 2, "train/loss": 2.0}\n{"step": 3, "tra')
  assert drop_after(RunFile(str(path)), 4) == set()
  assert "is cut off at step 3: curves lack what followed, up to step 4" in (
    capsys.readouterr().err
  )


def test_scores_are_those_that_were_measured(tmp_path):
  file = RunFile(str(tmp_path / "metrics.jsonl"))
  assert read_scores(file, "lfw/auc") == {}
  file.write_text("".join(LINES))
  assert read_scores(file, "lfw/auc") == {2: 0.5, 4: 0.9}


def test_broken_lines_are_set_aside(tmp_path, capsys):
  """A resumed run goes on, and nothing is lost."""
  path = tmp_path / "metrics.jsonl"
  whole = b'{"step": 1, "train/loss": 2.0}\n'
  broken = [b"[1, 2]\n", b"{}\n", b'{"step": "x"}\n', b"\xff\xfe\n", b"7\n"]
  path.write_bytes(whole + b"".join(broken) + b'{"step": 1, "a": 3}\n{"st')
  file = RunFile(str(path))
  assert read_scores(file, "a") == {1: 3}
  assert drop_after(file, 1) == {"step", "train/loss", "a"}
  assert path.read_bytes() == whole + b'{"step": 1, "a": 3}\n'
  assert "5 lines that are no metrics" in capsys.readouterr().err
  aside = tmp_path / "metrics.jsonl.set_aside"
  assert aside.read_bytes() == b"".join(broken)


def test_a_line_after_a_torn_one_is_whole(tmp_path):
  file = RunFile(str(tmp_path / "lines"))
  (tmp_path / "lines").write_bytes(b"torn")
  file.append_line("one")
  file.append_line("two")
  assert (tmp_path / "lines").read_bytes() == b"torn\none\ntwo\n"
