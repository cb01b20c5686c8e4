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
import collections
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from matplotlib import figure
from matplotlib.backends import backend_agg
from tqdm import tqdm

from data_prep.writing.exclusions import HEADER
from jamsface_jax.data import decoding, records
from jamsface_jax.errors import EXIT_FAILURE, InputError, run_command

REPORT_FILE = "inspect.json"
DUPLICATES_FILE = "duplicates.tsv"
CLASS_SIZES_FILE = "class_sizes.png"
CONTACT_SHEET_FILE = "contact_sheet.png"

_AT_ONCE = 1024  # Records in memory.
_EXAMPLES = 20  # Of what is wrong, in the report; all are counted.
_HASH_SIDE = 8
_UNREAD = np.iinfo(np.int64).min
_TILES, _TILE_SIZE = 8, 112  # Of the contact sheet: a side, pixels.
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def main() -> int:
  """Reads the flags, inspects and reports."""
  parser = argparse.ArgumentParser(
    prog="python -m data_prep.inspect",
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
  if output is not None:
    try:
      os.makedirs(output, exist_ok=True)
    except OSError as error:
      raise InputError(
        f"--output {output!r} cannot be made ({error.strerror}): choose another"
        " directory."
      ) from None
  with ThreadPoolExecutor(threads) as pool:
    errors = _check_shards(reader, pool)
    survey = _survey(reader, pool)
    other_survey = None if other is None else _survey(other, pool)
  errors += survey.errors + _check_index(reader, survey)
  duplicates = _duplicates(survey, other_survey)
  index = reader.index
  findings = {
    "directory": os.path.abspath(directory),
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
    "wrong": len(errors),
    "errors": errors[:_EXAMPLES],
    **{kind: len(pairs) for kind, pairs in duplicates.items()},
  }
  if other is not None:
    findings["against"] = os.path.abspath(against)
  _print(findings)
  if output is not None:
    _write_duplicates(
      os.path.join(output, DUPLICATES_FILE), duplicates, reader, other
    )
    plot_class_sizes(index.class_sizes, os.path.join(output, CLASS_SIZES_FILE))
    if faces:
      _draw_contact_sheet(reader, os.path.join(output, CONTACT_SHEET_FILE))
    path = os.path.join(output, REPORT_FILE)
    with open(path, "w", encoding="utf-8") as file:
      json.dump(findings, file, indent=2)
    print(f"report: {path}")
  return findings


@dataclasses.dataclass
class _Survey:
  """What decoding all N images told; 25 bytes an image.

  Attributes:
    labels: int64 [N]; _UNREAD where the record could not be read.
    files: a hash of each image's bytes, uint64 [N].
    pictures: a hash of what each image shows, uint64 [N].
    sound: whether the image could be decoded, bool [N].
    image_sizes: images of each (height, width).
    grey: images whose three channels are equal.
    errors: a sentence for each record that is not right.
  """

  labels: np.ndarray
  files: np.ndarray
  pictures: np.ndarray
  sound: np.ndarray
  image_sizes: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  grey: int = 0
  errors: list[str] = dataclasses.field(default_factory=list)


def _check_shards(
  reader: records.RecordReader, pool: ThreadPoolExecutor
) -> list[str]:
  """Compares each shard's SHA-256 with the recorded one."""

  def check(shard):
    path = os.path.join(reader.directory, shard.file)
    return records.file_digest(path)[0] == shard.sha256

  shards = reader.index.shards
  right = tqdm(
    pool.map(check, shards), total=len(shards), unit="shard", disable=None
  )
  return [
    f"shard {shard.file} has another checksum than {records.INDEX_FILE} says"
    for shard, ok in zip(shards, right, strict=True)
    if not ok
  ]


def _survey(reader: records.RecordReader, pool: ThreadPoolExecutor) -> _Survey:
  """Decodes every image."""
  count = len(reader)
  survey = _Survey(
    labels=np.full(count, _UNREAD, np.int64),
    files=np.zeros(count, np.uint64),
    pictures=np.zeros(count, np.uint64),
    sound=np.zeros(count, bool),
  )
  with tqdm(total=count, unit="image", disable=None) as bar:
    for start in range(0, count, _AT_ONCE):
      ids = range(start, min(start + _AT_ONCE, count))
      found = pool.map(_look, _read(reader, ids))
      for number, look in zip(ids, found, strict=True):
        _enter(survey, number, look)
        bar.update()
  return survey


def _read(
  reader: records.RecordReader, ids: Sequence[int]
) -> list[records.Record | None]:
  """Reads records; None for each that its shard no longer gives."""
  try:
    return reader.read(ids)
  except InputError:
    if len(ids) == 1:
      return [None]
    return [record for number in ids for record in _read(reader, [number])]


@dataclasses.dataclass(frozen=True)
class _Look:
  """What one image told; `broken` says why it could not be decoded."""

  label: int
  name: str
  file: int
  broken: str = ""
  picture: int = 0
  size: tuple[int, int] = (0, 0)
  grey: bool = False


def _look(record: records.Record | None) -> _Look | None:
  if record is None:
    return None
  head = (record.label, record.name, _hash(record.image))
  try:
    pixels = decoding.decode_image(record.image)
  except decoding.DecodingError as error:
    return _Look(*head, broken=str(error))
  red, green, blue = cv2.split(pixels)
  return _Look(
    *head,
    picture=picture_hash(pixels),
    size=pixels.shape[:2],
    grey=np.array_equal(red, green) and np.array_equal(green, blue),
  )


def picture_hash(pixels: np.ndarray) -> int:
  """Hashes what an image shows, the same for a recompressed copy.

  The difference hash (https://www.hackerfactor.com/blog/?/archives/529) to the
  right and down; one direction alone takes different faces for the same.

  Args:
    pixels: uint8 [H, W, 3].

  Returns:
    64 bits.
  """
  grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  # Of floats, lest rounding make neighbours equal that are not.
  small = cv2.resize(
    grey.astype(np.float32),
    (_HASH_SIDE, _HASH_SIDE),
    interpolation=cv2.INTER_AREA,
  )
  right = small[:-1, 1:] > small[:-1, :-1]
  down = small[1:, :-1] > small[:-1, :-1]
  return _hash(np.packbits([right, down]).tobytes())


def _hash(data: bytes) -> int:
  return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def _enter(survey: _Survey, number: int, look: _Look | None) -> None:
  """Enters what image `number` told."""
  if look is None:
    survey.errors.append(f"record {number} cannot be read")
    return
  survey.labels[number] = look.label
  survey.files[number] = look.file
  if look.broken:
    survey.errors.append(f"image {look.name!r}: {look.broken}")
    return
  survey.sound[number] = True
  survey.pictures[number] = look.picture
  survey.image_sizes[look.size] += 1
  survey.grey += look.grey


def _check_index(reader: records.RecordReader, survey: _Survey) -> list[str]:
  """Compares what dataset.json says with what is there."""
  index, errors = reader.index, []
  labels = survey.labels[survey.labels != _UNREAD]
  outside = (labels < 0) | (labels >= index.classes)
  if outside.any():
    errors.append(
      f"{outside.sum()} labels lie outside [0, {index.classes}), the first is"
      f" {labels[outside][0]}"
    )
  sizes = np.bincount(labels[~outside], minlength=index.classes)
  if len(index.class_sizes) != index.classes:
    errors.append(
      f"class_sizes has {len(index.class_sizes)} entries for {index.classes}"
      " classes"
    )
  elif len(labels) == len(survey.labels):  # Else the counts cannot be right.
    errors += [
      f"class {label} has {sizes[label]} images, not {index.class_sizes[label]}"
      for label in np.flatnonzero(sizes != index.class_sizes)
    ]
  errors += _check_labels(reader, survey)
  if index.image_size is not None and any(
    size != index.image_size for size in survey.image_sizes
  ):
    errors.append(f"not every image has the image_size {index.image_size}")
  names = len(records.read_classes(reader.directory))
  if names != index.classes:
    errors.append(
      f"{records.CLASSES_FILE} has {names} lines for {index.classes} classes"
    )
  return errors


def _check_labels(reader: records.RecordReader, survey: _Survey) -> list[str]:
  """Compares labels.npy, if there should be one, with the records."""
  if reader.index.labels_sha256 is None:
    return []
  try:
    labels = records.read_labels(reader.directory, reader.index)
  except InputError as error:
    return [str(error)]
  wrong = (survey.labels != _UNREAD) & (survey.labels != labels)
  return [
    f"{records.LABELS_FILE} gives record {number} label {labels[number]}, not"
    f" {survey.labels[number]}"
    for number in np.flatnonzero(wrong)[:1]
  ]


def _duplicates(
  survey: _Survey, other: _Survey | None
) -> dict[str, np.ndarray]:
  """Finds equal images.

  Returns:
    For each kind of duplicate int64 [P, 2]: an image, and the one it repeats:
    the first of its kind in the data set, or the first in the other.
  """
  sound = np.flatnonzero(survey.sound)
  files, pictures = survey.files[sound], survey.pictures[sound]
  found = {"same_file": _repeats(files), "same_picture": _repeats(pictures)}
  if other is not None:
    theirs = np.flatnonzero(other.sound)
    found["same_file_in_other"] = _matches(files, other.files[theirs])
    found["same_picture_in_other"] = _matches(pictures, other.pictures[theirs])
  pairs = {}
  for kind, (copies, originals) in found.items():
    originals = (theirs if kind.endswith("other") else sound)[originals]
    pairs[kind] = np.stack([sound[copies], originals], axis=1)
  for suffix in ("", "_in_other")[: 1 + (other is not None)]:
    # The same file is the same picture: count it once.
    picture = pairs[f"same_picture{suffix}"]
    known = np.isin(picture[:, 0], pairs[f"same_file{suffix}"][:, 0])
    pairs[f"same_picture{suffix}"] = picture[~known]
  return pairs


def _repeats(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Positions of all but the first of equal hashes, and of these first."""
  _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
  copies = np.flatnonzero(first[which] != np.arange(len(hashes)))
  return copies, first[which[copies]]


def _matches(
  hashes: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Positions of hashes that are among the others, and the first there."""
  values, first = np.unique(others, return_index=True)
  place = np.searchsorted(values, hashes).clip(max=len(values) - 1)
  here = np.flatnonzero(values[place] == hashes) if len(values) else place[:0]
  return here, first[place[here]]


def _write_duplicates(
  path: str,
  duplicates: dict[str, np.ndarray],
  reader: records.RecordReader,
  other: records.RecordReader | None,
) -> None:
  """Lists the duplicates: path, reason, path of the one that it repeats."""
  with open(path, "w", encoding="utf-8") as file:
    file.write(f"{HEADER}\treason\trepeats\n")
    for reason, pairs in duplicates.items():
      source = other if reason.endswith("other") else reader
      for start in range(0, len(pairs), _AT_ONCE):
        block = pairs[start : start + _AT_ONCE]
        copies = reader.read(block[:, 0].tolist())
        originals = source.read(block[:, 1].tolist())
        file.writelines(
          f"{copy.name}\t{reason}\t{original.name}\n"
          for copy, original in zip(copies, originals, strict=True)
        )


def _quantiles(sizes: Sequence[int]) -> dict[str, float]:
  """Mean and quantiles of the class sizes, and classes of a single image."""
  sizes = np.asarray(sizes)
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


def plot_class_sizes(class_sizes: Sequence[int], path: str) -> None:
  """Draws the long tail: images of a class by its rank, both logarithmic.

  Args:
    class_sizes: images of each class, [C].
    path: the PNG file to write.
  """
  sizes = np.sort(np.asarray(class_sizes))[::-1]
  canvas = figure.Figure((6.4, 4.0), dpi=150, layout="constrained")
  backend_agg.FigureCanvasAgg(canvas)
  ax = canvas.subplots()
  ax.plot(np.arange(1, len(sizes) + 1), sizes, drawstyle="steps-mid")
  ax.set_xscale("log")
  ax.set_yscale("log")
  ax.set_xlabel("rank of the class")
  ax.set_ylabel("images of the class")
  ax.set_title(f"{sizes.sum():,} images of {len(sizes):,} classes", loc="left")
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(color="#DDDDDD", linewidth=0.6)
  canvas.savefig(path, format="png")


def _draw_contact_sheet(reader: records.RecordReader, path: str) -> None:
  """Draws images from evenly spaced places of the data set."""
  count = min(_TILES**2, len(reader))
  ids = np.linspace(0, len(reader) - 1, count).round().astype(int)
  rows = -(-count // _TILES)
  sheet = np.full((rows * _TILE_SIZE, _TILES * _TILE_SIZE, 3), 255, np.uint8)
  for tile, record in enumerate(
    itertools.chain.from_iterable(_read(reader, [int(i)]) for i in ids)
  ):
    try:
      pixels = decoding.decode_image(b"" if record is None else record.image)
    except decoding.DecodingError:
      continue  # Stays white.
    scale = _TILE_SIZE / max(pixels.shape[:2])
    height, width = (max(1, int(n * scale)) for n in pixels.shape[:2])
    y, x = (_TILE_SIZE * n for n in divmod(tile, _TILES))
    sheet[y : y + height, x : x + width] = cv2.resize(
      pixels, (width, height), interpolation=cv2.INTER_AREA
    )
  cv2.imwrite(path, np.ascontiguousarray(sheet[:, :, ::-1]))


if __name__ == "__main__":
  run_command(main)
