"""How IJB-B and IJB-C compare templates: their files, and what is kept."""

import csv
import dataclasses
import glob
import itertools
import math
import os
from collections.abc import (
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)

import numpy as np

from jamsface_jax.data.folders import names_file
from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import Line, NotTextError, read_lines
from jamsface_jax.storage.whole_file import written_whole

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
    if not names_file(fields[0]):
      raise InputError(
        f"{where}: image {fields[0]!r} lies outside --input, or names no file;"
        " write paths in it."
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
        f"{_line_of(path, first + int(row))}: no image belongs to template"
        f" {rows[row, column]}; give files of one release."
      )
    is_flag = np.isin(rows[:, 2], (0, 1))
    if not is_flag.all():
      row = int(is_flag.argmin())
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
  reader = csv.reader(line.text for line in _text_lines(path))
  try:
    next(reader, None)
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


@dataclasses.dataclass(frozen=True, eq=False)
class Left:
  """What is left once templates without an image are left out.

  Attributes:
    faces: which images are those of templates that stay, by their places.
    labels: the new number of the template of each of them, int64 [N].
    pairs: int32 [P, 3], as from `read_template_pairs`.
    lists: galleries and probes, as from `read_subjects`.
    entries: how many entries of galleries and probes are gone.
  """

  faces: list[int]
  labels: np.ndarray
  pairs: np.ndarray
  lists: dict[str, dict[int, int]]
  entries: int


def comparisons_left(
  numbers: np.ndarray,
  labels: np.ndarray,
  pairs: np.ndarray,
  lists: Mapping[str, Mapping[int, int]],
) -> Left:
  """Leaves out templates and all comparisons with them.

  Args:
    numbers: the new number of each template, -1 if it is left out, int64 [T].
    labels: the template of each image, int64 [N].
    pairs: int32 [P, 3], as from `read_template_pairs`.
    lists: galleries and probes, as from `read_subjects`.

  Raises:
    InputError: no pairs are left of one kind, or nobody in a list.
  """
  faces = np.flatnonzero(numbers[labels] >= 0)
  first, second = numbers[pairs[:, 0]], numbers[pairs[:, 1]]
  kept = (first >= 0) & (second >= 0)
  flags = pairs[kept, 2]
  if not (flags == 1).any() or not (flags == 0).any():
    raise InputError(
      f"the {len(flags)} pairs of templates that have an image are all of one"
      " kind: a protocol needs pairs of one person and pairs of two."
    )
  lists_left = {
    file: {
      int(numbers[one]): subject
      for one, subject in subjects.items()
      if numbers[one] >= 0
    }
    for file, subjects in lists.items()
  }
  for file, subjects in lists_left.items():
    if not subjects:
      raise InputError(
        f"no template of {file!r} has an image: a search needs some."
      )
  return Left(
    faces=faces.tolist(),
    labels=numbers[labels[faces]],
    pairs=np.column_stack([first[kept], second[kept], flags]).astype(np.int32),
    lists=lists_left,
    entries=sum(map(len, lists.values())) - sum(map(len, lists_left.values())),
  )


def write_faces(
  directory: str, faces: Sequence[Face], labels: np.ndarray
) -> None:
  """Writes `faces.csv`.

  Args:
    directory: the data set.
    faces: its images.
    labels: the template of each, by its row among the templates, int64 [N].
  """
  path = os.path.join(directory, FACES_FILE)
  with written_whole(path, newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "template", "medium", "score"])
    writer.writerows(
      [face.image, label, face.medium, face.score]
      for face, label in zip(faces, labels, strict=True)
    )


def write_subjects(path: str, subjects: Mapping[int, int]) -> None:
  """Writes a gallery or a list of probes: maps templates to subjects."""
  with written_whole(path) as file:
    file.write("template,subject\n")
    file.writelines(f"{row},{subject}\n" for row, subject in subjects.items())


def _text_lines(path: str) -> Iterator[Line]:
  """The lines of a text file, with their numbers."""
  try:
    yield from read_lines(path)
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); give IJB's own file."
    ) from None
  except NotTextError:
    raise InputError(
      f"{path}: is not UTF-8 text; give IJB's own file."
    ) from None


def _lines(path: str) -> Iterator[tuple[str, list[str]]]:
  """Yields `file:line` and the fields of the lines that are not blank."""
  for number, text in _text_lines(path):
    if fields := text.split():
      yield f"{path}:{number}", fields


def _batched(lines: Iterable[Line], size: int) -> Iterator[list[str]]:
  """Yields lists of up to `size` lines that are not blank."""
  filled = (line.text for line in lines if line.text.strip())
  while batch := list(itertools.islice(filled, size)):
    yield batch


def _line_of(path: str, row: int) -> str:
  """`file:line` of a line that is not blank."""
  return next(itertools.islice(_lines(path), row, None))[0]


def _is_number(text: str) -> bool:
  return text.isascii() and text.isdigit() and len(text) <= 18


def _is_real(text: str) -> bool:
  try:
    return math.isfinite(float(text))
  except ValueError:
    return False


def find_file(folder: str, pattern: str) -> str | None:
  """The one file of that pattern, None if there is none.

  Raises:
    InputError: there are several.
  """
  paths = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
  if len(paths) > 1:
    raise InputError(
      f"--meta {folder!r} has {len(paths)} files {pattern}, such as"
      f" {os.path.basename(paths[1])!r}: give the folder of one set."
    )
  return paths[0] if paths else None


def require_file(folder: str, pattern: str) -> str:
  """The one file of that pattern.

  Raises:
    InputError: there is none, or several.
  """
  path = find_file(folder, pattern)
  if path is None:
    raise InputError(
      f"--meta {folder!r} has no file {pattern}: give the folder 'meta' of"
      " IJB-B or IJB-C."
    )
  return path
