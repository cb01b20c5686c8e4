"""Writes a data set: shards first, in any order, `dataset.json` last.

Shards appear under their final name only when complete; a directory without
`dataset.json` is not a data set, so an interrupted conversion is never read. A
journal of the finished shards lets the same conversion go on with the others,
and the result is the same, byte for byte, as if it had never been interrupted.
What the journal names is on the disk, and compared with its hash when the
conversion goes on. What was left out stands in the journal alone until
`skipped.txt` is written: there may be millions of such images. One process at a
time holds the directory.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import TracebackType

import numpy as np

from data_prep.writing import class_gaps
from data_prep.writing.exclusions import SKIPPED_FILE
from data_prep.writing.shards import (
  FinishedShard,
  ShardWriter,
  shard_file,
)
from jamsface_jax.data import records
from jamsface_jax.errors import InputError, one_line
from jamsface_jax.protocols.groups_file import GROUPS_FILE
from jamsface_jax.storage import lock, plain_json
from jamsface_jax.storage.durable import sync_directory, sync_tree
from jamsface_jax.storage.plain_file import PARTIAL, plain
from jamsface_jax.storage.whole_file import remove_left, written_whole

SHARD_BYTES = 256 * 2**20
SHARD_ITEMS = 2**17  # At most, so that a task stays small.
JOURNAL_FILE = "journal.jsonl"
_HASHING = 4  # Shards read at once; a thread hashes some 1.5 GB/s.
# Written again by each attempt that is given them.
_OPTIONAL_FILES = (records.PAIRS_FILE, GROUPS_FILE, SKIPPED_FILE)


class DatasetAssembler:
  """Makes a data set of shards that are finished in any order.

  Use as a context manager: it holds the directory, and the data set is finished
  when the block has ended.

  Args:
    directory: where the data set goes; made if missing, refused if it holds a
      data set already, continued if it holds a part of this conversion.
    name: prefix of the data set's metrics, e.g. "lfw".
    classes: class names, position = label.
    source: says what is converted and how; a part of another conversion is
      refused.
    synthetic: the images are drawn, of nobody.
    shard_bytes: a shard is closed when its images have this many bytes.
    min_images: images that a class needs once unreadable ones are left out;
      the images of others are left out too.
    left_out: a line for each image that is not even among the items: its name,
      a tab and the reason.

  Attributes:
    directory: where the data set goes.
    shard_bytes: when a shard is closed.
    finished: the shards that are there, by number, without the lines of what
      was left out, see `skipped_lines`.
    dropped: the classes that `close_gaps` left out, by their first numbers.
    left_out: how many pairs, templates, ... lost an image, by what they are;
      what counts them sets it.
  """

  def __init__(
    self,
    directory: str,
    *,
    name: str,
    classes: Sequence[str],
    source: str,
    synthetic: bool = False,
    shard_bytes: int = SHARD_BYTES,
    min_images: int = 1,
    left_out: Sequence[str] = (),
  ):
    self.finished: dict[int, FinishedShard] = {}
    self.dropped: list[int] = []
    self.left_out: dict[str, int] = {}
    self._min_images = min_images
    self._never_read = list(left_out)
    self.directory = directory
    self.shard_bytes = shard_bytes
    self._name = name
    self._synthetic = synthetic
    self._classes = list(classes)
    self._journal_path = os.path.join(directory, JOURNAL_FILE)
    self._lines: dict[int, int] = {}  # Where in the journal each shard is.
    self._source = hashlib.sha256(
      json.dumps([source, name, self._classes, shard_bytes]).encode()
    ).hexdigest()
    self._held = contextlib.ExitStack()

  def __enter__(self) -> "DatasetAssembler":
    with contextlib.ExitStack() as stack:
      stack.enter_context(lock.hold(self.directory, "--output"))
      if os.path.exists(os.path.join(self.directory, records.INDEX_FILE)):
        raise InputError(
          f"--output {self.directory!r} holds a data set already: choose"
          " another directory or delete it first."
        )
      self._resume()
      self._held = stack.pop_all()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with contextlib.closing(self):
      if kind is None:
        self.finish()

  def close(self) -> None:
    """Lets go of the directory, finished or not."""
    self._held.close()

  @property
  def skipped(self) -> int:
    """Items that were left out so far."""
    shards = self.finished.values()
    return len(self._never_read) + sum(one.skips for one in shards)

  def skipped_lines(self) -> Iterator[str]:
    """Yields a line for each of them, which begins with its name and a tab."""
    yield from self._never_read
    for number in sorted(self.finished):
      yield from self._with_lines(number).skipped

  @property
  def classes(self) -> list[str]:
    """The names of the classes that are not `dropped`, position = label."""
    gone = set(self.dropped)
    return [one for k, one in enumerate(self._classes) if k not in gone]

  def accept(self, finished: FinishedShard) -> None:
    """Notes a shard in the journal: it will not be written again."""
    entry = {"source": self._source} | finished.to_json()
    with open(self._journal_path, "ab", opener=plain) as file:
      at = file.tell()
      file.write(json.dumps(entry).encode() + b"\n")
      file.flush()
      os.fsync(file.fileno())
    if not self.finished:
      sync_directory(self.directory)
    self._note(finished, at)

  def _note(self, finished: FinishedShard, at: int) -> None:
    """Keeps in memory what the journal says of a shard, but for the lines."""
    self.finished[finished.number] = dataclasses.replace(finished, skipped=[])
    self._lines[finished.number] = at

  def _with_lines(self, number: int) -> FinishedShard:
    """A finished shard as the journal has it."""
    with open(self._journal_path, "rb", opener=plain) as file:
      file.seek(self._lines[number])
      return FinishedShard.from_json(plain_json.parse(file.readline()))

  def add_pairs(self, path: str) -> None:
    """Copies a verification protocol into the data set."""
    target = os.path.join(self.directory, records.PAIRS_FILE)
    with (
      open(path, "rb", opener=plain) as source,
      written_whole(target, "wb") as file,
    ):
      shutil.copyfileobj(source, file)

  def close_gaps(self) -> None:
    """Leaves out classes with too few images; the ones after them move up.

    To be called when all shards are there, before `dropped` is asked for.

    Raises:
      InputError: no class is left, or shards of another attempt do not fit.
    """
    in_order = [self.finished[number] for number in sorted(self.finished)]
    if not any(one.shard for one in in_order):
      raise InputError(
        f"no image was written to {self.directory!r}: check --input."
      )
    count = len(self._classes)
    dropped = class_gaps.small_classes(in_order, count, self._min_images)
    if dropped is None:
      raise self.other_conversion()
    if len(dropped) == count:
      raise InputError(
        f"no class of {self.directory!r} has {self._min_images} image(s) that"
        f" can be read, the largest {max(dropped.values())}: ask for fewer, or"
        " check --input."
      )
    numbers = class_gaps.new_numbers(count, dropped)
    reasons = [""] * count
    for label, images in dropped.items():
      reasons[label] = (
        f"its class {self._classes[label]!r} has {images} image(s) that can be"
        f" read, and {self._min_images} are needed"
      )
    for one in in_order:
      if dict(one.dropped) != dropped:
        self.accept(
          class_gaps.close_gaps(
            self.directory,
            self._with_lines(one.number),
            dropped,
            numbers,
            reasons,
          )
        )
    self.dropped = sorted(dropped)

  def finish(self) -> None:
    """Writes `dataset.json` and what else describes the shards.

    Raises:
      InputError: no image.
    """
    self.close_gaps()
    in_order = [self.finished[number] for number in sorted(self.finished)]
    shards = [one.shard for one in in_order if one.shard is not None]
    numbers = np.array(
      class_gaps.new_numbers(len(self._classes), self.dropped), np.int32
    )
    labels = numbers[np.concatenate([one.labels for one in in_order])]
    classes = self.classes
    class_sizes = np.bincount(labels, minlength=len(classes)).tolist()
    self._write_lines(records.CLASSES_FILE, classes)
    if self.skipped:
      self._write_lines(SKIPPED_FILE, self.skipped_lines())
    image_sizes = {size for one in in_order for size in one.image_sizes}
    labels_digest = records.write_labels(self.directory, labels)
    sync_tree(self.directory)  # What converters have added, too.
    records.write_index(
      self.directory,
      records.DatasetIndex(
        name=self._name,
        images=len(labels),
        classes=len(classes),
        class_sizes=tuple(class_sizes),
        image_size=image_sizes.pop() if len(image_sizes) == 1 else None,
        color_order=records.COLOR_ORDER,
        shards=tuple(shards),
        labels_sha256=labels_digest,
        synthetic=self._synthetic,
        left_out=self._count_left_out(),
      ),
    )
    self._remove_partial()
    os.remove(self._journal_path)
    sync_directory(self.directory)

  def _count_left_out(self) -> dict[str, int]:
    """What is not in the data set, by what it is; only what there is any of."""
    counts = {"images": self.skipped, "classes": len(self.dropped)}
    return {name: n for name, n in (counts | self.left_out).items() if n}

  def _resume(self) -> None:
    """Takes over the shards that an interrupted conversion finished.

    Raises:
      InputError: it was another conversion, or its journal is damaged.
    """
    if not os.path.lexists(self._journal_path):
      return
    entries = list(self._read_journal())
    for name in _OPTIONAL_FILES:  # This attempt may be without them.
      with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(self.directory, name))
    with ThreadPoolExecutor(_HASHING) as pool:
      sound = pool.map(lambda one: self._is_sound(one[1].shard), entries)
      kept = [
        one for one, is_sound in zip(entries, sound, strict=True) if is_sound
      ]
    # What is not taken over must not be read at the next resume.
    with (
      open(self._journal_path, "rb", opener=plain) as before,
      written_whole(self._journal_path, "wb") as file,
    ):
      for at, shard in kept:
        self._note(shard, file.tell())
        before.seek(at)
        file.write(before.readline().rstrip(b"\n") + b"\n")

  def _read_journal(self) -> Iterator[tuple[int, FinishedShard]]:
    """Yields where the whole lines of the journal are, and what they say.

    The lines of what was left out stay on the disk.
    """
    at = 0
    try:
      with open(self._journal_path, "rb", opener=plain) as file:
        for line in file:
          if finished := self._parse(line.decode()):
            yield at, dataclasses.replace(finished, skipped=[])
          at += len(line)
    except (OSError, UnicodeDecodeError) as error:
      raise InputError(
        f"{self._journal_path!r} cannot be read ({one_line(error)}): delete"
        f" {self.directory!r} and convert again."
      ) from None

  def _parse(self, line: str) -> FinishedShard | None:
    """What a line of the journal says; None if a kill has torn it."""
    try:
      entry = plain_json.parse(line)
      source = entry.pop("source")
      finished = FinishedShard.from_json(entry)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
      return None  # Its shard is written again.
    if source != self._source:
      raise self.other_conversion()
    return finished if self._is_possible(finished) else None

  def _is_possible(self, finished: FinishedShard) -> bool:
    """Whether a conversion into these classes may have written this."""
    labels, classes = finished.labels, len(self._classes)
    if finished.number < 0 or finished.items < len(labels):
      return False
    if not ((labels >= 0) & (labels < classes)).all():
      return False
    if not all(0 <= label < classes for label, _ in finished.dropped):
      return False
    if (shard := finished.shard) is None:
      return not len(labels)
    expected = shard_file(finished.number), len(labels)
    return (shard.file, shard.records) == expected

  def _is_sound(self, shard: records.Shard | None) -> bool:
    """Whether a shard is there as the journal says; says so if it is not."""
    if shard is None:
      return True
    path = os.path.join(self.directory, shard.file)
    try:
      if records.file_digest(path) == (shard.sha256, shard.bytes):
        return True
      what = "is not what was written"
    except OSError as error:
      what = f"cannot be read ({error.strerror})"
    print(
      f"warning: shard {path!r} {what}: it is written again.", file=sys.stderr
    )
    return False

  def other_conversion(self) -> InputError:
    """What to raise if the finished shards are not of this conversion."""
    return InputError(
      f"--output {self.directory!r} holds a part of another conversion:"
      " choose another directory or delete it first."
    )

  def _remove_partial(self) -> None:
    """Removes what killed writers left."""
    remove_left(self.directory, seconds=0)
    pattern = os.path.join(
      glob.escape(self.directory), f"{shard_file(0)[:7]}*{PARTIAL}"
    )
    for path in glob.glob(pattern):
      os.remove(path)

  def _write_lines(self, file_name: str, lines: Iterable[str]) -> None:
    path = os.path.join(self.directory, file_name)
    with written_whole(path) as file:
      file.writelines(f"{line}\n" for line in lines)


class DatasetWriter:
  """Writes records one after another; use as a context manager.

  A conversion is a fixed sequence of items, each added or skipped in turn. Of
  an interrupted one the first `position` items are on disk: go on after them.

  Args:
    directory: where the data set goes, see `DatasetAssembler`.
    name: prefix of the metrics, as there.
    classes: class names, as there.
    source: what is converted, as there.
    synthetic: whether the images are drawn, as there.
    shard_bytes: when a shard is closed, as there; and at `SHARD_ITEMS` items.

  Attributes:
    position: items of the sequence that were added or skipped.
    skipped: items that were skipped.
  """

  def __init__(
    self,
    directory: str,
    *,
    name: str,
    classes: Sequence[str],
    source: str,
    synthetic: bool = False,
    shard_bytes: int = SHARD_BYTES,
  ):
    self._assembler = DatasetAssembler(
      directory,
      name=name,
      classes=classes,
      source=source,
      synthetic=synthetic,
      shard_bytes=shard_bytes,
    )
    self._directory = directory
    self._num_classes = len(classes)
    self._shard_bytes = shard_bytes
    self._finished_items = 0
    self._shard = ShardWriter(directory, 0)

  def __enter__(self) -> "DatasetWriter":
    finished = self._assembler.__enter__().finished
    # The sequence goes on at one place: shards after a gap are written again.
    first_missing = next(n for n in count() if n not in finished)
    for number in [number for number in finished if number > first_missing]:
      del finished[number]
    self._finished_items = sum(one.items for one in finished.values())
    self._shard = ShardWriter(self._directory, first_missing)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with contextlib.closing(self._assembler), self._shard:
      if kind is None:
        if self._shard.items:
          self._close_shard()
        self._assembler.finish()

  @property
  def position(self) -> int:
    """Items of the sequence that were added or skipped."""
    return self._finished_items + self._shard.items

  @property
  def skipped(self) -> int:
    """Items that were skipped."""
    return self._assembler.skipped + self._shard.skipped

  def add(
    self, label: int, name: str, image: bytes, size: tuple[int, int]
  ) -> None:
    """Appends the next item of the sequence.

    Args:
      label: its class, 0 to C - 1.
      name: its relative path, unique in the data set.
      image: its encoded bytes (JPEG or PNG), kept as they are.
      size: its (height, width) in pixels.
    """
    if not 0 <= label < self._num_classes:
      raise InputError(
        f"image {name!r} has label {label}, outside [0, {self._num_classes}):"
        " number the classes from 0 without gaps."
      )
    self._shard.add(label, name, image, size)
    self._close_full_shard()

  def skip(self, name: str, reason: str) -> None:
    """Leaves out the next item; `skipped.txt` will list it."""
    self._shard.skip(name, reason)
    self._close_full_shard()

  def add_pairs(self, path: str) -> None:
    """Copies a verification protocol into the data set."""
    self._assembler.add_pairs(path)

  def count_left_out(self, **counts: int) -> None:
    """Notes how many pairs, say, the images that are skipped take along."""
    self._assembler.left_out = counts

  def _close_full_shard(self) -> None:
    full = self._shard.bytes >= self._shard_bytes
    if full or self._shard.items >= SHARD_ITEMS:
      self._close_shard()

  def _close_shard(self) -> None:
    finished = self._shard.finish()
    self._assembler.accept(finished)
    self._finished_items += finished.items
    self._shard = ShardWriter(self._directory, finished.number + 1)
