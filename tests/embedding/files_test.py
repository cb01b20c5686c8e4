"""Files of an embedding run that is killed at every system call it makes."""

import hashlib
import json
import os
import resource

import numpy as np
import pytest

from jamsface_jax.embedding.files import EmbeddingFiles
from jamsface_jax.errors import InputError, RunError

COUNT, SIZE = 23, 5
PLAN = {
  "images": COUNT,
  "embedding_size": SIZE,
  "dtype": "float32",
  "norms": True,
  "block": 4,
  "step": 8,
  "workdir": "/w",
  "source": "/s",
}
ROWS = np.random.default_rng(0).normal(size=(COUNT, SIZE)).astype(np.float32)
NAMES = [f"näme {k}" if k else "od\udcffd" for k in range(COUNT)]
BROKEN = {3: "empty", 22: "cut"}


class Killed(BaseException):
  pass


def write_block(files, block):
  start, stop = files.rows(block)
  files.write(
    block,
    {
      "embeddings.npy": ROWS[start:stop],
      "labels.npy": np.arange(start, stop),
      "norms.npy": ROWS[start:stop, 0],
    },
    NAMES[start:stop],
    {k - start: BROKEN[k] for k in BROKEN if start <= k < stop},
  )


def go(directory, written=None):
  """One whole run; appends to `written` the blocks that it had to write."""
  files = EmbeddingFiles(str(directory), PLAN)
  numbers = np.flatnonzero(~files.begin())
  if len(numbers):
    try:
      files.open(0)
      for number in numbers.tolist():
        write_block(files, number)
        if written is not None:
          written.append(number)
    finally:
      files.close()
  return files.finish()


def contents(directory):
  return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The files of a run that nothing disturbed."""
  directory = tmp_path_factory.mktemp("whole")
  assert go(directory) == 2
  return contents(directory)


def test_files_say_what_was_written(whole, tmp_path):
  for name, content in whole.items():
    (tmp_path / name).write_bytes(content)
  rows = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
  assert rows.dtype == np.float32
  np.testing.assert_array_equal(rows, ROWS)
  labels = np.load(tmp_path / "labels.npy")
  assert labels.dtype == np.int64
  np.testing.assert_array_equal(labels, np.arange(COUNT))
  np.testing.assert_array_equal(np.load(tmp_path / "norms.npy"), ROWS[:, 0])
  names = [os.fsencode(name) for name in NAMES]
  assert whole["paths.txt"] == b"\n".join(names) + b"\n"
  assert whole["broken.txt"].decode() == "3\tnäme 3\tempty\n22\tnäme 22\tcut\n"
  meta = json.loads(whole["meta.json"])
  assert meta.pop("files") == {
    name: hashlib.sha256(whole[name]).hexdigest()
    for name in ("embeddings.npy", "labels.npy", "norms.npy", "paths.txt")
  }
  assert meta == PLAN | {"broken": 2}
  assert len(whole) == 6


def test_writes_that_are_taken_in_parts(monkeypatch, whole, tmp_path):
  write, pwrite = os.write, os.pwrite
  with monkeypatch.context() as patched:
    patched.setattr(os, "write", lambda f, data: write(f, data[:3]))
    patched.setattr(os, "pwrite", lambda f, data, at: pwrite(f, data[:3], at))
    go(tmp_path)
  assert contents(tmp_path) == whole


def kill_after(monkeypatch, calls, tear):
  """The next run dies at this call of the system, halfway through a write."""
  left = [calls]

  def patch(name):
    real = getattr(os, name)

    def call(*arguments, **named):
      left[0] -= 1
      if left[0] < 0:
        if tear and name in ("pwrite", "write") and left[0] == -1:
          file, data, *offset = arguments
          real(file, bytes(data)[: len(data) // 2], *offset)
        raise Killed
      return real(*arguments, **named)

    monkeypatch.setattr(os, name, call)

  for name in ("open", "pwrite", "write", "fsync", "replace", "remove"):
    patch(name)


@pytest.mark.parametrize("tear", [False, True])
def test_killed_at_any_call(monkeypatch, whole, tmp_path, tear):
  calls = 0
  while True:
    directory = tmp_path / str(calls)
    written = []
    with monkeypatch.context() as patched:
      kill_after(patched, calls, tear)
      try:
        go(directory, written)
        break  # It ended before it was killed.
      except Killed:
        pass
    state = contents(directory) if directory.exists() else {}
    if "embeddings.npy" in state:  # Never there before it is whole.
      assert state["embeddings.npy"] == whole["embeddings.npy"]
    if "meta.json" in state:
      assert state.items() >= whole.items()
    again = []
    assert go(directory, again) == 2
    assert contents(directory) == whole
    # Nothing is done twice but the block under way, if its line was not there.
    assert not set(written) & set(again)
    assert len(written) + len(again) >= 5
    calls += 1
  assert calls > 50


def test_killed_again_and_again(monkeypatch, whole, tmp_path):
  for calls in range(1, 40):
    with monkeypatch.context() as patched:
      kill_after(patched, calls, tear=True)
      try:
        go(tmp_path)
      except Killed:
        continue
      break
  else:
    pytest.fail("no run came to its end")
  assert contents(tmp_path) == whole


def test_blocks_of_several_processes(whole, tmp_path):
  """Two write at the same time; one of another number finishes."""
  first, second = (EmbeddingFiles(str(tmp_path), PLAN) for _ in range(2))
  assert not first.begin().any()
  first.open(0)
  second.open(1)
  for files, block in ((second, 5), (first, 0), (second, 3), (first, 1)):
    write_block(files, block)
  first.close()
  second.close()
  third = EmbeddingFiles(str(tmp_path), PLAN)
  assert third.begin().tolist() == [True, True, False, True, False, True]
  third.open(7)
  write_block(third, 4)
  write_block(third, 2)
  third.close()
  assert third.finish() == 2
  assert contents(tmp_path) == whole


@pytest.mark.parametrize("finished", [False, True])
def test_other_plans_are_refused(tmp_path, finished):
  files = EmbeddingFiles(str(tmp_path), PLAN)
  files.begin()
  if finished:
    go(tmp_path)
  before = contents(tmp_path)
  with pytest.raises(InputError, match="step is 8 there and 9 here"):
    EmbeddingFiles(str(tmp_path), PLAN | {"step": 9}).begin()
  with pytest.raises(InputError, match="flip is None there and True here"):
    EmbeddingFiles(str(tmp_path), PLAN | {"flip": True}).begin()
  assert contents(tmp_path) == before
  moved = PLAN | {"workdir": "/x", "source": "/y"}
  done = EmbeddingFiles(str(tmp_path), moved).begin()
  assert done.tolist() == [finished] * 6


def test_files_of_others_are_left_alone(tmp_path):
  (tmp_path / "labels.npy").write_text("mine")
  with pytest.raises(InputError, match="holds a file 'labels.npy' already"):
    go(tmp_path)
  assert contents(tmp_path) == {"labels.npy": b"mine"}


@pytest.mark.parametrize("name", ["meta.json", "plan.json"])
def test_damaged_descriptions_are_refused(tmp_path, name):
  (tmp_path / name).write_text('{"images": 2')
  with pytest.raises(InputError, match="is damaged"):
    go(tmp_path)


def test_lost_rows_are_missed(tmp_path, whole):
  files = EmbeddingFiles(str(tmp_path / "part"), PLAN)
  files.begin()
  (tmp_path / "part" / "norms.npy.partial").unlink()
  with pytest.raises(InputError, match="has lost its 'norms.npy'"):
    files.begin()
  go(tmp_path / "all")
  (tmp_path / "all" / "embeddings.npy").unlink()
  with pytest.raises(InputError, match="has lost its 'embeddings.npy'"):
    go(tmp_path / "all")


def test_full_disk_is_one_sentence(tmp_path, whole):
  """A limit on the size of files stands for the disk that is full."""
  files = EmbeddingFiles(str(tmp_path), PLAN)
  files.begin()
  files.open(0)
  write_block(files, 0)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
  try:
    with pytest.raises(RunError, match="File too large.*make room"):
      write_block(files, 5)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  files.close()
  assert go(tmp_path) == 2
  assert contents(tmp_path) == whole
