"""Where the value of a setting came from."""

import re
from collections.abc import Sequence

from jamsface_jax.settings.names import values
from jamsface_jax.settings.sections import Settings


def overridden(command: Sequence[str]) -> set[str]:
  """The settings that a command line sets, "--config.data.threads=4" say."""
  found = (re.match(r"--?(?:no)?config\.([\w.]+)", one) for one in command)
  return {match[1] for match in found if match}


def source_of(name: str, value: object, command: Sequence[str]) -> str:
  """Where the value of a setting came from.

  Args:
    name: "data.threads", say.
    value: what the run has.
    command: words of the command line of the run.

  Returns:
    "command line", "recipe" or "default".
  """
  if name in overridden(command):
    return "command line"
  return "recipe" if value != values(Settings())[name] else "default"
