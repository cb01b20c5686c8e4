"""Commands that are suggested do what they say, whatever is in a name."""

import shlex
import subprocess

import pytest

from data_prep import align
from data_prep.writing import conversion
from jamsface_jax import shell
from jamsface_jax.detection.alignment import TEMPLATE
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training import summary

# A shell would take each of them apart, or run it.
NAMES = ["a b", "$(touch x)", "it's", 'say "x"', "a;b", "*", "-x", "tab\tname"]


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
    conversion.training_command(name, "configs/lfw_cpu.py"),
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
