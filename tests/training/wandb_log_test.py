"""Logging to Weights & Biases, by the package itself, without network."""

import json
import os
import struct
import subprocess
import sys

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.wandb_log import WandbLog

_TWO_STARTS = """
import sys
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.training.metric_writer import MetricWriter
from jamsface_jax.training.wandb_log import WandbLog
from jamsface_jax.storage.run_directory import RunDirectory
run = RunDirectory(sys.argv[1])
config = replaced(
  Settings(), {"wandb.project": "faces", "wandb.entity": "team"}
)
for first in (0, 1):
  writer = MetricWriter(run, first, WandbLog(config, run))
  for step in range(first + 1, first + 3):
    writer.write(step, {"train/loss": 1 / step, "x": float("nan")})
  writer.close()
"""


def records_of(path):
  """The records of W&B's file: LevelDB's log format after 7 bytes."""
  data, place, parts = path.read_bytes(), 7, []
  assert data[:4] == b":W&B"
  while place + 7 <= len(data):
    left = 32768 - place % 32768
    if left < 7:  # No room for a header: the next block.
      place += left
      continue
    _, length, kind = struct.unpack_from("<IHB", data, place)
    parts.append(data[place + 7 : place + 7 + length])
    place += 7 + length
    if kind in (1, 4):  # The whole of a record, or the end of one.
      yield b"".join(parts)
      parts = []


def kept(workdir):
  """Of each start, from W&B's files: names, settings, lines, their step.

  Names are those of run, project, team, and that which is shown.
  """
  from wandb.proto import wandb_internal_pb2

  found = []
  for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
    names, config, lines, axes = None, {}, [], {}
    for data in records_of(path):
      record = wandb_internal_pb2.Record()
      record.ParseFromString(data)
      if record.HasField("run"):
        one = record.run
        names = (one.run_id, one.project, one.entity, one.display_name)
        config |= {
          one.key: json.loads(one.value_json)
          for one in record.run.config.update
        }
      elif record.HasField("history"):
        lines.append(
          {
            "/".join(one.nested_key) or one.key: json.loads(one.value_json)
            for one in record.history.item
          }
        )
      elif record.HasField("metric"):
        one = record.metric
        axes[one.name or one.glob_name] = one.step_metric
    lines = [
      {k: v for k, v in line.items() if not k.startswith("_")} for line in lines
    ]
    found.append((names, config, lines, axes))
  return found


@pytest.fixture
def offline(monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.slow
def test_a_run_started_again_is_the_same_run_there(offline, tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", _TWO_STARTS, str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  (one, settings, first, axes), (two, _, second, _) = kept(tmp_path)
  run_id = (tmp_path / "wandb_id.txt").read_text().strip()
  assert one == two == (run_id, "faces", "team", tmp_path.name)
  assert settings["head"]["scale"] == 64.0
  assert axes["*"] == "step"
  assert first == [
    {"step": 1, "train/loss": 1.0},
    {"step": 2, "train/loss": 0.5},
  ]
  # The second start did step 2 again.
  assert [line["step"] for line in second] == [2, 3]


@pytest.mark.slow
def test_a_training_run_logs_what_it_keeps(offline, run, tmp_path):
  done = run(
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    f"--workdir={tmp_path}",
    "--config.wandb.project=faces",
  )
  assert done.returncode == 0, done.stderr
  ((_, _, lines, _),) = kept(tmp_path)
  ours = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert lines == [
    {k: v for k, v in json.loads(line).items() if v is not None}
    for line in ours
  ]
  assert len(lines) > 4


def test_it_is_imported_only_if_asked_for():
  code = (
    "import sys, jamsface_jax.training.train; sys.exit('wandb' in sys.modules)"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_the_package_the_fix_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)
  config = replaced(Settings(), {"wandb.project": "faces"})
  with pytest.raises(InputError, match=r"pip install 'jamsface-jax\[wandb\]'"):
    WandbLog(config, RunDirectory(str(tmp_path)))
  assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_without_a_login_the_fix_is_named(run, tmp_path, monkeypatch):
  monkeypatch.delenv("WANDB_API_KEY", raising=False)
  monkeypatch.setenv("WANDB_MODE", "online")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  done = run(
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    f"--workdir={tmp_path / 'w'}",
    "--config.wandb.project=faces",
  )
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert "wandb.project='faces'" in last and "WANDB_MODE=offline" in last
