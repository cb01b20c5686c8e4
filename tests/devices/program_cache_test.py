"""Compiled programs lie where the user alone can write, and nowhere else."""

import os
import re
import shutil
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl.testing import flagsaver
from jax.experimental import compilation_cache

from jamsface_jax import embed, evaluate, main
from jamsface_jax.devices import program_cache
from jamsface_jax.devices.program_cache import keep_programs

SETTINGS = {
  "jax_compilation_cache_dir": None,
  "jax_compilation_cache_max_size": -1,
  "jax_persistent_cache_min_compile_time_secs": 0,
}


@pytest.fixture
def home(monkeypatch, tmp_path):
  """JAX as it is where nobody asked for a cache, and a user's caches."""
  before = {name: getattr(jax.config, name) for name in SETTINGS}
  for name, value in SETTINGS.items():
    jax.config.update(name, value)
  compilation_cache.compilation_cache.reset_cache()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  # This process has eight devices, a user's has one; kept_programs_test.py has
  # a process of eight.
  monkeypatch.setattr(program_cache, "_has_several_cpu_devices", lambda: False)
  yield tmp_path / "home"
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.compilation_cache.reset_cache()


def times(factor):
  """Compiles and runs a program of its own."""

  def program(x):
    return x * factor

  return float(jax.jit(program)(jnp.float32(1)))


def plant(directory):
  """Leaves the machine code of times(3) where times(2) looks for its own."""
  jax.config.update("jax_compilation_cache_dir", str(directory))
  times(2.0)
  (asked,) = directory.glob("jit_program*-cache")
  times(3.0)
  (given,) = {*directory.glob("jit_program*-cache")} - {asked}
  given.replace(asked)
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.compilation_cache.reset_cache()


def test_what_is_planted_would_run(home, tmp_path):
  """The trap of the test below is one: JAX vouches for itself."""
  plant(tmp_path / "planted")
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "planted"))
  assert times(2.0) == 3.0


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("command", ["main", "embed", "evaluate"])
def test_no_program_of_a_work_directory_is_run(
  home, command, monkeypatch, tmp_path
):
  workdir = tmp_path / "stranger"
  plant(workdir / "compiled" / program_cache._processor())
  plant(workdir / "compiled")
  found = []

  def work(*args, **kwargs):
    found.append(times(2.0))
    sys.exit(0)

  module, name, flags = {
    "main": (main, "train", ["--config=configs/demo.py:tiny"]),
    "embed": (embed, "embed", ["--images=I", "--output=O"]),
    "evaluate": (evaluate, "judge_network", ["--data=D"]),
  }[command]
  monkeypatch.setattr(module, name, work)
  monkeypatch.setattr(sys, "argv", [command, f"--workdir={workdir}", *flags])
  with flagsaver.flagsaver(), pytest.raises(SystemExit):
    module.main()
  assert found == [2.0]


def test_the_place_is_the_users_alone(home):
  keep_programs()
  place = jax.config.jax_compilation_cache_dir
  assert os.path.dirname(place) == str(home / "jamsface_jax" / "compiled")
  while place != str(home.parent):
    assert stat.S_IMODE(os.stat(place).st_mode) == 0o700
    place = os.path.dirname(place)


def test_what_the_user_gave_jax_stays(home, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  assert not home.exists()


@pytest.mark.parametrize(
  ("spoil", "why"),
  [
    (lambda place: place.chmod(0o770), "others may write to"),
    (lambda place: place.chmod(0o707), "others may write to"),
    (lambda place: place.parent.chmod(0o777), "all may write to"),
    (lambda place: shutil.move(place, f"{place}2"), None),
    (
      lambda place: (
        shutil.move(place, f"{place}2"),
        place.symlink_to(f"{place}2"),
      ),
      "is not a directory",
    ),
    (
      lambda place: (shutil.rmtree(place), place.write_text("")),
      "is not a directory",
    ),
    (lambda place: os.chown(place, 12345, -1), "is another user's"),
    (lambda place: os.chown(place.parent, 12345, -1), "is another user's"),
    (lambda place: place.chmod(0o755), None),
  ],
  ids="group all above gone link file owner owner_above seen".split(),
)
def test_a_place_that_others_could_write_to_is_not_read(
  home, capsys, spoil, why
):
  place = home / "jamsface_jax"
  place.mkdir(parents=True, mode=0o700)
  try:
    spoil(place)
  except PermissionError:
    pytest.skip("only root can give a directory away")
  keep_programs()
  warning = capsys.readouterr().err
  if why is None:
    assert jax.config.jax_compilation_cache_dir and not warning
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
  else:
    assert jax.config.jax_compilation_cache_dir is None
    assert why in warning and warning.count("\n") == 1


def test_who_has_no_home_is_told(home, monkeypatch, capsys, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # To be ignored, it says.
  monkeypatch.setenv("HOME", str(tmp_path / "user"))
  keep_programs()
  place = jax.config.jax_compilation_cache_dir
  assert place.startswith(str(tmp_path / "user" / ".cache" / "jamsface_jax"))
  jax.config.update("jax_compilation_cache_dir", None)
  (tmp_path / "closed").write_text("")
  monkeypatch.setenv("HOME", str(tmp_path / "closed"))
  keep_programs()
  assert jax.config.jax_compilation_cache_dir is None
  assert "JAX_COMPILATION_CACHE_DIR" in capsys.readouterr().err


def test_it_is_bounded_though_a_kill_left_half_an_entry(home, monkeypatch):
  keep_programs()
  place = home / jax.config.jax_compilation_cache_dir
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  times(5.0)
  (entry,) = place.glob("jit_program*-cache")
  most = 3 * entry.stat().st_size
  # Killed between the two files of an entry.
  (place / f"{entry.name.removesuffix('-cache')}-atime").unlink()
  for name, value in SETTINGS.items():
    jax.config.update(name, value)
  compilation_cache.compilation_cache.reset_cache()
  monkeypatch.setattr(program_cache, "_MOST_BYTES", most)
  keep_programs()
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  for factor in range(6, 12):
    times(float(factor))
  sizes = [path.stat().st_size for path in place.glob("*-cache")]
  assert len(sizes) >= 2 and sum(sizes) <= most


def test_programs_of_other_processors_lie_apart(home, monkeypatch):
  places = set()
  for features in ("flags : avx", "flags : avx avx512f", "Features : neon"):
    monkeypatch.setattr(
      "pathlib.Path.read_text", lambda *_, f=features: f"model : 1\n{f}\n"
    )
    jax.config.update("jax_compilation_cache_dir", None)
    keep_programs()
    places.add(jax.config.jax_compilation_cache_dir)
  assert len(places) == 3


def start(workdir, home):
  """A tiny run from its first step on; the programs that it found compiled."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "XDG_CACHE_HOME": str(home),
  }
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
  workdir, home = tmp_path / "w", tmp_path / "home"
  found, loss = start(workdir, home)
  assert "jit_train_step" not in found
  # Wherever the work directory has been moved to.
  workdir = workdir.rename(tmp_path / "moved")
  found, again = start(workdir, home)
  assert {"jit_init", "jit_train_step"} <= found and again == loss
  assert not any("-cache" in path.name for path in workdir.rglob("*"))
  # Killed while it was written: then it is compiled again.
  (path,) = home.rglob("jit_train_step*-cache")
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  found, again = start(workdir, home)
  assert "jit_init" in found and "jit_train_step" not in found
  assert again == loss
