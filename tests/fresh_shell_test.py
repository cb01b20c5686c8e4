"""README's commands, typed by somebody who has just opened a shell.

Nothing of the environment that the tests run in is there: no variable, no
interpreter on the path but the system's. This is in a clone with its `.venv`;
packaging_test does the same outside, where the wheel is installed.
"""

import re
import shlex
import shutil
import subprocess
import sys

import docs_test
import pytest
from docs_test import ROOT, world  # noqa: F401 (a fixture)

ACTIVATE = ". .venv/bin/activate"


def readme_commands():
  return [
    command
    for command in docs_test.find_commands()
    if command.page == "README.md" and docs_test.kind(command) == "run"
  ]


def as_typed(command, line):
  """A command with the script before it where the page has that."""
  if command.typed == command.line:
    return line
  words = [x for x in command.typed.split()[:2] if not x.startswith("-")]
  return re.sub(r"^python -m \S+", " ".join(words), line)


def type_all(lines, folder, home):
  """Types commands one after the other, each into a shell of its own.

  Returns:
    What became of the last one, a `subprocess.CompletedProcess`.
  """
  environment = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"}
  failed = []
  for line in lines:
    done = subprocess.run(
      ["sh", "-c", f"{ACTIVATE} && {shlex.join(shlex.split(line))}"],
      cwd=folder,
      env=environment,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=300,
    )
    if done.returncode:
      failed.append(f"{line}\n{done.stdout}{done.stderr}")
  assert not failed, "\n".join(failed)
  return done


def test_readme_says_how_to_activate():
  lines = [c.line for c in docs_test.find_commands() if c.page == "README.md"]
  assert lines.index(ACTIVATE) < min(
    lines.index(command.line) for command in readme_commands()
  )


@pytest.mark.slow
def test_in_a_clone(world, tmp_path):  # noqa: F811
  (world / "configs").unlink()
  for name in ("jamsface_jax", "data_prep", "configs"):
    shutil.copytree(ROOT / name, world / name)
  (world / ".venv").symlink_to(sys.prefix)
  lines = [
    as_typed(command, docs_test.smaller(command.line, f"shell{number}"))
    for number, command in enumerate(readme_commands())
  ]
  type_all([docs_test.DEMO, *lines], world, tmp_path)
