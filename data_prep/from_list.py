"""Converts a list of images and labels to a data set.

  python -m data_prep.from_list --input=train.csv --root=DIR --output=DIR

The list has a path and a label on each line, with a tab, a semicolon, a comma
or blanks between them: the first of these that its first line has. Or its first
line is a header that names one column of each kind, among any others:

  path, image, file, filename, image_path, file_path, filepath
  label, identity, class, person, subject, name, id

(of several of a kind, the first of this list). A file called .lst has im2rec's
columns (number, label, path) or InsightFace's (1, path, label, ...). Labels are
integers or names; the classes are numbered in their order, and classes.txt
keeps them. Paths are relative to --root. Images are copied as they are.
"""

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np

from data_prep.formats.image_list import read_entries
from data_prep.writing import (
  conversion,
  conversion_flags,
  exclusions,
  upload,
)
from data_prep.writing.conversion import Item
from data_prep.writing.writer import SHARD_BYTES, DatasetAssembler
from jamsface_jax.data import records
from jamsface_jax.errors import InputError, run_command


def main() -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_list", __doc__)
  add = parser.add_argument
  add("--input", required=True, help="text file, a path and a label a line")
  add("--root", required=True, help="folder that the paths are relative to")
  add(
    "--min_images_per_class",
    type=conversion_flags.positive_integer,
    default=1,
    help="leave out classes with fewer images",
  )
  add("--exclude", metavar="FILE", help="paths of images to leave out, a line")
  conversion_flags.add_check_images(parser)
  conversion_flags.add_engine(parser)
  arguments = conversion_flags.parse(parser)
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      root=arguments.root,
      name=arguments.name,
      min_images_per_class=arguments.min_images_per_class,
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
  root: str,
  name: str,
  min_images_per_class: int,
  skip_bad: bool,
  exclude: str | None,
  check_images: bool,
  threads: int | None,
  engine: str = "local",
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the data set; see the flags of this command.

  The list is read twice, so that of each line 8 bytes are in memory.

  Raises:
    InputError: a line that is no path and label, a path listed twice, or an
      image that is missing or broken.
  """
  if not os.path.isdir(root):
    raise InputError(
      f"--root {root!r} is not a folder: give the one that the paths in"
      f" {source!r} begin from."
    )
  excluded = exclusions.read_exclusions(exclude) if exclude else set()
  class_sizes = _count(source, excluded)
  _check_numbers(source, class_sizes)
  kept = [
    label
    for label in sorted(class_sizes, key=_order(class_sizes))
    if class_sizes[label] >= min_images_per_class
  ]
  if not kept:
    raise InputError(
      f"{source!r} has no class with at least {min_images_per_class} image(s):"
      " check --input, --exclude and --min_images_per_class."
    )
  numbers = {label: number for number, label in enumerate(kept)}
  total = sum(class_sizes[label] for label in kept)
  with DatasetAssembler(
    directory,
    name=name,
    classes=kept,
    source=_identify(source, root, excluded, skip_bad, check_images),
    shard_bytes=shard_bytes,
    min_images=min_images_per_class,
  ) as assembler:
    listed = (
      Item(
        numbers[entry.label],
        entry.path,
        0,
        where=f"line {entry.line} of {source!r}: ",
      )
      for entry in read_entries(source)
      if entry.path not in excluded and entry.label in numbers
    )
    conversion.convert(
      assembler,
      conversion.look_up_files(root, listed),
      conversion.read_folder(
        root,
        skip_bad=skip_bad,
        check=check_images,
        mend="mend --root or the image",
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


def _count(source: str, excluded: set[str]) -> Counter[str]:
  """Counts the images of a label; refuses a path that is listed twice."""
  class_sizes: Counter[str] = Counter()
  missing = set(excluded)
  hashes = array("q")
  for entry in read_entries(source):
    missing.discard(entry.path)
    if entry.path not in excluded:
      class_sizes[entry.label] += 1
      hashes.append(hash(entry.path))
  if missing:
    raise InputError(
      f"--exclude names {min(missing)!r}, which is not in {source!r}: give the"
      " list that belongs to it."
    )
  values, counts = np.unique(hashes, return_counts=True)
  suspects = set(values[counts > 1].tolist())
  if suspects:
    _check_duplicates(source, suspects)
  return class_sizes


def _check_numbers(source: str, labels: Collection[str]) -> None:
  """Refuses labels that are one number written in two ways."""
  numbers: dict[str, str] = {}
  for label in labels:
    if label.isascii() and label.isdigit():
      other = numbers.setdefault(label.lstrip("0"), label)
      if other != label:
        one, two = sorted((label, other))
        raise InputError(
          f"{source!r} has the labels {one!r} and {two!r}, which are one"
          " number: write it in one way, or begin names with a letter."
        )


def _check_duplicates(source: str, suspects: set[int]) -> None:
  """Refuses a path listed twice; only paths with these hashes can be."""
  lines: dict[str, int] = {}
  for entry in read_entries(source):
    if hash(entry.path) in suspects:
      if entry.path in lines:
        raise InputError(
          f"line {entry.line} of {source!r} repeats the path"
          f" {entry.path!r} of line {lines[entry.path]}: delete one of them."
        )
      lines[entry.path] = entry.line


def _order(labels: Collection[str]) -> Callable[[str], tuple[int, str]]:
  """The key that sorts labels: by value if all are integers, else by name."""
  # 18 digits: within int64, and no cost to convert.
  if all(re.fullmatch(r"[0-9]{1,18}", label) for label in labels):
    return lambda label: (int(label), label)
  return lambda label: (0, label)


def _identify(
  source: str, root: str, excluded: set[str], *flags: object
) -> str:
  """Says what is converted, so that only the same conversion is continued."""
  names = exclusions.digest(excluded)
  content, _ = records.file_digest(source)
  return repr((content, os.path.abspath(root), names, flags))


if __name__ == "__main__":
  run_command(main)
