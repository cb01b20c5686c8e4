"""What an output was made with: kept beside it, compared by who goes on.

A command that goes on where it was interrupted, or finds its work done, must
not mix the results of one input with those of another.
"""

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.whole_file import written_whole

PLAN_FILE = "plan.json"


def conflicts(
  stored: Mapping[str, Any],
  wanted: Mapping[str, Any],
  free: Collection[str] = (),
) -> str:
  """What two plans differ in, for people.

  Args:
    stored: JSON values by name, as they were kept.
    wanted: those of this time.
    free: names that may differ.

  Returns:
    Such as "size is 112 there and 128 here; ...", "" if they agree.
  """
  return "; ".join(
    f"{name} is {stored.get(name)!r} there and {wanted.get(name)!r} here"
    for name in {**stored, **wanted}
    if stored.get(name) != wanted.get(name) and name not in free
  )


def read_plan(path: str, flag: str) -> dict[str, Any]:
  """Reads a plan.

  Args:
    path: the file.
    flag: what its directory was given by, for the message.

  Raises:
    InputError: it is damaged, or not there.
  """
  try:
    with open(path, encoding="utf-8", opener=plain) as file:
      found = plain_json.parse(file.read())
    if not isinstance(found, dict):
      raise ValueError("not an object")
    return found
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(
      f"{path!r} is damaged ({one_line(error)}): choose another {flag}."
    ) from None


def write_plan(path: str, plan: Mapping[str, Any]) -> None:
  """Keeps a plan; it is on the disk when this returns."""
  with written_whole(path) as file:
    json.dump(plan, file, indent=2)
    file.write("\n")


def keep_plan(directory: str, plan: Mapping[str, Any], *, what: str) -> bool:
  """Keeps the plan of an output, or compares it with the one that is there.

  Args:
    directory: the output, --output of the command, which is held.
    plan: JSON values that decide what comes out.
    what: the output, for the message: "faces".

  Returns:
    Whether there was a plan, the same.

  Raises:
    InputError: the output was made with another one.
  """
  path = os.path.join(directory, PLAN_FILE)
  wanted = json.loads(json.dumps(plan))
  if not os.path.lexists(path):
    write_plan(path, wanted)
    return False
  if different := conflicts(read_plan(path, "--output"), wanted):
    raise InputError(
      f"--output {directory!r} holds {what} that were made otherwise"
      f" ({different}): choose another directory, or give the same input and"
      " flags."
    )
  return True
