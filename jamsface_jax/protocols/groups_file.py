"""Which group each identity of a test set belongs to, in `groups.csv`.

A header `identity,group`, then a line for each identity: the class as
`classes.txt` has it, and a group such as `women` or `1950-1969`. What a group
is, the author of the test set says; results are given for each.
"""

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.storage.csv_tables import read_csv
from jamsface_jax.storage.whole_file import written_whole

GROUPS_FILE = "groups.csv"
_HEADER = ("identity", "group")


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
  """Groups of the classes of a data set.

  Attributes:
    names: what the groups are called, sorted.
    of_class: the group of each class, by its place in `names`, int64 [C].
  """

  names: tuple[str, ...]
  of_class: Int64[np.ndarray, " c"]


def read_groups(path: str, identities: Sequence[str]) -> dict[str, str]:
  """Reads the group of each of these identities.

  Args:
    path: the file; it may know further identities.
    identities: names of classes.

  Returns:
    The group by the identity, in the order of `identities`.

  Raises:
    InputError: not such a file, an identity without a group or with two.
  """
  found: dict[str, str] = {}
  for where, (identity, group) in read_csv(path, _HEADER):
    if not identity.strip() or not group.strip():
      raise InputError(
        f"{where}: a name is missing; write 'identity,group', with 'unknown'"
        " for a group that nobody knows."
      )
    if found.setdefault(identity, group) != group:
      raise InputError(
        f"{where}: {identity!r} is in {found[identity]!r} and in {group!r};"
        " keep one of the lines."
      )
  missing = [one for one in identities if one not in found]
  if missing:
    raise InputError(
      f"{path}: has no group for {missing[0]!r} and {len(missing) - 1} other"
      " identities of the data set; add a line for each, with 'unknown' for a"
      " group that nobody knows."
    )
  return {one: found[one] for one in identities}


def write_groups(directory: str, groups: Mapping[str, str]) -> None:
  """Writes `groups.csv` of a data set, whole or not at all.

  Args:
    directory: the directory of the data set.
    groups: the group of each class, by its name.
  """
  with written_whole(os.path.join(directory, GROUPS_FILE)) as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(groups.items())


def open_groups(directory: str) -> Groups | None:
  """The groups of a data set, None if it has none.

  Args:
    directory: the directory of the data set.

  Raises:
    InputError: see `read_groups`.
  """
  path = os.path.join(directory, GROUPS_FILE)
  if not os.path.exists(path):
    return None
  groups = read_groups(path, records.read_classes(directory))
  names, of_class = np.unique(list(groups.values()), return_inverse=True)
  return Groups(tuple(names.tolist()), of_class)
