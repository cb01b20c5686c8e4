"""Commands that are suggested do what they say, whatever is in a name."""

import os
import shlex
import subprocess
import sys

import pytest

from data_prep import align
from data_prep.writing import conversion
from jamsface_jax import shell
from jamsface_jax.detection.alignment import TEMPLATE
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training import summary

# A shell would take each of them apart, or run it.
NAMES = ["a b", "$(touch x)", "it's", 'say "x"', "a;b", "*", "-x", "tab\tname"]


@pytest.fixture(autouse=True)
def _activated(monkeypatch):
  """The shell finds the Python that runs this."""
  path = os.path.dirname(sys.executable)
  monkeypatch.setenv("PATH", path, prepend=os.pathsep)


def install(folder, *names):
  """Makes programs of these names in a folder."""
  folder.mkdir()
  for name in names:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
  return str(folder)


def test_an_environment_that_is_not_activated(tmp_path, monkeypatch):
  """Python goes by its path, which is short from where the user stands."""
  ours = install(tmp_path / "bin", "python", "jamsface")
  monkeypatch.setenv("PATH", install(tmp_path / "other", "python"))
  monkeypatch.setattr(sys, "executable", f"{ours}/python")
  assert shell.command("jamsface_jax.embed") == (
    f"{ours}/python -m jamsface_jax.embed"
  )
  monkeypatch.chdir(tmp_path)
  assert shell.command("jamsface_jax.embed") == (
    "bin/python -m jamsface_jax.embed"
  )
  monkeypatch.setenv("PATH", ours)
  assert shell.command("jamsface_jax.embed") == "python -m jamsface_jax.embed"


@pytest.mark.parametrize(
  ("module", "word"),
  [
    ("jamsface_jax.embed", "embed"),
    ("jamsface_jax.main", "train"),
    ("data_prep.from_folder", "from_folder"),
  ],
)
def test_who_typed_the_script_types_it_again(
  module, word, tmp_path, monkeypatch
):
  ours = install(tmp_path / "bin", "python", "jamsface")
  typed = [f"{ours}/python", f"{ours}/jamsface", "x"]
  monkeypatch.setattr(sys, "orig_argv", typed)
  monkeypatch.chdir(tmp_path)
  assert shell.command(module, "--a=b c") == f"bin/jamsface {word} '--a=b c'"
  monkeypatch.setenv("PATH", ours)
  assert shell.command(module) == f"jamsface {word}"


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_hands_over_the_words(name, tmp_path):
  line = shell.command("m", f"--output={name}", name)
  echo = line.replace("python -m m", "printf '%s\\n'", 1)
  done = subprocess.run(
    ["sh", "-c", echo], capture_output=True, text=True, cwd=tmp_path, check=True
  )
  assert done.stdout == f"--output={name}\n{name}\n"
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_conversions_and_runs(name):
  lines = [
    conversion.training_command(name, 30),
    conversion.evaluation_command(name),
    *(
      line.removeprefix("next:").strip()
      for line in summary.closing(RunDirectory(name), 1, []).splitlines()
      if "python -m" in line
    ),
  ]
  assert len(lines) == 5
  for line in lines:
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    assert any(word.endswith(f"={name}") for word in words)


def test_command_of_align(image_folder, tmp_path, capsys):
  output = str(tmp_path / "it's here")
  align.align(
    str(image_folder / "images"),
    output,
    lambda *_: TEMPLATE * 40 / 112,  # Of the size of the images.
    origin={},
    size=32,
    extension="png",
    skip_bad=False,
    threads=1,
  )
  line = capsys.readouterr().out.splitlines()[-1]
  assert shlex.split(line)[4] == f"--input={output}"
