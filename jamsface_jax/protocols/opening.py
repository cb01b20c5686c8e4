"""Which protocols lie in a data set, or in a file of their own."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.all_pairs import ALL_PAIRS
from jamsface_jax.protocols.groups_file import open_groups
from jamsface_jax.protocols.pair_list import PairList
from jamsface_jax.protocols.pairs_file import read_pairs
from jamsface_jax.protocols.search_file import (
  SEARCH_FILE,
  has_search,
  is_search,
  read_search,
)
from jamsface_jax.protocols.search_set import SearchSet
from jamsface_jax.protocols.template_files import (
  has_templates,
  read_templates,
)
from jamsface_jax.protocols.template_set import TemplateSet
from jamsface_jax.protocols.test_set import TestSet


def open_protocols(
  name: str,
  directory: str,
  count: int,
  names: Callable[[], Sequence[str]],
  labels: Callable[[], Int[np.ndarray, " n"]],
) -> list[TestSet]:
  """Opens the protocols that lie in a data set.

  Args:
    name: the name of the data set, that of its test sets too.
    directory: the directory of the data set.
    count: how many images it has.
    names: gives the paths of its images.
    labels: gives the class of each, integers [N].

  Returns:
    At least one.

  Raises:
    InputError: none is there, or one that does not fit.
  """
  found: list[TestSet] = []
  path = os.path.join(directory, records.PAIRS_FILE)
  if os.path.exists(path):
    pairs = read_pairs(path, names())
    found.append(PairList(name, pairs, labels(), open_groups(directory)))
  if has_templates(directory):
    found.append(TemplateSet(name, read_templates(directory, count, names)))
  if has_search(directory):
    path = os.path.join(directory, SEARCH_FILE)
    found.append(SearchSet(name, read_search(path, names())))
  if not found:
    raise InputError(
      f"data set {directory!r} has no {records.PAIRS_FILE}, no templates and no"
      f" {SEARCH_FILE}: write it again with 'data_prep.from_folder"
      " --pairs=FILE', or compare all its images with"
      f" '{directory}:{ALL_PAIRS}'."
    )
  return found


def open_list(path: str, names: Sequence[str]) -> TestSet:
  """Opens a protocol in a file of its own: a search.csv, or else pairs.

  Args:
    path: the file; its stem is the name of the set.
    names: the paths of the images.

  Raises:
    InputError: it cannot be read, or does not fit the images.
  """
  name = os.path.splitext(os.path.basename(path))[0]
  if is_search(path):
    return SearchSet(name, read_search(path, names))
  return PairList(name, read_pairs(path, names), labels=None)
