"""Templates: sets of images of a person, as IJB-B and IJB-C compare them.

A data set of `data_prep.from_ijb` has, beside its images:

  faces.csv            image,template,medium,score of every image
  template_pairs.npy   int32 [P, 3]: template, template, 1 for one person or 0
  gallery_*.csv        optional: template,subject of a gallery
  probe_*.csv          optional: template,subject of probes to search in each
"""

import dataclasses
import glob
import math
import os
from collections.abc import Callable, Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from jamsface_jax.errors import InputError
from jamsface_jax.storage.csv_tables import read_csv
from jamsface_jax.storage.plain_array import read_array

FACES_FILE = "faces.csv"
TEMPLATE_PAIRS_FILE = "template_pairs.npy"
_MOST_MEDIA = 2**31


@dataclasses.dataclass(frozen=True, eq=False)
class SubjectList:
  """A gallery or a list of probes.

  Attributes:
    name: what tells it from others, such as "G1" or "mixed".
    templates: their numbers, int64 [L].
    subjects: the person of each, int64 [L].
  """

  name: str
  templates: Int64[np.ndarray, " l"]
  subjects: Int64[np.ndarray, " l"]


@dataclasses.dataclass(frozen=True, eq=False)
class Templates:
  """Which images make up the templates, and which templates to compare.

  Attributes:
    templates: template of each image of the data set, int64 [N].
    media: medium of each image, int64 [N].
    scores: the detector's score of each image, float64 [N]; None if the file
      has none.
    first: first template of each pair, integers [P].
    second: second template of each pair, integers [P].
    same: whether a pair shows one person, bool [P], of both kinds.
    galleries: the galleries, perhaps none.
    probes: the lists of probes to search in each gallery, perhaps none.
  """

  templates: Int64[np.ndarray, " n"]
  media: Int64[np.ndarray, " n"]
  scores: Float64[np.ndarray, " n"] | None
  first: Int[np.ndarray, " p"]
  second: Int[np.ndarray, " p"]
  same: Bool[np.ndarray, " p"]
  galleries: list[SubjectList]
  probes: list[SubjectList]


def has_templates(directory: str) -> bool:
  """Whether a data set has templates."""
  return os.path.exists(os.path.join(directory, FACES_FILE))


def read_templates(
  directory: str, count: int, names: Callable[[], Sequence[str]]
) -> Templates:
  """Reads the files above.

  Args:
    directory: the directory of the data set.
    count: how many images it has: those of faces.csv in that order, perhaps
      without some that were left out.
    names: gives their names; asked only if some were left out.

  Raises:
    InputError: a file is missing or damaged, or does not fit the images.
  """
  path = os.path.join(directory, FACES_FILE)
  rows = {}
  for where, fields in read_csv(path, ["image", "template", "medium", "score"]):
    image, *numbers, score = fields
    if not (all(map(_is_number, numbers)) and _is_score(score)):
      raise InputError(
        f"{where}: not an image with template, medium and score; write the data"
        " set again with data_prep.from_ijb."
      )
    template, medium = map(int, numbers)
    rows[image] = template, medium, float(score or "nan")
  _check_small(path, rows.values())
  images = rows if len(rows) == count else names()
  missing = next((name for name in images if name not in rows), None)
  if missing is not None:
    raise InputError(
      f"{path}: has no line for image {missing!r} of the data set; write the"
      " data set again with data_prep.from_ijb."
    )
  templates, media, scores = zip(*(rows[name] for name in images), strict=True)
  templates, scores = np.array(templates, np.int64), np.array(scores)
  known = np.bincount(templates) > 0
  pairs = _read_pairs(os.path.join(directory, TEMPLATE_PAIRS_FILE), known)
  return Templates(
    templates=templates,
    media=np.array(media, np.int64),
    scores=None if np.isnan(scores).any() else scores,
    first=pairs[:, 0],
    second=pairs[:, 1],
    same=pairs[:, 2] == 1,
    galleries=_read_lists(directory, "gallery", known),
    probes=_read_lists(directory, "probe", known),
  )


def _check_small(path: str, rows: Collection[tuple[int, int, float]]) -> None:
  """Refuses numbers that arrays by template or medium could not be made of."""
  for template, medium, _ in rows:
    if template >= len(rows) or medium >= _MOST_MEDIA:
      raise InputError(
        f"{path}: {len(rows)} images cannot have template {template} and medium"
        f" {medium}, which count from 0; write the data set again with"
        " data_prep.from_ijb."
      )


def _read_pairs(
  path: str, known: Bool[np.ndarray, " t"]
) -> Int[np.ndarray, "p 3"]:
  try:
    pairs = read_array(path)
  except (OSError, ValueError, EOFError) as error:
    raise InputError(
      f"{path}: cannot be read ({error}); write the data set again with"
      " data_prep.from_ijb."
    ) from None
  if pairs.ndim != 2 or pairs.shape[1] != 3 or pairs.dtype.kind != "i":
    raise InputError(
      f"{path}: holds {pairs.dtype} {list(pairs.shape)} instead of integers"
      " [P, 3]; write the data set again with data_prep.from_ijb."
    )
  _check_known(path, pairs[:, :2].ravel(), known)
  flags = pairs[:, 2]
  if not np.isin(flags, (0, 1)).all() or flags.all() or not flags.any():
    raise InputError(
      f"{path}: the third column must have 1 for pairs of one person and 0 for"
      " others, and some of both; write the data set again."
    )
  return pairs


def _read_lists(
  directory: str, kind: str, known: Bool[np.ndarray, " t"]
) -> list[SubjectList]:
  lists = []
  pattern = os.path.join(glob.escape(directory), f"{kind}_*.csv")
  for path in sorted(glob.glob(pattern)):
    rows = []
    for where, fields in read_csv(path, ["template", "subject"]):
      if not all(map(_is_number, fields)):
        raise InputError(
          f"{where}: not a template and a subject; write both as whole numbers."
        )
      rows.append(list(map(int, fields)))
    templates, subjects = np.array(rows, np.int64).reshape(-1, 2).T
    _check_known(path, templates, known)
    name = os.path.basename(path).removeprefix(f"{kind}_")
    lists.append(SubjectList(name.removesuffix(".csv"), templates, subjects))
  return lists


def _check_known(
  path: str, templates: Int[np.ndarray, " k"], known: Bool[np.ndarray, " t"]
) -> None:
  """Refuses templates that have no image."""
  inside = (0 <= templates) & (templates < len(known))
  bad = templates[~inside | ~known[np.where(inside, templates, 0)]]
  if len(bad):
    raise InputError(
      f"{path}: names template {bad[0]}, of which the data set has no image;"
      " write the data set again, with all images."
    )


def _is_number(text: str) -> bool:
  return text.isascii() and text.isdigit() and len(text) <= 18


def _is_score(text: str) -> bool:
  try:
    return text == "" or 0 <= float(text) < math.inf
  except ValueError:
    return False
