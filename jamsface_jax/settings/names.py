"""Settings by their names, such as "head.scale"."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jamsface_jax.settings.fields import Section
from jamsface_jax.settings.sections import Settings


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Turns nested mappings into one: {"data.threads": 2, ...}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def values(settings: Settings) -> dict[str, Any]:
  """The value of every setting by its name, in the order of the sections."""
  return flatten(dataclasses.asdict(settings))


def meanings() -> dict[str, str]:
  """What every setting means by its name, in the order of the sections."""
  return dict(_meanings(Settings()))


def _meanings(section: Section) -> Iterator[tuple[str, str]]:
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if isinstance(value, Section):
      yield from _meanings(value)
    else:
      yield section.PREFIX + field.name, field.metadata["meaning"]


def settings_from(named: Mapping[str, Any]) -> Settings:
  """The settings with these values; the others have their defaults.

  Args:
    named: values by name. Whole numbers may stand for fractions and lists, as
      JSON has them, for tuples.

  Raises:
    KeyError: there is no setting of a name.
    TypeError: a value is of another kind than the setting's default.
    InputError: settings that cannot be meant.
  """
  defaults = values(Settings())
  for name, value in named.items():
    defaults[name] = _as_kind_of(defaults[name], value, name)
  return _nested(Settings(), defaults)


def replaced(settings: Settings, changes: Mapping[str, Any]) -> Settings:
  """A copy of settings with some others; arguments and errors as above."""
  return settings_from({**values(settings), **changes})


def _as_kind_of(default: Any, value: Any, name: str) -> Any:
  if isinstance(default, float) and type(value) is int:
    try:
      return float(value)
    except OverflowError:
      raise TypeError(f"{name}, a number that no float holds,") from None
  if isinstance(default, tuple) and isinstance(value, list):
    return tuple(value)
  if not isinstance(value, type(default)):
    raise TypeError(f"{name}={value!r}, which is of another kind")
  return value


def _nested(section: Section, named: Mapping[str, Any]) -> Any:
  """A section of the class of another, with the values of its names."""
  given = {}
  for field in dataclasses.fields(section):
    inner = getattr(section, field.name)
    given[field.name] = (
      _nested(inner, named)
      if isinstance(inner, Section)
      else named[section.PREFIX + field.name]
    )
  return type(section)(**given)
