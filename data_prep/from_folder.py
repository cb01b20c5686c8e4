"""Converts a folder with one sub-folder per identity to a data set.

  python -m data_prep.from_folder --input=DIR --output=DIR

Classes are numbered in the order of the folders' names; images are copied as
they are, after each was decoded once.

Training images, and new images of the same people for `evaluation.known`:

  python -m data_prep.from_folder --input=DIR --output=TRAIN --without_last=1
  python -m data_prep.from_folder --input=DIR --output=KNOWN --only_last=1
"""

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

from data_prep.formats.identity_folders import (
  Identities,
  find_classes,
  read_identities,
  split_last,
)
from data_prep.formats.pair_protocols import Pair, listed_pairs
from data_prep.writing import conversion, conversion_flags, upload
from data_prep.writing.conversion import Item
from data_prep.writing.exclusions import read_exclusions
from data_prep.writing.verification_set import pair_lines, pairs_without
from data_prep.writing.writer import SHARD_BYTES, DatasetAssembler
from jamsface_jax.data import records
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.protocols.groups_file import read_groups, write_groups
from jamsface_jax.storage.text_lists import escape
from jamsface_jax.storage.whole_file import written_whole


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
  add(
    "--max_images",
    metavar="N",
    type=conversion_flags.positive_integer,
    help="only the first N images of each identity, by name",
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
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      name=arguments.name,
      identities=arguments.identities,
      min_images=arguments.min_images,
      max_images=arguments.max_images,
      pairs=arguments.pairs,
      groups=arguments.groups,
      skip_bad=arguments.skip_bad,
      engine=arguments.engine,
      threads=arguments.threads,
      exclude=arguments.exclude,
      without_last=arguments.without_last,
      only_last=arguments.only_last,
    ),
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
  max_images: int | None = None,
  engine: str = "local",
  without_last: int = 0,
  only_last: int = 0,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: nothing to convert, an empty folder, or a broken image.
  """
  wanted = None if identities is None else read_identities(identities, source)
  excluded = set() if exclude is None else _read_exclusions(exclude, source)
  found = find_classes(
    source, wanted, min_images, excluded, skip_empty=skip_bad
  )
  classes = found.classes
  left_out = conversion.leave_aside(source, found.found, skip_bad=skip_bad)
  _say_missing(found)
  if max_images is not None:
    if max_images < min_images:
      raise InputError(
        f"--max_images={max_images} is below --min_images={min_images}, so that"
        " no identity is left: give a larger number."
      )
    classes = {one: files[:max_images] for one, files in classes.items()}
  if without_last or only_last:
    kept, last = split_last(classes, without_last or only_last, min_images)
    classes = kept if without_last else last
  total = sum(map(len, classes.values()))
  names = [item.name for item in _items(classes)] if pairs else []
  listed = (  # Before anything is written.
    listed_pairs(pairs, names, skip_missing=skip_bad) if pairs else []
  )
  of_classes = read_groups(groups, list(classes)) if groups else None
  with DatasetAssembler(
    directory,
    name=name,
    classes=list(classes),
    source=f"folder {os.path.abspath(source)} {total} {skip_bad}"
    + (f" without {sorted(excluded)}" if excluded else "")
    + (f" at most {max_images}" if max_images else ""),
    shard_bytes=shard_bytes,
    # Those that `split_last` has not seen to.
    min_images=1 if only_last else min_images,
    left_out=left_out,
  ) as assembler:
    if pairs:
      assembler.add_pairs(pairs)
    conversion.convert(
      assembler,
      conversion.look_up_files(source, _items(classes)),
      conversion.read_folder(
        source, skip_bad=skip_bad, mend="mend or delete it"
      ),
      total=total,
      engine=engine,
      threads=threads,
    )
    if pairs:
      _leave_pairs_out(assembler, names, listed)
    if of_classes:
      of_classes = {one: of_classes[one] for one in assembler.classes}
      write_groups(directory, of_classes)
  if pairs:
    then = conversion.evaluation_command(directory)
  elif only_last:
    known = f"--config.evaluation.known={directory}"
    then = conversion.training_command("TRAIN", total, known)
  else:
    then = conversion.training_command(directory, total)
  conversion.print_result(directory, assembler.skipped, then)


def _items(classes: Mapping[str, Sequence[str]]) -> Iterator[Item]:
  for label, (folder, files) in enumerate(classes.items()):
    for file in files:
      yield Item(label, f"{folder}/{file}", 0)


def _say_missing(found: Identities) -> None:
  """Says which identities are left out before any image is read."""
  for folders, why in (
    (found.empty, "have no image"),
    (found.small, "have fewer images than --min_images"),
  ):
    if folders:
      print(
        f"note: {len(folders):,} identities {why}, such as"
        f" {escape(folders[0])!r}: left out",
        file=sys.stderr,
      )


def _leave_pairs_out(
  assembler: DatasetAssembler, names: Collection[str], listed: Sequence[Pair]
) -> None:
  """Takes pairs out of `pairs.txt` of which an image is not there.

  Args:
    assembler: of the data set, once all images are there.
    names: the images that were to be there.
    listed: all pairs.
  """
  skipped = (line.split("\t")[0] for line in assembler.skipped_lines())
  there = set(names).difference(skipped)
  gone = {x for pair in listed for x in (pair.first, pair.second)} - there
  if not gone:
    return
  kept = pairs_without(gone, listed)
  path = os.path.join(assembler.directory, records.PAIRS_FILE)
  with written_whole(path) as file:
    file.write(pair_lines(kept))
  assembler.left_out = {"pairs": len(listed) - len(kept)}


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
