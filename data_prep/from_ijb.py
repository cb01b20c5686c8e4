r"""Makes a data set of IJB-B or IJB-C as InsightFace publishes them.

  cut -d' ' -f1-11 IJBC/meta/ijbc_name_5pts_score.txt > points.txt
  python -m data_prep.align --input=IJBC/loose_crop --output=IJBC/aligned \
      --landmarks=points.txt
  python -m data_prep.from_ijb --input=IJBC/aligned --meta=IJBC/meta \
      --output=DIR

IJB compares templates: sets of images of a person, those of one medium (a video
or a photograph) together. --meta holds, with any prefix:

  *_face_tid_mid.txt          `image template medium` a line
  *_template_pair_label.txt   `template template 1|0` a line, 1 for one person
  *_name_5pts_score.txt       optional: `image x1 y1 ... x5 y5 score` a line,
                              the images in the same order; only the detector's
                              score is kept, the points are for data_prep.align
  *_1N_*.csv                  optional galleries and probes: a header, then
                              template and subject in the first two columns

The class of an image is its template, so that a record's label is its row among
the templates, and classes.txt has their official numbers. Beside the images the
data set has, with templates by label:

  faces.csv            image,template,medium,score of every image in the file,
                       those left out by --skip_bad too
  template_pairs.npy   int32 [P, 3]: template, template, 1 or 0
  gallery_G1.csv, probe_mixed.csv, ...   template,subject: each template once
"""

import csv
import dataclasses
import functools
import glob
import hashlib
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.writing import conversion, conversion_flags
from data_prep.writing.conversion import Item, Reading
from data_prep.writing.writer import SHARD_BYTES, SKIPPED_FILE, DatasetAssembler
from jamsface_jax.data import records
from jamsface_jax.errors import InputError, run_command

FACES_FILE = "faces.csv"
TEMPLATE_PAIRS_FILE = "template_pairs.npy"

_LINES_AT_ONCE = 2**20
_POINTS = 10  # Coordinates of five landmarks.


@dataclasses.dataclass(frozen=True)
class Face:
  """An image, its template's official number, its medium, and its score."""

  image: str
  template: int
  medium: int
  score: str


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_ijb", __doc__)
  add = parser.add_argument
  add("--input", required=True, help="folder of the images")
  add("--meta", required=True, help="folder of the files above")
  conversion_flags.add_engine(parser)
  arguments = conversion_flags.parse(parser, argv)
  convert(
    arguments.input,
    arguments.output,
    meta=arguments.meta,
    name=arguments.name,
    skip_bad=arguments.skip_bad,
    engine=arguments.engine,
    threads=arguments.threads,
  )
  return 0


def convert(
  source: str,
  directory: str,
  *,
  meta: str,
  name: str,
  skip_bad: bool,
  threads: int | None,
  engine: str = "local",
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: files that cannot be read or contradict each other, or a broken
      image.
  """
  for flag, folder in ("--input", source), ("--meta", meta):
    if not os.path.isdir(folder):
      raise InputError(f"{flag} {folder!r} is not a folder: give IJB's.")
  # Everything that the files say is checked before anything is written.
  faces = read_faces(
    _only(meta, "*_face_tid_mid.txt"),
    _only(meta, "*_name_5pts_score.txt", required=False),
  )
  templates = np.unique([face.template for face in faces])
  pairs = read_template_pairs(
    _only(meta, "*_template_pair_label.txt"), templates
  )
  lists = {
    path.split("_1N_")[-1]: read_subjects(path, templates)
    for path in sorted(glob.glob(os.path.join(glob.escape(meta), "*_1N_*.csv")))
  }
  labels = np.searchsorted(templates, [face.template for face in faces])

  digest = hashlib.sha256(repr((faces, lists)).encode())
  digest.update(pairs.tobytes())
  assembler = DatasetAssembler(
    directory,
    name=name,
    classes=[str(template) for template in templates],
    source=f"ijb {os.path.abspath(source)} {digest.hexdigest()} {skip_bad}",
    shard_bytes=shard_bytes,
  )
  _write_faces(directory, faces, labels)
  np.save(os.path.join(directory, TEMPLATE_PAIRS_FILE), pairs)
  for file, subjects in lists.items():
    _write_subjects(os.path.join(directory, file), subjects)
  listed = (
    Item(label, face.image, 0)
    for face, label in zip(faces, labels.tolist(), strict=True)
  )
  conversion.convert(
    assembler,
    conversion.add_file_sizes(source, listed),
    Reading(
      open=functools.partial(conversion.open_folder, source),
      root=source,
      remedy="mend it, or leave such images out with --skip_bad",
      check=True,
      skip_bad=skip_bad,
    ),
    total=len(faces),
    engine=engine,
    threads=threads,
  )
  index, skipped = records.read_index(directory), assembler.skipped
  print(
    f"{index.images:,} images of {index.classes:,} templates, {len(pairs):,}"
    f" pairs ({pairs[:, 2].sum():,} of one person) and {len(lists)} lists in"
    f" {directory}" + (f"; {skipped} in {SKIPPED_FILE}" if skipped else "")
  )
  print(
    f"next: python -m jamsface_jax.embed --workdir=W --images={directory}"
    " --raw --output=E"
  )


def read_faces(path: str, score_path: str | None) -> list[Face]:
  """Reads which images make up the templates.

  Args:
    path: `*_face_tid_mid.txt`.
    score_path: `*_name_5pts_score.txt`; without it scores are "".

  Returns:
    The images in the order of the file.

  Raises:
    InputError: a line of another form, an image twice, or scores of others.
  """
  faces, lines = [], {}
  for where, fields in _lines(path):
    if len(fields) != 3 or not all(_is_number(text) for text in fields[1:]):
      raise InputError(
        f"{where}: not an image of a template; write a line as 'image template"
        " medium', the last two as whole numbers."
      )
    image = pathlib.PurePosixPath(fields[0])
    if image.is_absolute() or ".." in image.parts or "\0" in fields[0]:
      raise InputError(
        f"{where}: image {fields[0]!r} lies outside --input; write paths in it."
      )
    if fields[0] in lines:
      raise InputError(
        f"{where}: image {fields[0]!r} is in {lines[fields[0]]} already; list"
        " each image once."
      )
    lines[fields[0]] = where
    faces.append(Face(fields[0], int(fields[1]), int(fields[2]), ""))
  if not faces:
    raise InputError(f"{path}: is empty; give IJB's own file.")
  if score_path is None:
    return faces
  scored = []
  for face, line in itertools.zip_longest(faces, _lines(score_path)):
    if face is None or line is None:
      raise InputError(
        f"{score_path}: does not have one line for each of the {len(faces)}"
        f" images of {path}; give files of one release."
      )
    where, fields = line
    if len(fields) != _POINTS + 2 or not all(map(_is_real, fields[1:])):
      raise InputError(
        f"{where}: not landmarks and a score; write a line as 'image x1 y1 ..."
        " x5 y5 score'."
      )
    if fields[0] != face.image:
      raise InputError(
        f"{where}: image {fields[0]!r} where {lines[face.image]} has"
        f" {face.image!r}; give files of one release."
      )
    scored.append(dataclasses.replace(face, score=fields[-1]))
  return scored


def read_template_pairs(path: str, templates: np.ndarray) -> np.ndarray:
  """Reads which templates to compare: millions of lines, in blocks.

  Args:
    path: `*_template_pair_label.txt`.
    templates: official numbers, int64 [T], ascending.

  Returns:
    int32 [P, 3]: two indices into `templates`, and 1 for one person or 0.

  Raises:
    InputError: a line of another form, or a template that has no image.
  """
  blocks = []
  for first, rows in _number_blocks(path):
    found = np.searchsorted(templates, rows[:, :2])
    found = np.minimum(found, len(templates) - 1)
    known = templates[found] == rows[:, :2]
    if not known.all():
      row, column = np.argwhere(~known)[0]
      raise InputError(
        f"{_line_of(path, first + row)}: no image belongs to template"
        f" {rows[row, column]}; give files of one release."
      )
    is_flag = np.isin(rows[:, 2], (0, 1))
    if not is_flag.all():
      row = is_flag.argmin()
      raise InputError(
        f"{_line_of(path, first + row)}: the third field is {rows[row, 2]};"
        " write 1 for one person and 0 for two."
      )
    blocks.append(np.column_stack([found, rows[:, 2]]).astype(np.int32))
  if not blocks:
    raise InputError(f"{path}: is empty; give IJB's own file.")
  return np.concatenate(blocks)


def _number_blocks(path: str) -> Iterator[tuple[int, np.ndarray]]:
  """Yields, block by block, the first row's place and int64 [rows, 3]."""
  first = 0
  for lines in _batched(_text_lines(path), _LINES_AT_ONCE):
    fields = [line.split() for line in lines]
    numbers = list(itertools.chain.from_iterable(fields))
    # What `_is_number` asks of each, of all together: there are millions.
    # (NumPy's own reader of text crashed the process on some broken files.)
    text = "".join(numbers)
    if (
      set(map(len, fields)) != {3}
      or not text.isascii()
      or not text.isdigit()
      or max(map(len, numbers)) > 18
    ):
      where = next(
        where
        for where, fields in _lines(path)
        if len(fields) != 3 or not all(map(_is_number, fields))
      )
      raise InputError(
        f"{where}: not a pair of templates; write a line as 'template template"
        " 1' for one person and with 0 for two."
      )
    yield first, np.array(list(map(int, numbers)), np.int64).reshape(-1, 3)
    first += len(lines)


def read_subjects(path: str, templates: np.ndarray) -> dict[int, int]:
  """Reads a gallery or a list of probes.

  Args:
    path: `*_1N_*.csv`: a header, then template and subject in the first two
      columns; a template may have many lines.
    templates: official numbers, int64 [T], ascending.

  Returns:
    Maps indices into `templates`, ascending, to official subject numbers.

  Raises:
    InputError: a line of another form, a template without an image, or with
      two subjects.
  """
  subjects = {}
  known = {int(template): row for row, template in enumerate(templates)}
  reader = csv.reader(_text_lines(path))
  next(reader, None)
  try:
    for fields in filter(None, reader):
      where = f"{path}:{reader.line_num}"
      if len(fields) < 2 or not all(map(_is_number, fields[:2])):
        raise InputError(
          f"{where}: not a template of a subject; write a header and then lines"
          " 'template,subject,...', both as whole numbers."
        )
      template, subject = int(fields[0]), int(fields[1])
      if template not in known:
        raise InputError(
          f"{where}: no image belongs to template {template}; give files of one"
          " release."
        )
      if subjects.setdefault(known[template], subject) != subject:
        raise InputError(
          f"{where}: template {template} is of subject {subject} here and of"
          f" {subjects[known[template]]} above; correct one of them."
        )
  except csv.Error as error:
    raise InputError(
      f"{path}:{reader.line_num}: is not CSV ({error}); give IJB's own file."
    ) from None
  if not subjects:
    raise InputError(f"{path}: has no templates; give IJB's own file.")
  return dict(sorted(subjects.items()))


def _write_faces(
  directory: str, faces: Sequence[Face], labels: np.ndarray
) -> None:
  path = os.path.join(directory, FACES_FILE)
  with open(path, "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "template", "medium", "score"])
    writer.writerows(
      [face.image, label, face.medium, face.score]
      for face, label in zip(faces, labels, strict=True)
    )


def _write_subjects(path: str, subjects: dict[int, int]) -> None:
  with open(path, "w", encoding="utf-8") as file:
    file.write("template,subject\n")
    file.writelines(f"{row},{subject}\n" for row, subject in subjects.items())


def _only(folder: str, pattern: str, *, required: bool = True) -> str | None:
  """The one file of that pattern; None if there is none and need not be."""
  paths = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
  if len(paths) > 1:
    raise InputError(
      f"--meta {folder!r} has {len(paths)} files {pattern}, such as"
      f" {os.path.basename(paths[1])!r}: give the folder of one set."
    )
  if not paths and required:
    raise InputError(
      f"--meta {folder!r} has no file {pattern}: give the folder 'meta' of"
      " IJB-B or IJB-C."
    )
  return paths[0] if paths else None


def _text_lines(path: str) -> Iterator[str]:
  try:
    with open(path, encoding="utf-8-sig") as file:
      yield from file
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); give IJB's own file."
    ) from None
  except UnicodeDecodeError:
    raise InputError(
      f"{path}: is not UTF-8 text; give IJB's own file."
    ) from None


def _lines(path: str) -> Iterator[tuple[str, list[str]]]:
  """Yields `file:line` and the fields of the lines that are not blank."""
  for number, line in enumerate(_text_lines(path), start=1):
    if fields := line.split():
      yield f"{path}:{number}", fields


def _batched(lines: Iterator[str], size: int) -> Iterator[list[str]]:
  """Yields lists of up to `size` lines that are not blank."""
  filled = filter(str.strip, lines)
  while batch := list(itertools.islice(filled, size)):
    yield batch


def _line_of(path: str, row: int) -> str:
  """`file:line` of a line that is not blank."""
  return next(itertools.islice(_lines(path), int(row), None))[0]


def _is_number(text: str) -> bool:
  return text.isascii() and text.isdigit() and len(text) <= 18


def _is_real(text: str) -> bool:
  try:
    return math.isfinite(float(text))
  except ValueError:
    return False


if __name__ == "__main__":
  run_command(main)
