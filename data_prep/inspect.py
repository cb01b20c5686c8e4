"""Verifies and describes a data set.

  python -m data_prep.inspect DIR --output=REPORT
  python -m data_prep.inspect TRAIN --against=TEST

Everything is read and decoded once: run it after copying a data set. Wrong are
a checksum, an image that cannot be decoded, a label or a count that is not what
dataset.json says: exit code 1. Grey images and duplicates are told, not wrong.

Two images are called the same file if their encoded bytes are (64 bits of a
SHA-256), the same picture if, shrunk to 8 x 8 grey pixels, each pixel is
brighter or darker than its right and its lower neighbour in both. In LFW's
13,233 aligned faces that found, besides equal files, two pairs of near copies
(correlation 0.99 and 0.96); of copies made for a test it knew 96 % after JPEG
of quality 95, 87 % of 85, 66 % of 60, 92 % at half the size. For the rest, and
for other crops, use data_prep.clean.

With --output: inspect.json has all figures, duplicates.tsv the duplicates but
the first of each (converters take it as --exclude), class_sizes.png the long
tail, and with --faces contact_sheet.png 64 of the images.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_prep.inspection.duplicates import find_duplicates, write_duplicates
from data_prep.inspection.pictures import draw_contact_sheet, plot_class_sizes
from data_prep.inspection.survey import (
  EXAMPLES,
  check_index,
  check_shards,
  take_survey,
)
from jamsface_jax import shell
from jamsface_jax.data import records
from jamsface_jax.errors import EXIT_FAILURE, InputError, run_command
from jamsface_jax.storage import lock
from jamsface_jax.storage.whole_file import written_whole

REPORT_FILE = "inspect.json"
DUPLICATES_FILE = "duplicates.tsv"
CLASS_SIZES_FILE = "class_sizes.png"
CONTACT_SHEET_FILE = "contact_sheet.png"

_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def main() -> int:
  """Reads the flags, inspects and reports."""
  parser = argparse.ArgumentParser(
    prog=shell.name("data_prep.inspect"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("directory", metavar="DIR", help="the data set")
  add("--against", metavar="DIR", help="another one: are its images in DIR?")
  add("--output", metavar="DIR", help="where files and pictures go")
  add(
    "--faces",
    action="store_true",
    help=f"write {CONTACT_SHEET_FILE}, which shows people; needs --output",
  )
  add("--threads", type=int, default=os.cpu_count(), help="for decoding")
  arguments = parser.parse_args()
  if arguments.faces and not arguments.output:
    raise InputError("--faces needs --output: say where the picture may go.")
  findings = inspect(
    arguments.directory,
    against=arguments.against,
    output=arguments.output,
    faces=arguments.faces,
    threads=arguments.threads,
  )
  return EXIT_FAILURE if findings["wrong"] else 0


def inspect(
  directory: str,
  *,
  against: str | None,
  output: str | None,
  faces: bool,
  threads: int,
) -> dict:
  """Inspects a data set and prints a table; see the flags of this command.

  Args:
    directory: the data set.
    against: a second one, whose images are looked for in the first.
    output: directory of the report's files, made if missing; None for none.
    faces: draw the contact sheet, too.
    threads: that decode.

  Returns:
    What `inspect.json` holds; "wrong" is the number of errors.

  Raises:
    InputError: no data set, or one with a missing or truncated shard.
  """
  reader = records.RecordReader(directory)
  other = None if against is None else records.RecordReader(against)
  with contextlib.ExitStack() as stack:
    if output is not None:
      stack.enter_context(lock.hold(output, "--output"))
    return _inspect(reader, other, output, faces=faces, threads=threads)


def _inspect(
  reader: records.RecordReader,
  other: records.RecordReader | None,
  output: str | None,
  *,
  faces: bool,
  threads: int,
) -> dict:
  """Inspects what was opened; see `inspect`."""
  with ThreadPoolExecutor(threads) as pool:
    of_shards = check_shards(reader, pool)
    survey = take_survey(reader, pool)
    other_survey = None if other is None else take_survey(other, pool)
  of_index = check_index(reader, survey)
  errors = of_shards + survey.errors.first + of_index
  duplicates = find_duplicates(survey, other_survey)
  index = reader.index
  findings = {
    "directory": os.path.abspath(reader.directory),
    "name": index.name,
    "fingerprint": index.fingerprint(),
    "images": index.images,
    "classes": index.classes,
    "bytes": sum(shard.bytes for shard in index.shards),
    "class_sizes": _quantiles(index.class_sizes),
    "image_sizes": [
      [*size, count] for size, count in survey.image_sizes.most_common()
    ],
    "grey_images": survey.grey,
    "wrong": len(of_shards) + survey.errors.count + len(of_index),
    "errors": errors[:EXAMPLES],
    **{kind: len(pairs) for kind, pairs in duplicates.items()},
  }
  if other is not None:
    findings["against"] = os.path.abspath(other.directory)
  _print(findings)
  if output is not None:
    write_duplicates(
      os.path.join(output, DUPLICATES_FILE), duplicates, reader, other
    )
    plot_class_sizes(index.class_sizes, os.path.join(output, CLASS_SIZES_FILE))
    if faces:
      draw_contact_sheet(reader, os.path.join(output, CONTACT_SHEET_FILE))
    path = os.path.join(output, REPORT_FILE)
    with written_whole(path) as file:
      json.dump(findings, file, indent=2)
    print(f"report: {path}")
  return findings


def _quantiles(class_sizes: Sequence[int]) -> dict[str, float]:
  """Mean and quantiles of the class sizes, and classes of a single image."""
  sizes = np.asarray(class_sizes)
  return {
    "mean": float(sizes.mean()),
    **{
      f"{percent} %": float(np.percentile(sizes, percent))
      for percent in _QUANTILES
    },
    "single": int((sizes == 1).sum()),
  }


def _print(findings: dict) -> None:
  """Prints the findings as a table."""
  sizes = findings["class_sizes"]
  quantiles = [f"{percent} %" for percent in _QUANTILES]
  image_sizes = [
    f"{height} x {width}: {count:,}"
    for height, width, count in findings["image_sizes"][:5]
  ]
  more = len(findings["image_sizes"]) - len(image_sizes)
  if more:
    image_sizes.append(f"{more:,} other sizes")
  rows = [
    ("data set", f"{findings['name']} in {findings['directory']}"),
    (
      "images",
      f"{findings['images']:,} ({findings['bytes'] / 2**20:,.1f} MiB)",
    ),
    ("classes", f"{findings['classes']:,} ({sizes['single']:,} of one image)"),
    ("class size, mean", f"{sizes['mean']:.1f}"),
    *((f"class size, {q}", f"{sizes[q]:,.0f}") for q in quantiles),
    ("height x width", "; ".join(image_sizes)),
    ("grey images", f"{findings['grey_images']:,}"),
    ("same file twice", f"{findings['same_file']:,}"),
    ("same picture twice", f"{findings['same_picture']:,} more"),
  ]
  if "against" in findings:
    rows += [
      ("against", findings["against"]),
      ("same file there", f"{findings['same_file_in_other']:,}"),
      ("same picture there", f"{findings['same_picture_in_other']:,} more"),
    ]
  rows.append(("wrong", f"{findings['wrong']:,}"))
  for name, value in rows:
    print(f"{name:<20} {value}")
  for error in findings["errors"]:
    print(f"  {error}")


if __name__ == "__main__":
  run_command(main)
