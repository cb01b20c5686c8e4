"""Flags for XLA, and programs that are compiled once."""

import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

from jamsface_jax.devices.compiling import cache_in, make_deterministic


def test_deterministic_flags_join_those_of_the_user(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b=2")
  make_deterministic()
  assert os.environ["XLA_FLAGS"].split() == [
    "--xla_a=1",
    "--xla_b=2",
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_exclude_nondeterministic_ops=true",
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


def start(workdir):
  """A tiny run from its first step on; the programs that it found compiled."""
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  del environment["JAX_COMPILATION_CACHE_DIR"]
  shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "jamsface_jax.main",
      "--config=configs/demo.py:tiny",
      f"--workdir={workdir}",
      "--log_level=debug",
    ],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = re.findall(r"compilation cache hit for '(\w+)'", done.stderr)
  last = [line for line in done.stdout.splitlines() if line[:8] == "step 5/5"]
  return set(found), last[0].split(",")[0]


@pytest.mark.slow
def test_the_second_start_compiles_nothing_that_takes_long(tmp_path):
  found, loss = start(tmp_path)
  assert "jit_train_step" not in found
  found, again = start(tmp_path)
  assert {"jit_init", "jit_train_step"} <= found and again == loss
  # Killed while it was written: then it is compiled again.
  (path,) = tmp_path.glob("compiled/*/jit_train_step*")
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  found, again = start(tmp_path)
  assert "jit_init" in found and "jit_train_step" not in found
  assert again == loss


@pytest.fixture
def no_cache():
  """JAX as it is where nobody asked for a cache."""
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update(names[0], None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_cache_lies_in_the_work_directory(no_cache, tmp_path):
  cache_in(str(tmp_path / "w" / "compiled"))
  path = jax.config.jax_compilation_cache_dir
  assert os.path.dirname(path) == str(tmp_path / "w" / "compiled")
  assert not (tmp_path / "w").exists()
  cache_in(str(tmp_path / "other"))  # The first stays.
  assert jax.config.jax_compilation_cache_dir == path


def test_a_place_that_is_closed_gets_no_cache(no_cache, monkeypatch, tmp_path):
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  cache_in(str(tmp_path / "compiled"))
  assert jax.config.jax_compilation_cache_dir is None


def test_programs_of_other_processors_lie_apart(
  no_cache, monkeypatch, tmp_path
):
  places = set()
  for features in ("flags : avx", "flags : avx avx512f", "Features : neon"):
    monkeypatch.setattr(
      "pathlib.Path.read_text", lambda *_, f=features: f"model : 1\n{f}\n"
    )
    jax.config.update("jax_compilation_cache_dir", None)
    cache_in(str(tmp_path / "compiled"))
    places.add(jax.config.jax_compilation_cache_dir)
  assert len(places) == 3
