"""Reads JSON that a stranger may have written."""

import json
from typing import Any

import msgspec


def parse(text: str | bytes) -> Any:
  """Parses a text; memory stays below 32 times its bytes.

  Args:
    text: JSON, with NaN and infinities as Python writes them.

  Raises:
    ValueError: it is not JSON, or nested too deeply for Python's reader.
  """
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("lists or objects are nested too deeply") from None


def typed(value: Any, kind: Any) -> Any:
  """Returns what `parse` gave as what it should be.

  Args:
    value: parsed JSON.
    kind: a data class or another type that annotations can have (`list[int]`,
      which is no `type`), down to the last number; members that it does not
      know are passed over.

  Raises:
    ValueError: it is something else; says what, and where in it.
  """
  try:
    return msgspec.convert(value, kind)
  except msgspec.ValidationError as error:
    raise ValueError(str(error)) from None
