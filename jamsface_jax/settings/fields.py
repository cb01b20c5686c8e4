"""What a setting is: a default, a meaning and a limit, all of them data."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from jamsface_jax.errors import InputError

Value = TypeVar("Value")

# Refuses a value of the setting of a name, such as "head.scale".
Limit = Callable[[str, Any], None]


def setting(default: Value, meaning: str, limit: Limit | None = None) -> Value:
  """Declares a field of a section.

  Args:
    default: its value where nobody gives another.
    meaning: a phrase that says to a stranger what it does.
    limit: refuses values that cannot be meant, whatever the other settings.
  """
  return dataclasses.field(
    default=default, metadata={"meaning": meaning, "limit": limit}
  )


@dataclasses.dataclass(frozen=True)
class Section:
  """Settings of one subject, which refuse what cannot be meant when made.

  Attributes:
    PREFIX: what comes before its fields in the names of settings, "head." say.

  Raises:
    InputError: names the setting, what is wrong, and what it may be.
  """

  PREFIX: ClassVar[str] = ""

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      limit = field.metadata.get("limit")
      if limit:
        limit(self.PREFIX + field.name, getattr(self, field.name))
    self.check()

  def check(self) -> None:
    """Refuses settings that do not go together."""


def positive(name: str, value: float) -> None:
  """The limit of a number that must be above 0; NaN is not."""
  if not value > 0:
    raise InputError(f"{name}={value} must be above 0.")


def not_negative(name: str, value: float) -> None:
  """The limit of a number that must be 0 or more."""
  if not value >= 0:
    raise InputError(f"{name}={value} must not be negative.")


def share(name: str, value: float) -> None:
  """The limit of a probability or another share of a whole."""
  if not 0 <= value <= 1:
    raise InputError(f"{name}={value} must be between 0 and 1.")


def one_of(*choices: str) -> Limit:
  """The limit of a word that has to be one of these."""

  def limit(name: str, value: str) -> None:
    if value not in choices:
      raise InputError(
        f"{name}={value!r} is unknown: use one of {', '.join(choices)}."
      )

  return limit
