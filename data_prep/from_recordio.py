"""Converts MXNet RecordIO to a data set, without MXNet.

  python -m data_prep.from_recordio --input=faces_emore --output=data/ms1m_v2

The input is a folder with train.rec or a single .rec file, of InsightFace's
dialect (a header, images, one record for each identity) or im2rec's (images
only). An .idx file beside it is used if there; without one the records are
found by going through the file. Images are copied as they are. An image's name
is its key in the .idx, or else the number of its record in the file, from 0.
"""

import contextlib
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping

import numpy as np
from tqdm import tqdm

from data_prep.formats import recordio
from data_prep.writing import (
  conversion,
  conversion_flags,
  exclusions,
  upload,
)
from data_prep.writing.conversion import Item, Reading
from data_prep.writing.writer import SHARD_BYTES, DatasetAssembler
from jamsface_jax.data import decoding
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.file_state import file_state
from jamsface_jax.storage.plain_file import plain

_RECORDS = "train.rec"
_PROPERTY = "property"  # "classes,height,width", beside InsightFace's files.
_NO_LABEL = -1  # Of a damaged record.
_AROUND = "copy the file again, or read around such places with --skip_bad"


def main() -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_recordio", __doc__)
  add = parser.add_argument
  add("--input", required=True, help=f"folder with {_RECORDS}, or a .rec file")
  add(
    "--limit",
    type=conversion_flags.positive_integer,
    help="only the first LIMIT images",
  )
  add(
    "--min_images_per_class",
    type=conversion_flags.positive_integer,
    default=1,
    help="leave out classes with fewer images and close the gaps; classes.txt"
    " keeps the labels of the input",
  )
  add(
    "--remap_labels",
    action="store_true",
    help="close gaps in the labels of the input too; otherwise an error",
  )
  add("--exclude", metavar="FILE", help="names of images to leave out, a line")
  conversion_flags.add_check_images(parser)
  conversion_flags.add_engine(parser)
  arguments = conversion_flags.parse(parser)
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      name=arguments.name,
      limit=arguments.limit,
      min_images_per_class=arguments.min_images_per_class,
      remap_labels=arguments.remap_labels,
      skip_bad=arguments.skip_bad,
      exclude=arguments.exclude,
      check_images=arguments.check_images,
      engine=arguments.engine,
      threads=arguments.threads,
    ),
  )
  return 0


def convert(
  source: str,
  directory: str,
  *,
  name: str,
  limit: int | None,
  min_images_per_class: int,
  remap_labels: bool,
  skip_bad: bool,
  exclude: str | None,
  check_images: bool,
  threads: int | None,
  engine: str = "local",
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the data set; see the flags of this command.

  The heads of all records are read first, to count the classes; then the
  images. Memory grows with the number of classes, not of images.

  Raises:
    InputError: damaged or missing files, labels with gaps, a broken image.
  """
  path, index_path = find_records(source)
  excluded = exclusions.read_exclusions(exclude) if exclude else set()
  with recordio.RecordFile(path, index_path) as file:
    class_sizes = _count(file, excluded, limit=limit, skip_bad=skip_bad)
    if not remap_labels:
      _check_gaps(path, class_sizes)
    kept = [
      label
      for label in sorted(class_sizes)
      if class_sizes[label] >= min_images_per_class
    ]
    if not kept:
      raise InputError(
        f"{path!r} has no class with at least {min_images_per_class} image(s):"
        " check --input, --exclude and --min_images_per_class."
      )
    new_labels = {label: number for number, label in enumerate(kept)}
    total = sum(class_sizes[label] for label in kept)
    with DatasetAssembler(
      directory,
      name=name,
      classes=[f"{label:07d}" for label in kept],
      source=_identify(file, excluded, limit, skip_bad, check_images),
      shard_bytes=shard_bytes,
      min_images=min_images_per_class,
    ) as assembler:
      conversion.convert(
        assembler,
        _items(file, excluded, limit, new_labels),
        Reading(
          open=functools.partial(_open, path),
          root="",
          remedy=_AROUND,
          check=check_images,
          skip_bad=skip_bad,
        ),
        total=total,
        engine=engine,
        threads=threads,
      )
  conversion.print_result(
    directory,
    assembler.skipped,
    conversion.training_command(directory, total),
  )


def find_records(source: str) -> tuple[str, str | None]:
  """Finds a `.rec` file and its `.idx`, if it has one.

  Args:
    source: a folder with `train.rec`, or a `.rec` file.

  Raises:
    InputError: neither.
  """
  path = os.path.join(source, _RECORDS) if os.path.isdir(source) else source
  if not os.path.isfile(path):
    raise InputError(
      f"--input {source!r} is neither a folder with {_RECORDS} nor a file: give"
      " one of them."
    )
  index_path = os.path.splitext(path)[0] + ".idx"
  if index_path == path:
    raise InputError(
      f"--input {source!r} is an index: give the .rec file beside it."
    )
  return path, index_path if os.path.exists(index_path) else None


def _count(
  file: recordio.RecordFile,
  excluded: set[str],
  *,
  limit: int | None,
  skip_bad: bool,
) -> Counter[int]:
  """Goes through all heads, checks them, and counts the images of a label."""
  class_sizes: Counter[int] = Counter()
  images = taken = identities = damages = listed_bytes = 0
  last_label = -1
  header = None
  missing = set(excluded)
  with tqdm(
    total=file.size, unit="B", unit_scale=True, desc="counting", disable=None
  ) as bar:
    for record in file.records():
      listed_bytes += record.end - record.offset
      bar.update(record.end - record.offset)
      is_excluded = str(record.key) in excluded
      missing.discard(str(record.key))
      if isinstance(record, recordio.Damage):
        if not skip_bad and not is_excluded:
          raise InputError(f"{record.reason}: {_AROUND}.")
        images += 1  # For all that is known.
        damages += 1
      elif isinstance(record, recordio.Table):
        if record.key == 0:
          header = record
        else:
          identities += 1
      else:
        images += 1
        last_label = max(last_label, record.label)
        if not is_excluded:
          class_sizes[record.label] += 1
          taken += 1
          if taken == limit:
            return class_sizes
  if missing:
    raise InputError(
      f"--exclude names {min(missing)!r}, which is no record of {file.path!r}:"
      " give the list that belongs to it."
    )
  problem = (
    _check_header(file, header, images, identities)
    or _check_property(file, last_label + 1)
    # What is damaged may have any length.
    or ("" if damages else _check_index(file, listed_bytes))
  )
  if problem and not skip_bad:
    raise InputError(f"{problem}: {_AROUND}.")
  if problem:
    print(f"warning: {problem}", file=sys.stderr)
  return class_sizes


def _check_header(
  file: recordio.RecordFile,
  header: recordio.Table | None,
  images: int,
  identities: int,
) -> str:
  """What a header that counts wrong says; nothing if it is right."""
  if header is None and identities:
    return (
      f"{file.path!r} has {identities} records without image but no header"
      " (key 0) that they belong to"
    )
  if header is None:
    return ""
  # Float32, so the header of a large file is rounded.
  ends = np.array([images + 1, images + 1 + identities], np.float32)
  if np.array_equal(ends, np.array(header.labels, np.float32)):
    return ""
  first, second = header.labels
  return (
    f"byte {header.offset} of {file.path!r}: the header says that images end"
    f" at key {first:.0f} and identities at {second:.0f}, but there are"
    f" {images} images and {identities} identities"
  )


def _check_property(file: recordio.RecordFile, classes: int) -> str:
  """What a wrong number of classes in `property` says; nothing if right."""
  folder, name = os.path.split(file.path)
  path = os.path.join(folder, _PROPERTY)
  if name != _RECORDS or not os.path.exists(path):
    return ""
  try:
    with open(path, "rb", opener=plain) as opened:
      stated = int(opened.readline(1024).split(b",")[0])
  except (OSError, ValueError):
    return f"{path!r} does not begin with a number of classes"
  if stated == classes:
    return ""
  return f"{path!r} says {stated} classes, but the labels end at {classes - 1}"


def _check_index(file: recordio.RecordFile, listed_bytes: int) -> str:
  """What an index that is not of this file says; nothing if it is."""
  if file.index_path is None or listed_bytes == file.size:
    return ""
  how = "leaves out" if listed_bytes < file.size else "repeats"
  return (
    f"{file.index_path!r} {how} records: those it lists have {listed_bytes}"
    f" bytes, but {file.path!r} has {file.size}"
  )


def _check_gaps(path: str, labels: Collection[int]) -> None:
  """Refuses labels that are not 0, 1, 2, ..."""
  for number, label in enumerate(sorted(labels)):
    if number != label:
      raise InputError(
        f"{path!r} has label {label} but no image of label {number}: close the"
        " gaps with --remap_labels if they are meant."
      )


def _identify(
  file: recordio.RecordFile, excluded: set[str], *flags: object
) -> str:
  """Says what is converted, so that only the same conversion is continued."""
  names = exclusions.digest(excluded)
  paths = filter(None, (file.path, file.index_path))
  states = [str(file_state(path)) for path in paths]
  return repr((os.path.abspath(file.path), states, names, flags))


def _items(
  file: recordio.RecordFile,
  excluded: set[str],
  limit: int | None,
  new_labels: Mapping[int, int],
) -> Iterator[Item]:
  """What the data set takes or skips, in order."""
  images = 0
  for record in file.records():
    name = str(record.key)
    if isinstance(record, recordio.Table) or name in excluded:
      continue
    if isinstance(record, recordio.Damage):
      yield Item(_NO_LABEL, name, 0, place=record)
      continue
    if record.label in new_labels:
      yield Item(
        label=new_labels[record.label],
        name=name,
        size=record.length - record.start,
        where=f"byte {record.offset} of {file.path!r}: ",
        place=record,
      )
    images += 1
    if images == limit:
      break


@contextlib.contextmanager
def _open(path: str) -> Generator[Callable[[Item], bytes]]:
  """The `Reading.open` of records."""
  with recordio.RecordFile(path, None) as file:

    def load(item: Item) -> bytes:
      if isinstance(item.place, recordio.Image):
        return file.read_image(item.place)
      assert isinstance(item.place, recordio.Damage)
      raise decoding.DecodingError(item.place.reason)

    yield load


if __name__ == "__main__":
  run_command(main)
