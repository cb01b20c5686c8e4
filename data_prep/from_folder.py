"""Converts a folder with one sub-folder per identity to a data set.

  python -m data_prep.from_folder --input=DIR --output=DIR

Classes are numbered in the order of the folders' names; images are copied as
they are, after each was decoded once.

Training images, and new images of the same people for `evaluation.known`:

  python -m data_prep.from_folder --input=DIR --output=TRAIN --without_last=1
  python -m data_prep.from_folder --input=DIR --output=KNOWN --only_last=1
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence

from data_prep.formats.identity_folders import (
  find_classes,
  read_identities,
  split_last,
)
from data_prep.writing import conversion, conversion_flags
from data_prep.writing.conversion import Item, Reading
from data_prep.writing.exclusions import read_exclusions
from data_prep.writing.writer import SHARD_BYTES, DatasetAssembler
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.protocols.groups_file import read_groups, write_groups
from jamsface_jax.protocols.pairs_file import read_pairs


def main() -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_folder", __doc__)
  add = parser.add_argument
  add("--input", required=True, help="folder with one sub-folder per identity")
  add(
    "--identities",
    metavar="FILE",
    help="only the folders named by the first word of each line (LFW's"
    " peopleDevTrain.txt and the like)",
  )
  add(
    "--min_images",
    type=conversion_flags.positive_integer,
    default=1,
    help="leave out identities with fewer images",
  )
  last = parser.add_mutually_exclusive_group()
  last.add_argument(
    "--without_last",
    metavar="N",
    type=conversion_flags.positive_integer,
    default=0,
    help="leave out the last N images of each identity that has --min_images"
    " without them",
  )
  last.add_argument(
    "--only_last",
    metavar="N",
    type=conversion_flags.positive_integer,
    default=0,
    help="only the images that --without_last=N leaves out",
  )
  add(
    "--exclude",
    metavar="FILE",
    help="leave out the images named at the start of each line, as"
    " data_prep.clean and data_prep.inspect list them",
  )
  add(
    "--pairs",
    metavar="FILE",
    help="verification pairs over these images, in LFW's layout",
  )
  conversion_flags.add_groups(parser)
  conversion_flags.add_engine(parser)
  arguments = conversion_flags.parse(parser)
  convert(
    arguments.input,
    arguments.output,
    name=arguments.name,
    identities=arguments.identities,
    min_images=arguments.min_images,
    pairs=arguments.pairs,
    groups=arguments.groups,
    skip_bad=arguments.skip_bad,
    engine=arguments.engine,
    threads=arguments.threads,
    exclude=arguments.exclude,
    without_last=arguments.without_last,
    only_last=arguments.only_last,
  )
  return 0


def convert(
  source: str,
  directory: str,
  *,
  name: str,
  identities: str | None,
  min_images: int,
  pairs: str | None,
  skip_bad: bool,
  exclude: str | None,
  threads: int | None,
  groups: str | None = None,
  engine: str = "local",
  without_last: int = 0,
  only_last: int = 0,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: nothing to convert, an empty folder, or a broken image.
  """
  wanted = None if identities is None else read_identities(identities)
  excluded = set() if exclude is None else _read_exclusions(exclude, source)
  classes = find_classes(source, wanted, min_images, excluded)
  if without_last or only_last:
    kept, last = split_last(classes, without_last or only_last, min_images)
    classes = kept if without_last else last
  total = sum(map(len, classes.values()))
  if pairs:  # Before anything is written.
    read_pairs(pairs, [item.name for item in _items(classes)])
  of_classes = read_groups(groups, list(classes)) if groups else None
  with DatasetAssembler(
    directory,
    name=name,
    classes=list(classes),
    source=f"folder {os.path.abspath(source)} {total} {skip_bad}"
    + (f" without {sorted(excluded)}" if excluded else ""),
    shard_bytes=shard_bytes,
  ) as assembler:
    if pairs:
      assembler.add_pairs(pairs)
    if of_classes:
      write_groups(directory, of_classes)
    conversion.convert(
      assembler,
      conversion.look_up_files(source, _items(classes)),
      Reading(
        open=functools.partial(conversion.open_folder, source),
        root=source,
        remedy="mend or delete it, or leave such images out with --skip_bad",
        check=True,
        skip_bad=skip_bad,
      ),
      total=total,
      engine=engine,
      threads=threads,
    )
  if pairs:
    then = conversion.evaluation_command(directory)
  elif only_last:
    known = f"--config.evaluation.known={directory}"
    then = conversion.training_command("TRAIN", "configs/lfw_cpu.py", known)
  else:
    then = conversion.training_command(directory, "configs/lfw_cpu.py")
  conversion.print_result(directory, assembler.skipped, then)


def _items(classes: Mapping[str, Sequence[str]]) -> Iterator[Item]:
  for label, (folder, files) in enumerate(classes.items()):
    for file in files:
      yield Item(label, f"{folder}/{file}", 0)


def _read_exclusions(path: str, source: str) -> set[str]:
  """The images to leave out, all of which exist."""
  excluded = read_exclusions(path)
  for image in sorted(excluded):
    if not os.path.isfile(os.path.join(source, image)):
      raise InputError(
        f"--exclude {path!r} names {image!r}, which is not in {source!r}: give"
        " the list that belongs to these images."
      )
  return excluded


if __name__ == "__main__":
  run_command(main)
