"""Flags for XLA."""

import os

import pytest

from jamsface_jax.devices.compiling import make_deterministic


def test_deterministic_flags_join_those_of_the_user(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b=2")
  make_deterministic()
  assert os.environ["XLA_FLAGS"].split() == [
    "--xla_a=1",
    "--xla_b=2",
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_exclude_nondeterministic_ops=true",
    "--xla_gpu_autotune_level=0",
  ]


@pytest.mark.slow
def test_deterministic_run(run, tmp_path):
  """XLA aborts on flags that it does not know."""
  done = run(
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    f"--workdir={tmp_path / 'w'}",
    "--config.deterministic=True",
  )
  assert done.returncode == 0, done.stderr
