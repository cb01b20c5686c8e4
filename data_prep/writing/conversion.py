"""What converters share: the description of a conversion, and how it runs.

A conversion is a list of items, cut into shards by the items' sizes before any
image is read. So each shard is a task of its own: whatever machine does it, and
in whatever order, the result is the same, byte for byte.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import chain, islice
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from data_prep.writing import ray_engine
from data_prep.writing.exclusions import SKIPPED_FILE
from data_prep.writing.loading import batches, load_images
from data_prep.writing.shards import FinishedShard, ShardWriter, digest_names
from data_prep.writing.writer import SHARD_ITEMS, DatasetAssembler
from jamsface_jax import shell
from jamsface_jax.data import doubts, records
from jamsface_jax.data.folders import Walk, read_file
from jamsface_jax.errors import InputError
from jamsface_jax.storage.file_state import file_state
from jamsface_jax.storage.text_lists import escape

ODD_NAME = "its name is not UTF-8, or has a line break or a tab"

# Shared storage answers each slowly, but many at a time.
_LOOKUPS = 16
_LOOKUPS_EACH = 128

# Fewer images than this train no network from nothing: configs/small.py.
_SMALL = 20_000

T = TypeVar("T")


class Item(NamedTuple):
  """An image that is to be converted.

  Attributes:
    label: its class, 0 to C - 1.
    name: its name in the data set, unique there.
    size: bytes of its encoded image, so far as known before it is read.
    where: what says for people where it is, before its name; "" if the name
      does.
    place: what says it for the `Reading`, if the name does not.
    state: changes whenever its file does, see `file_state`; "" if `source` of
      the data set does instead.
  """

  label: int
  name: str
  size: int
  where: str = ""
  place: object = None
  state: str = ""


@dataclasses.dataclass(frozen=True)
class Reading:
  """How the images are read; it travels to the machine that does it.

  Attributes:
    open: enters what is needed for reading, and gives a function from an item
      to its encoded image, which raises OSError or DecodingError. Threads call
      it.
    root: folder that names are relative to, for messages; "" if none.
    remedy: what to do about an image that cannot be read.
    check: decode the images whole; otherwise look only at its head.
    skip_bad: leave out images that cannot be read; otherwise an error.
  """

  open: Callable[[], AbstractContextManager[Callable[[Item], bytes]]]
  root: str
  remedy: str
  check: bool
  skip_bad: bool


@dataclasses.dataclass(frozen=True)
class ShardTask:
  """All that a machine must know to write a shard."""

  directory: str
  number: int
  items: Sequence[Item]
  reading: Reading
  threads: int

  def __str__(self) -> str:
    return (
      f"shard {self.number} (images {self.items[0].name!r} to"
      f" {self.items[-1].name!r})"
    )


def write_shard(
  task: ShardTask, pool: ThreadPoolExecutor | None = None
) -> FinishedShard:
  """Writes a shard.

  Args:
    task: the shard.
    pool: the threads that read its images; None for new ones.

  Raises:
    InputError: an image that cannot be read.
    RunError: the shard cannot be written.
  """
  reading = task.reading
  inputs = _digest_inputs(task.items)
  with contextlib.ExitStack() as stack:
    load = stack.enter_context(reading.open())
    shard = stack.enter_context(ShardWriter(task.directory, task.number))
    pool = pool or stack.enter_context(ThreadPoolExecutor(task.threads))
    items = ((item, item.size) for item in task.items)
    for item, data, size in load_images(items, load, pool, check=reading.check):
      if not isinstance(size, str):
        shard.add(item.label, item.name, data, size)
      elif reading.skip_bad:
        shard.skip(item.name, item.where + size)
      else:
        path = os.path.join(reading.root, item.name)
        raise InputError(
          f"{item.where}image {path!r} cannot be read ({size}):"
          f" {reading.remedy}."
        )
    return dataclasses.replace(shard.finish(), inputs=inputs)


def _digest_inputs(items: Sequence[Item]) -> str:
  """What tells the files of a shard from others under the same names."""
  if not any(item.state for item in items):
    return ""
  return digest_names(item.state for item in items)


def convert(
  assembler: DatasetAssembler,
  items: Iterable[Item],
  reading: Reading,
  *,
  total: int,
  engine: str,
  threads: int | None,
) -> None:
  """Writes the shards of a data set that are not finished yet.

  Args:
    assembler: makes the data set.
    items: what is converted, in order; the same ones in each attempt.
    reading: how the items are read.
    total: number of items, for the progress bar.
    engine: one of `ENGINES`.
    threads: at once; None for the engine's usual number.

  Raises:
    InputError: an image that cannot be read, another conversion's shards, or no
      class that has images enough.
    RunError: a shard cannot be written.
  """
  run, usual_threads = ENGINES[engine]
  threads = threads or usual_threads()
  with tqdm(total=total, unit="image", disable=None) as bar:

    def missing() -> Iterator[ShardTask]:
      sized = ((item, item.size) for item in items)
      runs = batches(sized, SHARD_ITEMS, assembler.shard_bytes)
      number = -1
      for number, batch in enumerate(runs):
        done = assembler.finished.get(number)
        task = ShardTask(assembler.directory, number, batch, reading, threads)
        if done is None:
          yield task
        elif done.names != digest_names(item.name for item in batch):
          raise assembler.other_conversion()
        elif done.inputs != _digest_inputs(batch):
          print(
            f"images of shard {number} have changed since: it is written again",
            file=sys.stderr,
          )
          yield task
        else:
          bar.update(done.items)
      if max(assembler.finished, default=-1) > number:
        raise assembler.other_conversion()

    for finished in run(write_shard, missing(), threads):
      assembler.accept(finished)
      bar.update(finished.items)
  assembler.close_gaps()


def _run_here(
  function: Callable[[ShardTask, ThreadPoolExecutor], FinishedShard],
  tasks: Iterable[ShardTask],
  threads: int,
) -> Iterator[FinishedShard]:
  """One shard after the other; each on all threads."""
  with ThreadPoolExecutor(threads) as pool:
    for task in tasks:
      yield function(task, pool)


# How the tasks are run, and the usual number of threads of one.
ENGINES = {
  "local": (_run_here, lambda: os.cpu_count() or 1),
  "ray": (ray_engine.run, lambda: 1),
}


@contextlib.contextmanager
def open_folder(root: str) -> Generator[Callable[[Item], bytes]]:
  """The `Reading.open` of images that are files below a folder."""

  def load(item: Item) -> bytes:
    return read_file(root, item.name)

  yield load


def read_folder(
  root: str, *, skip_bad: bool, check: bool = True, mend: str = "mend it"
) -> Reading:
  """How images are read that are files below a folder.

  Args:
    root: the folder.
    skip_bad: see `Reading`.
    check: see `Reading`.
    mend: what to do about an image that cannot be read, other than --skip_bad.
  """
  return Reading(
    open=functools.partial(open_folder, root),
    root=root,
    remedy=f"{mend}, or leave such images out with --skip_bad",
    check=check,
    skip_bad=skip_bad,
  )


def leave_aside(source: str, found: Walk, *, skip_bad: bool) -> list[str]:
  """Says what a walk left aside, and lists what has no name to go by.

  Args:
    source: the folder that was walked.
    found: what was found.
    skip_bad: leave out images with such names; otherwise an error.

  Returns:
    A line of `skipped.txt` for each of those images.

  Raises:
    InputError: there is one.
  """
  if found.odd and not skip_bad:
    raise InputError(
      f"{len(found.odd):,} image(s) of {source!r} have a name that is not UTF-8"
      f" or has a line break or a tab, such as {escape(found.odd[0])!r}: rename"
      " them, or leave such images out with --skip_bad."
    )
  if aside := found.aside():
    print(f"note: left aside in {source!r}: {aside}", file=sys.stderr)
  return [f"{escape(path)}\t{ODD_NAME}" for path in found.odd]


def look_up_files(root: str, items: Iterable[Item]) -> Iterator[Item]:
  """Looks up files below a folder, many at once: their sizes and states.

  Args:
    root: the folder.
    items: named by their paths in it.

  Yields:
    The items in order; of a missing file with size 0, reading it will tell.
  """

  def look(some: Sequence[Item]) -> list[Item]:
    return [look_at(item) for item in some]

  def look_at(item: Item) -> Item:
    state = file_state(os.path.join(root, item.name))
    return item._replace(size=max(state.size, 0), state=str(state))

  items = iter(items)
  with ThreadPoolExecutor(_LOOKUPS) as pool:
    while batch := list(islice(items, _LOOKUPS * _LOOKUPS_EACH)):
      shares = [
        batch[k : k + _LOOKUPS_EACH]
        for k in range(0, len(batch), _LOOKUPS_EACH)
      ]
      yield from chain.from_iterable(pool.map(look, shares))


def print_result(directory: str, skipped: int, next_command: str) -> None:
  """Says what a finished data set holds, and a command to use it with."""
  reader = records.RecordReader(directory)
  index = reader.index
  print(
    f"{index.images:,} images of {index.classes:,} identities"
    f" ({min(index.class_sizes)} to {max(index.class_sizes)} each) in"
    f" {directory}"
    + (
      f"; {skipped:,} left out, see {os.path.join(directory, SKIPPED_FILE)}"
      if skipped
      else ""
    )
    + (
      f"; {index.left_out['classes']:,} identities left out"
      if "classes" in index.left_out
      else ""
    )
    + (
      f"; {index.left_out['pairs']:,} pairs left out"
      if "pairs" in index.left_out
      else ""
    )
  )
  warn_of_doubts(reader)
  print(f"next: {next_command}")


def warn_of_doubts(reader: records.RecordReader) -> None:
  """Says what is hardly meant, see `doubts.find_doubts`."""
  for doubt in doubts.find_doubts(reader):
    print(f"warning: {doubt}.", file=sys.stderr)


def training_command(directory: str, images: int, *further: str) -> str:
  """The command that trains on a data set.

  Args:
    directory: the data set.
    images: how many it has, which decides the recipe.
    further: more flags.
  """
  recipe = "small" if images < _SMALL else "ms1m_r50"
  return shell.command(
    "jamsface_jax.main",
    f"--config=configs/{recipe}.py",
    f"--config.data.directory={directory}",
    "--workdir=W",
    *further,
  )


def evaluation_command(directory: str) -> str:
  """The command that judges a network by a data set."""
  data = f"--data={directory}"
  return shell.command("jamsface_jax.evaluate", "--workdir=W", data)
