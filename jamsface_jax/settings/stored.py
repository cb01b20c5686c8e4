"""`config.json`, the settings of a run in its directory."""

import dataclasses
import json
import os

from jamsface_jax.errors import InputError
from jamsface_jax.settings.names import flatten, settings_from, values
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory

# A resumed run may change these; they do not change what is learned. What
# `data.directory` holds is compared by content, not by path.
_FREE = (
  "mesh",
  "checkpoint",
  "evaluation",
  "log_every",
  "data.threads",
  "data.directory",
  "profile_steps",
  "wandb",
)


def check_or_save(settings: Settings, run: RunDirectory) -> None:
  """Compares the settings with the stored ones, or stores them if none are.

  Args:
    settings: what this run was started with.
    run: the run's directory, made if missing.

  Raises:
    InputError: the directory is that of a run with other settings, or cannot
      be written to.
  """
  if run.config.exists():
    _check_same(settings, run)
  else:
    text = json.dumps(dataclasses.asdict(settings), indent=2, sort_keys=True)
    try:
      run.create()
      run.config.write_text(text + "\n")
    except OSError as error:
      raise InputError(
        f"--workdir={run.path!r} cannot be written to ({error.strerror}):"
        " choose another directory."
      ) from None


def read_settings(run: RunDirectory) -> Settings:
  """Reads the settings that a run was started with.

  Raises:
    InputError: the directory is not that of a run.
  """
  path = run.config.path
  try:
    stored = run.config.read_json()
    if not isinstance(stored, dict):
      raise ValueError("it is no object")
  except FileNotFoundError:
    raise InputError(
      f"{run.path!r} is not a work directory (it has no"
      f" {os.path.basename(path)}): give the --workdir of a training run."
    ) from None
  except ValueError as error:
    raise InputError(
      f"{path!r} is damaged ({error}): restore it or choose another --workdir."
    ) from None
  try:
    return settings_from(flatten(stored))
  except KeyError as error:
    raise InputError(
      f"{path!r} has the setting {error.args[0]!r}, which this version does not"
      " know: use the version that wrote it."
    ) from None
  except TypeError as error:
    raise InputError(
      f"{path!r} has {error} in this version: use the version that wrote it."
    ) from None


def _check_same(settings: Settings, run: RunDirectory) -> None:
  stored, asked = values(read_settings(run)), values(settings)
  conflicts = [
    f"{name} is {stored[name]!r} there and {asked[name]!r} here"
    for name in sorted(asked)
    if stored[name] != asked[name]
    and not any(name == free or name.startswith(free + ".") for free in _FREE)
  ]
  if conflicts:
    raise InputError(
      f"the run in {run.path!r} has other settings ({'; '.join(conflicts)}):"
      " choose another --workdir or give the same settings."
    )
