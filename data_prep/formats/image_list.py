"""Lists of images and labels; `data_prep.from_list` says how they look."""

import csv
import functools
import os
import re
from collections.abc import (
  Callable,
  Iterator,
)
from typing import NamedTuple

from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import (
  NotTextError,
  read_lines,
)

PATH_COLUMNS = (
  "path",
  "image",
  "file",
  "filename",
  "image_path",
  "file_path",
  "filepath",
)

LABEL_COLUMNS = (
  "label",
  "identity",
  "class",
  "person",
  "subject",
  "name",
  "id",
)

_SEPARATORS = ("\t", ";", ",")

# Number, label, path, and what a list of one class each may have besides.
_MOST_FIELDS = 5
_LINE_BYTES = 2**16  # No line is longer.


class Entry(NamedTuple):
  """A line of the list: its number from 1, the image's path, its label."""

  line: int
  path: str
  label: str


def read_entries(source: str) -> Iterator[Entry]:
  """Yields the lines of a list, blank ones and the header left out.

  Args:
    source: a text file, UTF-8, as the description of this command has it.

  Raises:
    InputError: the file cannot be read, or a line is no path and label.
  """
  layout = None
  for line, text in _read_lines(source):
    if layout is None:
      layout = _find_layout(text, is_lst=source.endswith(".lst"))
      if layout.has_header:
        continue
    where = f"line {line} of {source!r}"
    fields = layout.split(text)
    needed = max(layout.path, layout.label) + 1
    if len(fields) < needed or layout.fields not in (0, len(fields)):
      raise InputError(
        f"{where} has {len(fields)} field(s) separated by {layout.separator!r}"
        " instead of a path and a label: correct it, or name the columns in a"
        " first line such as 'path,label'."
      )
    path, label = fields[layout.path].strip(), fields[layout.label].strip()
    if not path or not label:
      raise InputError(
        f"{where} has an empty path or label: complete or delete it."
      )
    # As float32 labels and tables of numbers are printed.
    label = re.sub(r"^(-?[0-9]+)\.0+$", r"\1", label)
    if re.fullmatch(r"-[0-9]+", label):
      raise InputError(
        f"{where} has the negative label {label}: delete it, or name the class."
      )
    yield Entry(line, os.path.normpath(path), label)


class _Layout(NamedTuple):
  """How lines divide into fields, and which of them are the two wanted."""

  separator: str
  split: Callable[[str], list[str]]
  path: int
  label: int
  fields: int  # On each line; 0: as many as the two need, or more.
  has_header: bool


def _find_layout(text: str, *, is_lst: bool) -> _Layout:
  """Concludes from the first line how a list is written."""
  if is_lst:
    return _find_lst_layout(text)
  character = next((c for c in _SEPARATORS if c in text), " ")
  if character == " ":
    split = str.split
  else:
    split = functools.partial(_split_quoted, delimiter=character)
  names = [name.strip().lower() for name in split(text)]
  paths = [names.index(name) for name in PATH_COLUMNS if name in names]
  labels = [names.index(name) for name in LABEL_COLUMNS if name in names]
  if paths and labels:
    return _Layout(character, split, paths[0], labels[0], 0, True)
  if character == " ":  # There may be some in a path.
    split = functools.partial(str.rsplit, maxsplit=1)
  return _Layout(character, split, 0, 1, 2, False)


def _find_lst_layout(text: str) -> _Layout:
  """Tells im2rec's list from InsightFace's, which has the path in the middle.

  im2rec's is number, label, path. InsightFace's is 1 for an aligned image,
  path, label, and perhaps a box and landmarks (its `face2rec2.py`).
  """
  split = functools.partial(str.split, sep="\t")
  fields = split(text)
  if len(fields) >= 3 and not _is_number(fields[1]) and _is_number(fields[2]):
    return _Layout("\t", split, 1, 2, len(fields), False)
  if len(fields) > _MOST_FIELDS and all(map(_is_number, fields[:-1])):
    raise InputError(
      f"the list has {len(fields) - 2} labels for an image in its first line,"
      " as those of detection have: give one that names one class for each."
    )
  return _Layout("\t", split, 2, 1, 3, False)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _split_quoted(text: str, delimiter: str) -> list[str]:
  return next(csv.reader([text], delimiter=delimiter))


def _read_lines(source: str) -> Iterator[tuple[int, str]]:
  """Yields lines that are not blank, with their numbers from 1."""
  try:
    for number, line in read_lines(source, longest=_LINE_BYTES):
      text = line.strip()
      # Also no characters that would end a line in classes.txt.
      if "\0" in text or len(text.splitlines()) > 1:
        raise NotTextError(number, "it has control characters")
      if text:
        yield number, text
  except NotTextError as error:
    raise InputError(
      f"line {error.line} of {source!r} is no line of UTF-8 text: save the list"
      " as UTF-8, a path and a label on each line."
    ) from None
  except OSError as error:
    raise InputError(
      f"--input {source!r} cannot be read ({error.strerror}): give a text file"
      " with a path and a label on each line."
    ) from None
