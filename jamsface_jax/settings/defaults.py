"""The ConfigDict that recipes and flags change, and the settings it becomes."""

import dataclasses

from ml_collections import ConfigDict

from jamsface_jax.settings.names import flatten, settings_from
from jamsface_jax.settings.sections import Settings


def base_config() -> ConfigDict:
  """Returns all settings with their defaults."""
  return ConfigDict(dataclasses.asdict(Settings()))


def make_settings(config: ConfigDict) -> Settings:
  """The settings of a recipe with its flags; below this nobody changes them.

  Args:
    config: made by `base_config` and changed since.

  Raises:
    InputError: settings that cannot be meant.
  """
  return settings_from(flatten(config.to_dict()))
