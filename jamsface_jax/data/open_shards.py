"""The shards that are open, of all data sets of a process: never too many."""

import collections
import resource
import threading

from array_record.python import (
  array_record_module,  # ty: ignore[missing-module-member] has no stubs.
)

Reader = array_record_module.ArrayRecordReader

_SHARE = 4  # One in so many of the files that the process may open.
_LEAST = 4
_MOST = 1024
_READ_BYTES = 4096  # Least number taken from the file at once.

_open: collections.OrderedDict[tuple[int, str], Reader] = (
  collections.OrderedDict()
)
_changing = threading.RLock()  # What is collected meanwhile closes its own.


def most_open() -> int:
  """How many shards stay open at once, by the limit `ulimit -n`."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    return _MOST
  return min(_MOST, max(_LEAST, soft // _SHARE))


def open_reader(path: str) -> Reader:
  """Opens a shard for who closes it; one that is none says so when it reads.

  Raises:
    ValueError: the shard says that it is compressed, which ours never are: what
      a record of it unpacks to has no bound.
  """
  # Nothing is read beyond a record: the next one is elsewhere.
  reader = Reader(
    path,
    options="readahead_buffer_size:0",
    file_reader_buffer_size=_READ_BYTES,
  )
  if reader.ok() and "uncompressed" not in reader.writer_options_string().split(
    ","
  ):
    raise ValueError("it is compressed")
  return reader


def open_shard(owner: int, path: str) -> Reader:
  """Opens a shard, or finds it open; may be called from several threads.

  The one that was not asked for longest is closed when there are too many, as
  soon as no thread reads it.

  Args:
    owner: of the data set as it was opened; the path may be another's later.
    path: the shard.

  Returns:
    A reader, whose reads share no state; one that could not be opened says why
    when it reads.

  Raises:
    ValueError: see `open_reader`.
  """
  with _changing:
    reader = _open.get((owner, path))
    if reader is not None:
      _open.move_to_end((owner, path))
      return reader
    while len(_open) >= most_open():
      _open.popitem(last=False)
    reader = open_reader(path)
    if reader.ok():
      _open[owner, path] = reader
    return reader


def close_shards(owner: int) -> None:
  """Closes the shards of an owner who is gone."""
  with _changing:
    for key in [key for key in _open if key[0] == owner]:
      del _open[key]
