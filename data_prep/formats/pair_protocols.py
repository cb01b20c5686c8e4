"""Public protocols of pairs: their files, and who their images show.

`PROTOCOLS` has them by name; `data_prep.from_pairs` says what each looks like.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from jamsface_jax.data.folders import find_file, find_folders, names_file, walk
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.pairs_file import DEFAULT_FOLDS, read_pairs
from jamsface_jax.storage.text_lists import (
  NotTextError,
  read_lines,
  split_fields,
)

_NUMBER = re.compile(r"_[0-9]+$")  # Of an image of a person.


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two images by name, whether they show one person, and the fold."""

  first: str
  second: str
  same: bool
  fold: int


def equal_runs(count: int) -> Int64[np.ndarray, " n"]:
  """Cuts `count` items into ten runs, the longer ones first.

  As scikit-learn's KFold(10, shuffle=False), by which public results were made.

  Returns:
    The run of each item, int64 [count].
  """
  runs = np.array_split(np.arange(count), DEFAULT_FOLDS)
  return np.repeat(np.arange(DEFAULT_FOLDS), [len(run) for run in runs])


def listed_pairs(
  path: str, names: Sequence[str], *, skip_missing: bool
) -> list[Pair]:
  """Reads layouts that `read_pairs` knows: LFW's and the plain list.

  Args:
    path: the file.
    names: the images that there are.
    skip_missing: keep pairs of other images too; otherwise an error.
  """
  missing: list[str] | None = [] if skip_missing else None
  pairs = read_pairs(path, names, missing=missing)
  every = [*names, *(missing or ())]
  return [
    Pair(every[first], every[second], bool(same), int(fold))
    for first, second, same, fold in zip(
      pairs.first, pairs.second, pairs.same, pairs.folds, strict=True
    )
  ]


def _read_listed(path: str, images: "Images") -> list[Pair]:
  names = walk(images.folder).images
  return listed_pairs(path, names, skip_missing=images.skip_missing)


@dataclasses.dataclass(frozen=True)
class Images:
  """Where the images of a protocol lie.

  Attributes:
    folder: the folder that their names are relative to.
    skip_missing: keep pairs of images that are not there; otherwise an error.
  """

  folder: str
  skip_missing: bool

  def find(self, where: str, name: str) -> str:
    """The name of the file of an image, which may have another end."""
    path = pathlib.PurePosixPath(name)
    if not names_file(name):
      raise InputError(
        f"{where}: image {name!r} lies outside --input, or names no file; write"
        " paths in it."
      )
    found = find_file(self.folder, path.as_posix())
    if found is None and not self.skip_missing:
      raise InputError(
        f"{where}: image {name!r} is not in {self.folder!r}; add it, give the"
        " folder that the protocol's paths start in as --input, or leave such"
        " pairs out with --skip_bad."
      )
    return found or path.as_posix()


def _read_agedb(path: str, images: Images) -> list[Pair]:
  """A line `path1 path2 label` a pair; ten equal runs are the folds."""
  pairs = []
  lines = _lines(path)
  for fold, (where, fields) in zip(equal_runs(len(lines)), lines, strict=True):
    if len(fields) != 3 or fields[2] not in ("1", "0", "-1"):
      raise InputError(
        f"{where}: not a pair; write a line as 'path1 path2 1' for one person"
        " and 'path1 path2 0' for two."
      )
    first, second = (images.find(where, name) for name in fields[:2])
    pairs.append(Pair(first, second, fields[2] == "1", int(fold)))
  return pairs


def _read_two_lines(path: str, images: Images) -> list[Pair]:
  """CALFW and CPLFW: two lines `image token` a pair, token 0 for two people."""
  lines = _lines(path)
  for where, fields in lines:
    if len(fields) != 2 or not re.fullmatch("[0-9]{1,4}", fields[1]):
      raise InputError(
        f"{where}: not half a pair; write 'image 0' for two people and 'image"
        " 1', or the fold, for one, on both lines of the pair."
      )
  if len(lines) % 2:
    raise InputError(
      f"{lines[-1][0]}: the last pair has one line; write two lines a pair."
    )
  tokens, found = [], []
  for (where, (first, token)), (where_2, (second, token_2)) in zip(
    lines[::2], lines[1::2], strict=True
  ):
    if int(token) != int(token_2):
      raise InputError(
        f"{where_2}: {token_2} where the pair's first line has {token}; write"
        " the same on both lines of a pair."
      )
    found.append((images.find(where, first), images.find(where_2, second)))
    tokens.append(int(token))
  tokens = np.array(tokens)
  folds = np.empty(len(tokens), np.int64)
  for kind in tokens == 0, tokens != 0:
    folds[kind] = equal_runs(int(kind.sum()))
  if tokens.max() > 1:  # CALFW's: the folds of the pairs of one person.
    folds[tokens != 0] = tokens[tokens != 0] - 1
  return [
    Pair(first, second, bool(token), int(fold))
    for (first, second), token, fold in zip(found, tokens, folds, strict=True)
  ]


def _read_cfp_fp(path: str, images: Images) -> list[Pair]:
  return _read_cfp(path, images, "FP", "Pair_list_P.txt")


def _read_cfp_ff(path: str, images: Images) -> list[Pair]:
  return _read_cfp(path, images, "FF", "Pair_list_F.txt")


def _read_cfp(
  path: str, images: Images, split: str, second_list: str
) -> list[Pair]:
  """CFP: numbered images, and pairs of numbers in a folder for each fold."""
  first_images = _read_numbered(os.path.join(path, "Pair_list_F.txt"))
  second_images = _read_numbered(os.path.join(path, second_list))
  folder = os.path.join(path, "Split", split)
  if not os.path.isdir(folder):
    raise InputError(
      f"{folder}: no such folder; give CFP's folder 'Protocol' as --pairs."
    )
  folds = [name for name in find_folders(folder) if name.isdigit()]
  pairs = []
  for fold, number in enumerate(folds):
    for file, same in ("same.txt", True), ("diff.txt", False):
      for where, fields in _lines(os.path.join(folder, number, file)):
        if len(fields) != 2:
          raise InputError(f"{where}: not a pair; write a line as '12,34'.")
        pairs.append(
          Pair(
            _numbered(where, fields[0], first_images, images),
            _numbered(where, fields[1], second_images, images),
            same,
            fold,
          )
        )
  return pairs


def _read_numbered(path: str) -> dict[str, str]:
  """Lines `number ../Data/Images/001/frontal/01.jpg`: number -> image."""
  images = {}
  for where, fields in _lines(path):
    parts = pathlib.PurePosixPath(fields[-1]).parts[-3:]
    if len(fields) != 2 or len(parts) != 3:
      raise InputError(
        f"{where}: not a numbered image; write a line as '1"
        " ../Data/Images/001/frontal/01.jpg'."
      )
    if fields[0] in images:
      raise InputError(
        f"{where}: number {fields[0]!r} occurs twice; give each image its own."
      )
    images[fields[0]] = "/".join(parts)
  return images


def _numbered(
  where: str, number: str, numbered: Mapping[str, str], images: Images
) -> str:
  if number not in numbered:
    raise InputError(
      f"{where}: no image has the number {number!r}; give the lists and the"
      " pairs of one release."
    )
  return images.find(where, numbered[number])


def _lines(path: str) -> list[tuple[str, list[str]]]:
  """The lines that are not blank: `file:line` and fields.

  Fields end at tabs if there are any, else at commas, else at blanks.
  """
  try:
    lines = [
      (f"{path}:{number}", split_fields(text.strip()))
      for number, text in read_lines(path)
      if text.strip()
    ]
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); give the protocol's own file"
      " (of CFP its folder) as --pairs."
    ) from None
  except NotTextError:
    raise InputError(
      f"{path}: is not UTF-8 text; give the protocol's own text file."
    ) from None
  if not lines:
    raise InputError(f"{path}: is empty; give the protocol's own file.")
  return lines


def _by_number(image: str) -> str:
  """Name_0001.jpg -> Name."""
  return _NUMBER.sub("", pathlib.PurePosixPath(image).stem)


def _by_folder(image: str) -> str:
  folder = pathlib.PurePosixPath(image).parent.as_posix()
  return image if folder == "." else folder


def _by_first_folder(image: str) -> str:
  return pathlib.PurePosixPath(image).parts[0]


# How a protocol is read, and how its images' names say who they show.
PROTOCOLS = {
  "lfw": (_read_listed, _by_number),
  "cfp-fp": (_read_cfp_fp, _by_first_folder),
  "cfp-ff": (_read_cfp_ff, _by_first_folder),
  "agedb30": (_read_agedb, _by_folder),
  "calfw": (_read_two_lines, _by_number),
  "cplfw": (_read_two_lines, _by_number),
  "list": (_read_listed, _by_folder),
}
