"""A small dose of benchmarks/chaos.py."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
  ("how", "kills", "steps"), [("KILL", 3, 150), ("TERM", 2, 100)]
)
def test_killed_run_equals_the_undisturbed(how, kills, steps, tmp_path):
  command = [
    sys.executable,
    "benchmarks/chaos.py",
    f"--kills={kills}",
    "--seed=1",
    f"--signal={how}",
    f"--steps={steps}",
    # As the documentation has it with a bucket; empty is its default.
    f"--workdir={tmp_path if how == 'TERM' else ''}",
  ]
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr
  assert "metrics of every step: equal" in done.stdout
  hit = re.search(r"(\d+) hit a save", done.stdout)
  assert how == "TERM" or int(hit[1]) >= 1
