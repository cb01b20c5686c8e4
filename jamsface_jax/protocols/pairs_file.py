"""Verification protocols: which pairs of images to compare, in which folds.

Read from a text file in one of three layouts, told apart by the first line:

- LFW's ten-fold protocol (pairs.txt): a header `10 300`, then for each of the
  10 folds 300 lines `Name i j`, two images of one person, and 300 lines
  `Name1 i Name2 j`, images of two people.
- LFW's development protocol (pairsDevTest.txt): a header `500`, then 500 lines
  of each kind.
- No header: a line `path1 path2 0|1 [fold]` for each pair, 1 for one person,
  separated by tabs, else by commas, else by blanks.

Where the file names no folds (the last layout without its fourth field, and the
development protocol, which has none officially), the positive and the negative
pairs are each cut, in the order of the file, into 10 runs of equal length (to
within one pair); fold k is the k-th run of both.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import (
  NotTextError,
  read_lines,
  split_fields,
)

DEFAULT_FOLDS = 10

_HEADER = re.compile(r"[0-9]+(\s+[0-9]+)?")
_IMAGE_NUMBER = re.compile(r"_([0-9]{4}|[1-9][0-9]{4,})$")  # printf's _%04d.


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of images, by index into the names of a data set.

  Attributes:
    first: index of the first image, int64 [P].
    second: index of the second image, int64 [P].
    same: whether both show one person, bool [P]; both kinds occur.
    folds: the fold of each pair, int64 [P]; at least two different ones.
  """

  first: Int64[np.ndarray, " p"]
  second: Int64[np.ndarray, " p"]
  same: Bool[np.ndarray, " p"]
  folds: Int64[np.ndarray, " p"]


def read_pairs(
  path: str | pathlib.Path,
  names: Sequence[str],
  *,
  missing: list[str] | None = None,
) -> Pairs:
  """Reads a protocol over the images of a data set.

  Args:
    path: the file, in one of the layouts above, UTF-8. Blank lines are skipped.
    names: the images' relative paths, such as
      `Abel_Pacheco/Abel_Pacheco_0001.jpg`. LFW's image i of Name is the one in
      a folder Name whose stem ends in `_%04d` % i, whatever the extension; in
      the last layout too an image may have another extension than the file
      says, if no other image has its name but for that.
    missing: takes the names of images that the file has and `names` has not,
      numbered on from those; None: such a name is an error.

  Returns:
    The pairs in the order of the file.

  Raises:
    InputError: the file is not such a protocol or names an image that is not
      among `names`; the message has the file and the line.
  """
  lines = _read_lines(path)
  _, header = lines[0]
  images = _Images(names, missing)
  if _HEADER.fullmatch(header):
    return _read_lfw(path, lines, images)
  return _read_list(path, lines, images)


class _Images:
  """The images of a data set, and those that a protocol names in vain.

  Args:
    names: those of the data set.
    missing: see `read_pairs`.
  """

  def __init__(self, names: Sequence[str], missing: list[str] | None):
    self.names = names
    self._missing = missing
    self._numbers: dict[str, int] = {}

  def find_missing(self, name: str) -> int | None:
    """The number of an image that is not there; None if it must be."""
    if self._missing is None:
      return None
    if name not in self._numbers:
      self._numbers[name] = len(self.names) + len(self._missing)
      self._missing.append(name)
    return self._numbers[name]


def _without_end(name: str) -> str:
  path = pathlib.PurePosixPath(name)
  return str(path.with_suffix("") if path.name else path)


def _read_lines(path: str | pathlib.Path) -> list[tuple[int, str]]:
  """The lines that are not blank, stripped: a list of (line number, text)."""
  try:
    stripped = ((number, text.strip()) for number, text in read_lines(path))
    lines = [(number, text) for number, text in stripped if text]
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); give the path of a file of"
      " pairs."
    ) from error
  except NotTextError as error:
    raise InputError(
      f"{path}:{error.line}: is not UTF-8 text; give a text file of pairs,"
      " saved as UTF-8."
    ) from error
  if not lines:
    raise InputError(f"{path}: is empty; give a file that lists pairs.")
  return lines


def _read_lfw(
  path: str | pathlib.Path,
  lines: Sequence[tuple[int, str]],
  all_images: _Images,
) -> Pairs:
  """Both of LFW's layouts: `lines` with the header."""
  (number, header), *lines = lines
  *given, size = map(int, header.split())
  num_folds = given[0] if given else None
  if size < 1 or num_folds == 0:
    raise InputError(
      f"{path}:{number}: the header {header!r} promises no pairs; write the"
      " folds and the pairs of each kind in a fold, such as '10 300'."
    )
  promised = 2 * size * (num_folds or 1)
  if len(lines) != promised:
    raise InputError(
      f"{path}:{number}: the header {header!r} promises {promised} pairs but"
      f" {len(lines)} follow; correct the header or restore the missing lines."
    )
  images = _numbered_images(all_images.names)
  first, second, same = [], [], []
  for place, (number, line) in enumerate(lines):
    # Between tabs a name may have blanks.
    fields = split_fields(line) if "\t" in line else line.split()
    where = f"{path}:{number}"
    is_same = place // size % 2 == 0
    if len(fields) != (3 if is_same else 4):
      form = "'Name i j'" if is_same else "'Name1 i Name2 j'"
      raise InputError(
        f"{where}: {len(fields)} fields where the header {header!r} puts a pair"
        f" of the form {form}; correct the line, the header or the order."
      )
    if is_same:  # `Name i j`
      fields.insert(2, fields[0])
    person, i, other, j = fields
    if not is_same and person == other:
      raise InputError(
        f"{where}: two images of {person} among the pairs of different people;"
        " correct the names."
      )
    first.append(_numbered_image(where, images, all_images, person, i))
    second.append(_numbered_image(where, images, all_images, other, j))
    same.append(is_same)
  folds = None
  if num_folds is not None:
    folds = np.repeat(np.arange(num_folds), 2 * size).tolist()
  return _pairs(path, first, second, same, folds)


def _numbered_images(
  names: Sequence[str],
) -> dict[tuple[str, int], int | None]:
  """(folder, number) -> index in `names`, or None where two images fit."""
  images: dict[tuple[str, int], int | None] = {}
  for index, name in enumerate(names):
    image = pathlib.PurePosixPath(name)
    if found := _IMAGE_NUMBER.search(image.stem):
      key = image.parent.name, int(found[1])
      images[key] = None if key in images else index
  return images


def _numbered_image(
  where: str,
  images: Mapping[tuple[str, int], int | None],
  all_images: _Images,
  person: str,
  number: str,
) -> int:
  """The image of a person with this number, or InputError."""
  if not (number.isascii() and number.isdigit()):
    raise InputError(
      f"{where}: {number!r} is not the number of an image; write a line as"
      " 'Name i j' or 'Name1 i Name2 j'."
    )
  index = images.get((person, int(number)), -1)
  if index is None:
    raise InputError(
      f"{where}: more than one image of the data set is image {number} of"
      f" {person}; leave one file ending in _{int(number):04d} in its folder."
    )
  if index < 0:
    name = f"{person}/{person}_{int(number):04d}.jpg"
    if (found := all_images.find_missing(name)) is not None:
      return found
    raise InputError(
      f"{where}: the data set has no image {number} of {person}"
      f" ({person}/..._{int(number):04d}.*); add it, or give the pairs that"
      " belong to this data set."
    )
  return index


def _read_list(
  path: str | pathlib.Path,
  lines: Sequence[tuple[int, str]],
  all_images: _Images,
) -> Pairs:
  """The layout without a header."""
  find = _finder(all_images)
  first, second, same, folds = [], [], [], []
  for number, line in lines:
    where, fields = f"{path}:{number}", split_fields(line)
    if len(fields) not in (3, 4):
      raise InputError(
        f"{where}: {len(fields)} fields; write a line as 'path1 path2 0|1' or"
        " 'path1 path2 0|1 fold', or put LFW's header first."
      )
    if fields[2] not in ("0", "1"):
      raise InputError(
        f"{where}: the third field is {fields[2]!r}; write 1 for one person and"
        " 0 for two, or put LFW's header first."
      )
    first.append(find(where, fields[0]))
    second.append(find(where, fields[1]))
    same.append(fields[2] == "1")
    if len(fields) == 4:
      if not re.fullmatch("[0-9]{1,9}", fields[3]):
        raise InputError(
          f"{where}: the fold is {fields[3]!r}; write a whole number, 0 or"
          " more."
        )
      folds.append(int(fields[3]))
    if len(folds) not in (0, len(first)):
      raise InputError(
        f"{where}: some lines have a fold and some have none; give all of them"
        " a fold or none."
      )
  return _pairs(path, first, second, same, folds or None)


def _finder(all_images: _Images) -> Callable[[str, str], int]:
  """A function from `file:line` and a name to the image's number."""
  images = {name: index for index, name in enumerate(all_images.names)}
  by_stem: dict[str, int | None] = {}
  for name, index in images.items():
    stem = _without_end(name)
    by_stem[stem] = None if stem in by_stem else index

  def find(where: str, name: str) -> int:
    index = images.get(name)
    if index is None:
      index = by_stem.get(_without_end(name))
    if index is None:
      index = all_images.find_missing(name)
    if index is None:
      raise InputError(
        f"{where}: the data set has no image {name!r}; add it, or give the"
        " pairs that belong to this data set."
      )
    return index

  return find


def _pairs(
  path: str | pathlib.Path,
  first: Sequence[int],
  second: Sequence[int],
  same: Sequence[bool],
  folds: Sequence[int] | None,
) -> Pairs:
  """Checks what the protocols have in common and makes folds if need be."""
  is_same = np.array(same)
  if is_same.all() or not is_same.any():
    only = "positive" if is_same.all() else "negative"
    raise InputError(
      f"{path}: all {len(same)} pairs are {only}; a protocol needs pairs of one"
      " person and pairs of two."
    )
  fold_of_pair = np.empty(len(same), np.int64)
  if folds is not None:
    fold_of_pair[:] = folds
  else:
    for kind, label in (is_same, "positive"), (~is_same, "negative"):
      count = kind.sum()
      if count < DEFAULT_FOLDS:
        raise InputError(
          f"{path}: {count} {label} pairs do not make {DEFAULT_FOLDS} folds;"
          " list more, or give each pair a fold."
        )
      fold_of_pair[kind] = np.arange(count) * DEFAULT_FOLDS // count
  if len(np.unique(fold_of_pair)) < 2:
    raise InputError(
      f"{path}: all pairs are in one fold, which leaves none to choose a"
      f" threshold on; use two or more, or none for {DEFAULT_FOLDS} made here."
    )
  return Pairs(
    first=np.array(first, np.int64),
    second=np.array(second, np.int64),
    same=is_same,
    folds=fold_of_pair,
  )
