"""The files of an embedding run, which may be killed at any instant.

Rows are written in blocks of images, each by one process, into files called
`*.partial`; when the rows of a block are on the disk, a line in the journal of
that process says so. Only when all blocks are there do the files get their
names, `meta.json` last. The same run started again goes on with the blocks that
no journal names, on any number of processes.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from jamsface_jax.errors import InputError, RunError
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_array import map_array
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.whole_file import remove_left, written_whole

EMBEDDINGS_FILE = "embeddings.npy"
NORMS_FILE = "norms.npy"
LABELS_FILE = "labels.npy"
PATHS_FILE = "paths.txt"
BROKEN_FILE = "broken.txt"
META_FILE = "meta.json"
PLAN_FILE = "plan.json"
# Of a plan: where things lie may change, what they hold may not.
PLACES = ("workdir", "source")
_JOURNAL = "journal-"
_PARTIAL = ".partial"


class EmbeddingFiles:
  """What one run writes into its output directory.

  Args:
    directory: the output.
    plan: JSON values that decide every row; `images` [N], `embedding_size`,
      `dtype`, `norms` and `block` (images in a block) among them.
  """

  def __init__(self, directory: str, plan: Mapping[str, Any]):
    self._directory = directory
    self._plan = json.loads(json.dumps(plan))
    self._count = plan["images"]
    self._block = plan["block"]
    rows = {EMBEDDINGS_FILE: (plan["dtype"], (plan["embedding_size"],))}
    rows[LABELS_FILE] = ("int64", ())
    if plan["norms"]:
      rows[NORMS_FILE] = ("float32", ())
    self._rows = rows
    self._files: dict[str, tuple[int, int]] = {}  # And where row 0 lies.
    self._journal: int | None = None

  @property
  def blocks(self) -> int:
    """The number of blocks."""
    return -(-self._count // self._block)

  def rows(self, block: int) -> tuple[int, int]:
    """Returns the first row of a block, and the one after its last."""
    start = block * self._block
    return start, min(start + self._block, self._count)

  def begin(self) -> np.ndarray:
    """Makes the files, or finds those of an interrupted run.

    Returns:
      bool [blocks], the finished ones; all, if the whole run is.

    Raises:
      InputError: the directory holds something else, or cannot be written to.
    """
    try:
      return self._begin()
    except OSError as error:
      raise self._cannot_write(error) from None

  def _begin(self) -> np.ndarray:
    os.makedirs(self._directory, exist_ok=True)
    if os.path.exists(self._path(META_FILE)):
      self._check_same(META_FILE, "other embeddings")
      self._check_there(("",))
      self._remove_journals()  # In case the last act was interrupted.
      return np.ones(self.blocks, bool)
    if os.path.exists(self._path(PLAN_FILE)):
      self._check_same(PLAN_FILE, "a part of other embeddings")
      done = np.zeros(self.blocks, bool)
      for block, _, _ in self._journals():
        done[block] = True
      self._check_there((_PARTIAL, "") if done.all() else (_PARTIAL,))
      return done
    for name in (*self._rows, PATHS_FILE, BROKEN_FILE):
      if os.path.exists(self._path(name)):
        raise InputError(
          f"--output {self._directory!r} holds a file {name!r} already: choose"
          " another directory."
        )
    self._remove_journals()
    for name, (dtype, shape) in self._rows.items():
      # Full length, with holes: blocks come in any order.
      self._create(self._path(name) + _PARTIAL, dtype, (self._count, *shape))
    self._write_json(PLAN_FILE, self._plan)
    return np.zeros(self.blocks, bool)

  def open(self, process: int) -> None:
    """Opens the files to write blocks; another number for every process."""
    path = self._path(f"{_JOURNAL}{process}.jsonl")
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
      self._journal = plain(path, append)
      _lock(self._journal, self._directory)
      os.write(self._journal, b"\n")  # Ends a line that a kill has torn.
      for name in self._rows:
        path = self._path(name) + _PARTIAL
        offset = int(map_array(path).offset)
        self._files[name] = plain(path, os.O_WRONLY), offset
    except OSError as error:
      raise self._cannot_write(error) from None

  def write(
    self,
    block: int,
    rows: Mapping[str, np.ndarray],
    names: list[str],
    broken: Mapping[int, str],
  ) -> None:
    """Writes a block; it is on the disk when this returns.

    Args:
      block: the number of the block.
      rows: the rows of each file, [n, ...], by its name.
      names: what its images are called, n of them.
      broken: why an image cannot be read, by its position in the block.

    Raises:
      RunError: the disk is full.
    """
    if self._journal is None:
      raise ValueError("The files are not open.")
    start, _ = self.rows(block)
    try:
      # Written, not stored through a map: a full disk is an error then and no
      # crash, and two machines may share a page of a network's file.
      for name, (file, offset) in self._files.items():
        data = np.ascontiguousarray(rows[name], self._rows[name][0])
        each = data.nbytes // len(data)
        _write_all(file, data.tobytes(), offset + start * each)
        os.fsync(file)
      line = {"block": block, "names": names, "broken": broken}
      _write_all(self._journal, (json.dumps(line) + "\n").encode())
      os.fsync(self._journal)
    except OSError as error:
      raise self._cannot_write(error) from None

  def close(self) -> None:
    """Lets go of the files that `open` opened."""
    for file, _ in self._files.values():
      os.close(file)
    if self._journal is not None:
      os.close(self._journal)
    self._files, self._journal = {}, None

  def finish(self) -> int:
    """Gives the files their names once every block is done.

    Does what is left to do if it was interrupted before, or nothing.

    Returns:
      The number of broken images.
    """
    if os.path.exists(self._path(META_FILE)):
      return self._read_json(META_FILE)["broken"]
    where = {block: (path, at) for block, path, at in self._journals()}
    broken = 0
    try:
      with (
        self._open_text(PATHS_FILE) as paths,
        self._open_text(BROKEN_FILE) as reasons,
      ):
        for block in range(self.blocks):
          line = _read_line(*where[block])
          paths.writelines(f"{name}\n" for name in line["names"])
          for position, reason in line["broken"].items():
            row = self.rows(block)[0] + int(position)
            name = line["names"][int(position)]
            reasons.write(f"{row}\t{name}\t{reason}\n")
            broken += 1
      for name in (PATHS_FILE, BROKEN_FILE):
        self._sync(name + _PARTIAL)
      if not broken:
        os.remove(self._path(BROKEN_FILE) + _PARTIAL)
      for name in (PATHS_FILE, BROKEN_FILE, *reversed(self._rows)):
        if os.path.exists(self._path(name) + _PARTIAL):
          os.replace(self._path(name) + _PARTIAL, self._path(name))
      self._write_json(META_FILE, self._plan | {"broken": broken})
      self._remove_journals()
    except OSError as error:
      raise self._cannot_write(error) from None
    return broken

  def _create(self, path: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Makes an array of zeros, anew: not in what a link points to."""
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)
    with open(path, "xb", opener=plain) as file:
      file.flush()
      np.lib.format.open_memmap(path, "w+", dtype, shape).flush()

  def _check_same(self, file: str, what: str) -> None:
    """Refuses a plan that is not this one."""
    try:
      stored = self._read_json(file)
      stored.pop("broken", None)
    except (ValueError, AttributeError):
      raise InputError(
        f"{self._path(file)!r} is damaged: choose another --output."
      ) from None
    conflicts = [
      f"{name} is {stored.get(name)!r} there and {self._plan.get(name)!r} here"
      for name in {**stored, **self._plan}
      if stored.get(name) != self._plan.get(name) and name not in PLACES
    ]
    if conflicts:
      raise InputError(
        f"--output {self._directory!r} holds {what} ({'; '.join(conflicts)}):"
        " choose another directory or give the same checkpoint, images and"
        " flags."
      )

  def _check_there(self, endings: Sequence[str]) -> None:
    """Refuses to go on without a file of rows."""
    for name in self._rows:
      path = self._path(name)
      if not any(os.path.exists(path + ending) for ending in endings):
        raise InputError(
          f"--output {self._directory!r} has lost its {name!r}: choose another"
          " directory."
        )

  def _journals(self) -> Iterator[tuple[int, str, int]]:
    """Yields each finished block, and the file and offset of its line."""
    for file in sorted(os.listdir(self._directory)):
      if not file.startswith(_JOURNAL):
        continue
      path, at = self._path(file), 0
      with open(path, "rb", opener=plain) as lines:
        for line in lines:
          # Empty or torn by a kill, its block is done again.
          if (block := self._parse_block(line)) is not None:
            yield block, path, at
          at += len(line)

  def _parse_block(self, line: bytes) -> int | None:
    """The block that a line of a journal notes; None if it notes none."""
    try:
      block = plain_json.parse(line)["block"]
    except (ValueError, LookupError, TypeError, RecursionError):
      return None
    known = type(block) is int and 0 <= block < self.blocks
    return block if known else None

  def _remove_journals(self) -> None:
    remove_left(self._directory, seconds=0)  # Process 0 alone writes those.
    for file in os.listdir(self._directory):
      if file.startswith(_JOURNAL):
        os.remove(self._path(file))
    if os.path.exists(self._path(PLAN_FILE)):
      os.remove(self._path(PLAN_FILE))

  def _path(self, name: str) -> str:
    return os.path.join(self._directory, name)

  def _open_text(self, name: str) -> TextIO:
    # Names may have any bytes; they come out as they are.
    path = self._path(name) + _PARTIAL
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)
    return open(
      path, "x", encoding="utf-8", errors="surrogateescape", opener=plain
    )

  def _read_json(self, name: str) -> dict[str, Any]:
    with open(self._path(name), encoding="utf-8", opener=plain) as file:
      return plain_json.parse(file.read())

  def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    with written_whole(self._path(name)) as file:
      json.dump(value, file, indent=2)
      file.write("\n")
      file.flush()
      os.fsync(file.fileno())

  def _sync(self, name: str) -> None:
    file = os.open(self._path(name), os.O_RDONLY)
    os.fsync(file)
    os.close(file)

  def _cannot_write(self, error: OSError) -> InputError | RunError:
    text = f"--output {self._directory!r} cannot be written to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      return RunError(
        f"{text} ({error.strerror}): make room and run the same command again."
      )
    return InputError(f"{text} ({error.strerror}): choose another directory.")


def _lock(file: int, directory: str) -> None:
  """Refuses to write beside another run, where the file system has locks."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise InputError(
      f"--output {directory!r} is being written by another run: wait for its"
      " end or choose another directory."
    ) from None
  except OSError:
    pass  # Some network file systems have none.


def _write_all(file: int, data: bytes, offset: int | None = None) -> None:
  """Writes at an offset or the end; the system may take data in parts."""
  written = 0
  while written < len(data):
    rest = memoryview(data)[written:]
    if offset is None:
      written += os.write(file, rest)
    else:
      written += os.pwrite(file, rest, offset + written)


def _read_line(path: str, at: int) -> dict[str, Any]:
  with open(path, "rb", opener=plain) as file:
    file.seek(at)
    return plain_json.parse(file.readline())
