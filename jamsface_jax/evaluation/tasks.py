"""Test sets with the images that they need: what a network is judged on."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from jamsface_jax import shell
from jamsface_jax.data import records
from jamsface_jax.data.folders import walk
from jamsface_jax.data.sources import FolderSource, RecordSource, Source
from jamsface_jax.devices import processes
from jamsface_jax.embedding.embedder import Embedder
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.all_pairs import ALL_PAIRS, AllPairs
from jamsface_jax.protocols.opening import open_list, open_protocols
from jamsface_jax.protocols.test_set import (
  Divisible,
  Evaluation,
  JudgingSettings,
  TestSet,
  collected,
  with_left_out,
)

_NAMED = 3  # Broken images that are named, of however many.


@dataclasses.dataclass(frozen=True)
class Task:
  """A test set and where its images come from.

  Attributes:
    source: the images, by the numbers that the test set has for them.
    test_set: which of them it needs, and how it judges their embeddings.
  """

  source: Source
  test_set: TestSet

  def evaluate(
    self,
    embedder: Embedder,
    variables: dict[str, Any],
    settings: JudgingSettings,
    *,
    threads: int,
    judges: bool = True,
  ) -> list[Evaluation]:
    """Embeds the images on all devices and judges the embeddings.

    All processes must call it: each reads and embeds a part of every batch.

    Args:
      embedder: the embedder of the network.
      variables: the variables of the network.
      settings: how to judge.
      threads: how many batches of images are read at once.
      judges: whether this process does; False: it only embeds.

    Returns:
      Nothing if it does not judge.

    Raises:
      InputError: an image that cannot be read, or embeddings that cannot be
        compared.
    """
    blocks = self._embed(embedder, variables, threads)
    test_set, left_out = self.test_set, getattr(self.source, "left_out", {})
    if isinstance(self.source, FolderSource):
      # Which images are broken is known when all have been read.
      rows = collected(blocks, len(test_set.ids))
      broken = _find_broken(self.source, say=settings.plain)
      if broken:
        assert isinstance(test_set, Divisible)  # As all that judge folders.
        test_set, left_out = test_set.without(np.array(broken))
        rows = rows[np.isin(self.test_set.ids, test_set.ids)]
      blocks = iter([rows])
    if not judges:
      for _ in blocks:
        pass
      return []
    judged = test_set.judge(
      blocks, settings, what=f"embeddings of {test_set.name}"
    )
    return [with_left_out(one, left_out) for one in judged]

  def _embed(
    self, embedder: Embedder, variables: dict[str, Any], threads: int
  ) -> Iterator[Float32[np.ndarray, "n d"]]:
    ids = self.test_set.ids

    def read(numbers: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
      images, _ = self.source.read(ids[numbers])
      return images

    return embedder.embed(variables, read, len(ids), threads=threads)


def _find_broken(source: FolderSource, *, say: bool) -> list[int]:
  """The images that cannot be read.

  All processes must call it: each has read its share of the images.

  Args:
    source: the images, all of which have been asked for.
    say: whether process 0 names them.
  """
  mine = sorted(source.broken)
  # What is exchanged is small: reasons are of those that may be named.
  reasons = [source.broken[k] for k in mine[:_NAMED]]
  texts = processes.exchange(source.directory, json.dumps([mine, reasons]))
  broken: dict[int, str] = {}
  for numbers, why in map(json.loads, texts):
    broken |= dict.fromkeys(numbers, "")
    broken |= dict(zip(numbers, why, strict=False))  # Of the first, that is.
  if broken and say and jax.process_index() == 0:
    names = source.names()
    listed = [f"{names[k]!r} ({broken[k]})" for k in sorted(broken)[:_NAMED]]
    more = len(broken) - len(listed)
    print(
      f"note: {len(broken):,} of {len(names):,} images in {source.directory!r}"
      f" cannot be read and are left out: {', '.join(listed)}"
      + (f" and {more:,} more" if more else ""),
      file=sys.stderr,
    )
  return sorted(broken)


def open_tasks(data: str, image_size: int) -> list[Task]:
  """Opens test sets.

  Args:
    data: directories of data sets with a comma between; "" for none. With
      ':all_pairs' behind it, all images of one are compared.
    image_size: height and width that the network sees.

  Raises:
    InputError: not a data set, no protocol that fits, or two sets of one name.
  """
  tasks: dict[str, list[Task]] = {}
  for place in filter(None, data.split(",")):
    directory = place.removesuffix(f":{ALL_PAIRS}")
    _refuse_folder(directory)
    source = RecordSource(directory, image_size)
    if source.name in tasks:
      raise InputError(
        f"data set {directory!r} has the name {source.name!r} of another: write"
        " it again with another --name, since metrics are told apart by it."
      )
    if place == directory:
      found = open_protocols(
        source.name, source.directory, len(source), source.names, source.labels
      )
    else:
      found = [AllPairs(source.name, source.labels())]
    tasks[source.name] = [Task(source, one) for one in found]
  return [task for of_set in tasks.values() for task in of_set]


def _refuse_folder(directory: str) -> None:
  """Says what to do with a folder of images that is no data set."""
  is_data_set = os.path.exists(os.path.join(directory, records.INDEX_FILE))
  if is_data_set or not walk(directory).images:
    return
  raise InputError(
    f"{directory!r} is a folder of images and no data set: add"
    f" --protocol={ALL_PAIRS} to compare all of them, its sub-folders as"
    " people, or --protocol=FILE, a pairs.txt or a search.csv over their paths;"
    f" or make a data set of it with '{shell.name('data_prep.from_folder')}'."
  )


def open_folder_task(directory: str, protocol: str, image_size: int) -> Task:
  """Opens a folder of images as a test set.

  Args:
    directory: the folder.
    protocol: a pairs.txt or search.csv over the paths of its images, or
      "all_pairs", with its sub-folders as people.
    image_size: height and width that the network sees.

  Raises:
    InputError: no folder of images, or no protocol that fits.
  """
  if not os.path.isdir(directory):
    raise InputError(
      f"--data {directory!r} is not a folder: with --protocol, give one of"
      " images."
    )
  source = FolderSource(directory, image_size)
  if protocol == ALL_PAIRS:
    name = os.path.basename(os.path.abspath(directory))
    return Task(source, AllPairs(name, source.labels()))
  return Task(source, open_list(protocol, source.names()))
