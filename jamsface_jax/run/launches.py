"""The launches of a run: command, versions, devices, each time."""

import datetime
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from jamsface_jax.errors import InputError
from jamsface_jax.run.versions import versions
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.version import __version__

# What every version has noted of a launch.
_ALWAYS = {
  "time",
  "command",
  "versions",
  "system",
  "total_steps",
  "data_fingerprint",
  "parameters",
  "devices",
  "device_kind",
  "platform",
}


def note_launch(run: RunDirectory, facts: Mapping[str, Any]) -> None:
  """Notes that this process launches the run, or goes on with it.

  Args:
    run: directory of the run.
    facts: JSON values about the launch.
  """
  launch = {
    "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    "command": shlex.join(sys.orig_argv),
    "versions": {
      "jamsface_jax": __version__,
      "python": platform.python_version(),
      **versions(),
    },
    "commit": commit(),
    "system": platform.platform(),
    **facts,
  }
  run.launches.append_line(json.dumps(launch))
  run.launches.sync()


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
      [*git, "ls-files", "--error-unmatch", pathlib.Path(__file__).name],
      [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
    ):
      done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def read_launches(run: RunDirectory) -> list[dict[str, Any]]:
  """Reads the launches of a run, in order; none of one that noted none.

  Raises:
    InputError: the file is damaged.
  """
  try:
    lines = run.launches.read_lines()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(
      f"{run.launches.path!r} cannot be read ({error.strerror or error}): move"
      " it away."
    ) from None
  launches = []
  for number, line in enumerate(lines, start=1):
    try:
      launch = dict(plain_json.parse(line))
      if missing := _ALWAYS.difference(launch):
        raise ValueError(f"{missing} are missing")
      launches.append(launch)
    except (ValueError, TypeError):
      if not line.endswith("\n"):  # Cut off while it was written.
        break
      raise InputError(
        f"{run.launches.path}:{number}: is not a start of a run; delete the"
        " line."
      ) from None
  return launches
