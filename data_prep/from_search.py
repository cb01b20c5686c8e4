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
import functools
import hashlib
import os
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import scipy.io

from data_prep.writing import conversion, conversion_flags
from data_prep.writing.conversion import Item, Reading
from data_prep.writing.writer import SKIPPED_FILE, DatasetAssembler
from jamsface_jax.data import decoding
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.protocols.search_file import HEADER, SEARCH_FILE
from jamsface_jax.storage.whole_file import written_whole

NOBODY = "distractors"  # The class of all of them.
# TinyFace: role, folder, file of its names and subjects, keys in the file.
_TINYFACE = (
  ("probe", "Probe", "probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
  (
    "gallery",
    "Gallery_Match",
    "gallery_match_img_ID_pairs.mat",
    "gallery_set",
    "gallery_ids",
  ),
)
_TINYFACE_DISTRACTORS = "Gallery_Distractor"
# What SciPy raises on files that are something else or cut off.
_DAMAGED = (
  ValueError,
  LookupError,
  TypeError,
  NotImplementedError,
  zlib.error,
  scipy.io.matlab.MatReadError,
)


class Entry(NamedTuple):
  """An image, whose it is ("" for a distractor's), and what it is for."""

  image: str
  subject: str
  role: str


def main() -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_search", __doc__)
  parser.add_argument("--input", required=True, help="folder, see above")
  arguments = conversion_flags.parse(parser)
  convert(
    arguments.input,
    arguments.output,
    name=arguments.name,
    skip_bad=arguments.skip_bad,
    threads=arguments.threads,
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
  if os.path.exists(os.path.join(source, _TINYFACE[0][2])):
    entries = read_tinyface(source)
  else:
    entries = read_folders(source)
  classes = sorted({entry.subject for entry in entries} - {""})
  labels = {subject: label for label, subject in enumerate(classes)}
  if any(entry.subject == "" for entry in entries):
    labels[""] = len(classes)
    classes.append(NOBODY)
  digest = hashlib.sha256(repr(entries).encode()).hexdigest()
  assembler = DatasetAssembler(
    directory,
    name=name,
    classes=classes,
    source=f"search {os.path.abspath(source)} {digest} {skip_bad}",
  )
  path = os.path.join(directory, SEARCH_FILE)
  write_search(path, entries)
  items = [Item(labels[entry.subject], entry.image, 0) for entry in entries]
  conversion.convert(
    assembler,
    conversion.add_file_sizes(source, items),
    Reading(
      open=functools.partial(conversion.open_folder, source),
      root=source,
      remedy="mend it, or leave such images out with --skip_bad",
      check=True,
      skip_bad=skip_bad,
    ),
    total=len(entries),
    engine="local",
    threads=threads,
  )
  if assembler.skipped:
    with open(os.path.join(directory, SKIPPED_FILE), encoding="utf-8") as file:
      skipped = {line.split("\t")[0] for line in file}
    write_search(path, [one for one in entries if one.image not in skipped])
  conversion.print_result(
    directory,
    assembler.skipped,
    f"python -m jamsface_jax.evaluate --workdir=W --data={directory}",
  )


def read_tinyface(source: str) -> list[Entry]:
  """Reads who is who in TinyFace's Testing_Set.

  Raises:
    InputError: a file or a folder is missing, or is another one.
  """
  entries = []
  for role, folder, file, names_key, ids_key in _TINYFACE:
    path = os.path.join(source, file)
    try:
      content = scipy.io.loadmat(path, simplify_cells=True)
      names, subjects = content[names_key], content[ids_key]
      if len(names) != len(subjects):
        raise ValueError(f"{len(names)} names, {len(subjects)} subjects")
      entries += [
        Entry(f"{folder}/{name}", str(int(subject)), role)
        for name, subject in zip(names, subjects, strict=True)
      ]
    except OSError as error:
      raise InputError(
        f"{path}: cannot be read ({error}); give TinyFace's Testing_Set."
      ) from None
    except _DAMAGED as error:
      raise InputError(
        f"{path}: does not list images and subjects ({error}); give TinyFace's"
        " own file."
      ) from None
  return entries + read_distractors(source, _TINYFACE_DISTRACTORS)


def read_folders(source: str) -> list[Entry]:
  """Lists the folders probe, gallery and distractor.

  Raises:
    InputError: no probes, or nobody to find.
  """
  entries = []
  for role in ("probe", "gallery"):
    folder = os.path.join(source, role)
    people = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for person in people:
      if os.path.isdir(os.path.join(folder, person)):
        entries += [
          Entry(image, person, role)
          for image in images_below(source, f"{role}/{person}")
        ]
  found = {entry.role for entry in entries}
  distractors = read_distractors(source, "distractor")
  if "probe" not in found or not ("gallery" in found or distractors):
    raise InputError(
      f"--input {source!r} does not have images in probe/PERSON and in"
      " gallery/PERSON or distractor: arrange them like that."
    )
  return entries + distractors


def read_distractors(source: str, folder: str) -> list[Entry]:
  """All images of a folder, as nobody's; none if it does not exist."""
  return [
    Entry(image, "", "distractor") for image in images_below(source, folder)
  ]


def images_below(source: str, folder: str) -> list[str]:
  """The images below a folder of `source`, as sorted paths from there."""
  return sorted(
    os.path.relpath(os.path.join(place, file), source)
    for place, _, files in os.walk(os.path.join(source, folder))
    for file in files
    if file.lower().endswith(decoding.EXTENSIONS) and not file.startswith(".")
  )


def write_search(path: str, entries: Sequence[Entry]) -> None:
  """Writes `search.csv`, whole or not at all."""
  with written_whole(path, newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(entries)


if __name__ == "__main__":
  run_command(main)
