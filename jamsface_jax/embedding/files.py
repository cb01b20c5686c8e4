"""The files of an embedding run, which may be killed at any instant.

Rows are written in blocks of images, each by one process, into files called
`*.partial`; when the rows of a block are on the disk, a line in the journal of
that process says so, with a hash of them. Only when all blocks are there do the
files get their names, `meta.json` last. The same run started again goes on with
the blocks that no journal names, or that are damaged, on any number of
processes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from jaxtyping import Int64

from jamsface_jax.errors import InputError, RunError, one_line
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.durable import (
  make_directory,
  sync_directory,
  sync_file,
)
from jamsface_jax.storage.plain_array import map_array
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.plan import (
  PLAN_FILE,
  conflicts,
  read_plan,
  write_plan,
)
from jamsface_jax.storage.text_lists import read_lines
from jamsface_jax.storage.whole_file import remove_left
from jamsface_jax.storage.write_error import write_error

EMBEDDINGS_FILE = "embeddings.npy"
NORMS_FILE = "norms.npy"
BOXES_FILE = "boxes.npy"
LANDMARKS_FILE = "landmarks.npy"
LABELS_FILE = "labels.npy"
PATHS_FILE = "paths.txt"
BROKEN_FILE = "broken.txt"
META_FILE = "meta.json"
# Of a plan: where things lie may change, what they hold may not.
PLACES = ("workdir", "source")
_JOURNAL = "journal-"
_PARTIAL = ".partial"


def read_broken(directory: str) -> Int64[np.ndarray, " k"]:
  """The rows of images that could not be read, which are NaN.

  Args:
    directory: an output.

  Returns:
    Ascending, int64 [K]; none if there is no `broken.txt`, or not such a one.
  """
  try:
    lines = read_lines(os.path.join(directory, BROKEN_FILE))
    rows = [int(line.text.split("\t")[0]) for line in lines]
    return np.unique(np.array(rows, np.int64))
  except (OSError, ValueError, OverflowError):
    return np.empty(0, np.int64)


class EmbeddingFiles:
  """What one run writes into its output directory, which it holds.

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
    if plan.get("align"):
      rows[BOXES_FILE] = ("float32", (4,))
      rows[LANDMARKS_FILE] = ("float32", (5, 2))
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
    except ValueError as error:  # Of NumPy, for a file that is none of its own.
      raise self._damaged(one_line(error)) from None

  def _begin(self) -> np.ndarray:
    make_directory(self._directory)
    if os.path.lexists(self._path(META_FILE)):
      meta = self._check_same(META_FILE, "other embeddings")
      self._check_there(("",))
      self._check_files(meta.get("files", {}))  # Older ones have no hashes.
      self._remove_journals()  # In case the last act was interrupted.
      return np.ones(self.blocks, bool)
    if os.path.lexists(self._path(PLAN_FILE)):
      self._check_same(PLAN_FILE, "a part of other embeddings")
      return self._blocks_done()
    for name in (*self._rows, PATHS_FILE, BROKEN_FILE):
      if os.path.exists(self._path(name)):
        raise InputError(
          f"--output {self._directory!r} holds a file {name!r} already: choose"
          " another directory."
        )
    self._remove_journals()
    for name, (dtype, shape) in self._rows.items():
      # Full length, with holes: blocks come in any order.
      path = self._path(name) + _PARTIAL
      self._create(path, dtype, (self._count, *shape))
      sync_file(path)
    sync_directory(self._directory)
    write_plan(self._path(PLAN_FILE), self._plan)
    return np.zeros(self.blocks, bool)

  def _blocks_done(self) -> np.ndarray:
    """Which blocks are there as the journals say, bool [blocks]."""
    lines = {block: (path, at) for block, path, at in self._journals()}
    complete = len(lines) == self.blocks
    self._check_there((_PARTIAL, "") if complete else (_PARTIAL,))
    paths = {name: self._path(name) + _PARTIAL for name in self._rows}
    named = [name for name, path in paths.items() if not os.path.exists(path)]
    paths |= {name: self._path(name) for name in named}
    arrays = {name: map_array(path) for name, path in paths.items()}
    done = np.zeros(self.blocks, bool)
    for block, (path, at) in lines.items():
      start, stop = self.rows(block)
      rows = {name: array[start:stop] for name, array in arrays.items()}
      kept = _read_line(path, at).get("sha256")  # None of older ones.
      done[block] = kept in (None, self._digest(rows))
    if named and not done.all():
      raise self._damaged("its rows are not what was written")
    return done

  def open(self, process: int) -> None:
    """Opens the files to write blocks; another number for every process."""
    path = self._path(f"{_JOURNAL}{process}.jsonl")
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
      self._journal = plain(path, append)
      os.write(self._journal, b"\n")  # Ends a line that a kill has torn.
      for name in self._rows:
        path = self._path(name) + _PARTIAL
        offset = int(map_array(path).offset)
        self._files[name] = plain(path, os.O_WRONLY), offset
      sync_directory(self._directory)
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
      line["sha256"] = self._digest(rows)
      _write_all(self._journal, (json.dumps(line) + "\n").encode())
      os.fsync(self._journal)
    except OSError as error:
      raise self._cannot_write(error) from None

  def _digest(self, rows: Mapping[str, np.ndarray]) -> str:
    """A hash of the rows of a block, as they lie in the files."""
    digest = hashlib.sha256()
    for name, (dtype, _) in sorted(self._rows.items()):
      digest.update(np.ascontiguousarray(rows[name], dtype).tobytes())
    return digest.hexdigest()

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
      return read_plan(self._path(META_FILE), "--output")["broken"]
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
        sync_file(self._path(name) + _PARTIAL)
      if not broken:
        os.remove(self._path(BROKEN_FILE) + _PARTIAL)
      for name in (PATHS_FILE, BROKEN_FILE, *reversed(self._rows)):
        if os.path.exists(self._path(name) + _PARTIAL):
          os.replace(self._path(name) + _PARTIAL, self._path(name))
      sync_directory(self._directory)
      files = {n: self._file_digest(n) for n in (*self._rows, PATHS_FILE)}
      meta = self._plan | {"broken": broken, "files": files}
      write_plan(self._path(META_FILE), meta)
      self._remove_journals()
      sync_directory(self._directory)
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

  def _check_same(self, file: str, what: str) -> dict[str, Any]:
    """Refuses a plan that is not this one; returns all that it says."""
    stored = read_plan(self._path(file), "--output")
    free = (*PLACES, "broken", "files")
    if different := conflicts(stored, self._plan, free):
      raise InputError(
        f"--output {self._directory!r} holds {what} ({different}): choose"
        " another directory or give the same checkpoint, images and flags."
      )
    return stored

  def _check_files(self, digests: Mapping[str, str]) -> None:
    """Refuses files that are not what was written."""
    for name in (*self._rows, PATHS_FILE):
      if name in digests and digests[name] != self._file_digest(name):
        raise self._damaged(f"{name!r} has other bytes than were written")

  def _damaged(self, what: str) -> InputError:
    return InputError(
      f"--output {self._directory!r} is damaged ({what}): delete it and embed"
      " again."
    )

  def _file_digest(self, name: str) -> str:
    with open(self._path(name), "rb", opener=plain) as file:
      return hashlib.file_digest(file, "sha256").hexdigest()

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

  def _cannot_write(self, error: OSError) -> InputError | RunError:
    return write_error("--output", self._directory, error)


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
