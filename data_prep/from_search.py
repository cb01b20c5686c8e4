"""Makes a data set for searches: TinyFace, MegaFace, or faces of your own.

  python -m data_prep.from_search --input=tinyface/Testing_Set --output=D
  python -m data_prep.from_search --input=DIR --output=D

The first is TinyFace's own layout: folders Probe, Gallery_Match and
Gallery_Distractor, and the two files *_img_ID_pairs.mat. Images may be replaced
by aligned ones of the same names. In a DIR of your own lie

  probe/PERSON/...     what is searched
  gallery/PERSON/...   what is found; without this folder each probe is searched
                       for each other probe of its person, as MegaFace does
  distractor/...       optional with a gallery: of nobody among the probes

Beside the images the data set has a search.csv, `image,subject,role`, which
jamsface_jax.evaluate reads.
"""

import csv
import hashlib
import os
from collections.abc import Sequence

from data_prep.formats.search_folders import (
  Entry,
  is_tinyface,
  read_folders,
  read_tinyface,
)
from data_prep.writing import conversion, conversion_flags, upload
from data_prep.writing.conversion import Item
from data_prep.writing.writer import DatasetAssembler
from jamsface_jax.data.folders import Walk
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.protocols.search_file import HEADER, SEARCH_FILE
from jamsface_jax.storage.whole_file import written_whole

NOBODY = "distractors"  # The class of all of them.


def main() -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_search", __doc__)
  parser.add_argument("--input", required=True, help="folder, see above")
  arguments = conversion_flags.parse(parser)
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      name=arguments.name,
      skip_bad=arguments.skip_bad,
      threads=arguments.threads,
    ),
  )
  return 0


def convert(
  source: str,
  directory: str,
  *,
  name: str,
  skip_bad: bool,
  threads: int | None,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: not such a folder, or a broken image.
  """
  if not os.path.isdir(source):
    raise InputError(f"--input {source!r} is not a folder: give one.")
  found = Walk()
  read = read_tinyface if is_tinyface(source) else read_folders
  entries = read(source, found)
  left_out = conversion.leave_aside(source, found, skip_bad=skip_bad)
  classes = sorted({entry.subject for entry in entries} - {""})
  labels = {subject: label for label, subject in enumerate(classes)}
  if any(entry.subject == "" for entry in entries):
    labels[""] = len(classes)
    classes.append(NOBODY)
  digest = hashlib.sha256(repr(entries).encode()).hexdigest()
  with DatasetAssembler(
    directory,
    name=name,
    classes=classes,
    source=f"search {os.path.abspath(source)} {digest} {skip_bad}",
    left_out=left_out,
  ) as assembler:
    path = os.path.join(directory, SEARCH_FILE)
    write_search(path, entries)
    items = [Item(labels[entry.subject], entry.image, 0) for entry in entries]
    conversion.convert(
      assembler,
      conversion.look_up_files(source, items),
      conversion.read_folder(source, skip_bad=skip_bad),
      total=len(entries),
      engine="local",
      threads=threads,
    )
    if assembler.skipped:
      skipped = {line.split("\t")[0] for line in assembler.skipped_lines()}
      write_search(path, [one for one in entries if one.image not in skipped])
  conversion.print_result(
    directory,
    assembler.skipped,
    conversion.evaluation_command(directory),
  )


def write_search(path: str, entries: Sequence[Entry]) -> None:
  """Writes `search.csv`, whole or not at all."""
  with written_whole(path, newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(entries)


if __name__ == "__main__":
  run_command(main)
