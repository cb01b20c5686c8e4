"""How a run was started, each time: command, versions, devices."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from jamsface_jax.errors import InputError
from jamsface_jax.version import __version__

STARTS_FILE = "starts.jsonl"

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
)


def note_start(workdir: str, facts: Mapping[str, Any]) -> None:
  """Appends a start to `W/starts.jsonl`.

  Args:
    workdir: of the run.
    facts: JSON values about it.
  """
  start = {
    "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    "command": shlex.join(sys.orig_argv),
    "versions": {
      "jamsface_jax": __version__,
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    },
    "commit": commit(),
    "system": platform.platform(),
    **facts,
  }
  path = os.path.join(workdir, STARTS_FILE)
  with open(path, "a", encoding="utf-8") as file:
    file.write(json.dumps(start) + "\n")


def commit() -> str | None:
  """The commit that this code is of, with "-dirty" if it was changed.

  Returns:
    None where that is not known: git is missing, or the code is installed and
    not in a repository of its own.
  """
  package = pathlib.Path(__file__).parent
  git = ["git", "-C", str(package)]
  try:
    # An installed package may lie in the repository of something else.
    for command in (
      [*git, "ls-files", "--error-unmatch", "starts.py"],
      [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
    ):
      done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def read_starts(workdir: str) -> list[dict[str, Any]]:
  """Reads the starts of a run, in order; none of one that noted none.

  Raises:
    InputError: the file is damaged.
  """
  path = os.path.join(workdir, STARTS_FILE)
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8") as file:
    lines = file.readlines()
  starts = []
  for number, line in enumerate(lines, start=1):
    try:
      starts.append(dict(json.loads(line)))
    except (ValueError, TypeError):
      if not line.endswith("\n"):  # Cut off while it was written.
        break
      raise InputError(
        f"{path}:{number}: is not a start of a run; delete the line."
      ) from None
  return starts
