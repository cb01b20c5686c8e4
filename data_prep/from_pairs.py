r"""Makes a verification set of an image folder and a public protocol.

  python -m data_prep.from_pairs --protocol=lfw --input=LFW_CROPS \
      --pairs=pairs.txt --output=DIR
  python -m data_prep.from_pairs --protocol=cfp-fp --input=CFP_CROPS \
      --pairs=cfp-dataset/Protocol --output=DIR

Only the images that the protocol names are written, as they are. --pairs is the
file that comes with the images, by --protocol:

  lfw      pairs.txt or pairsDevTest.txt; images Name/Name_0001.jpg
  cfp-fp   the folder Protocol: Pair_list_F.txt and Pair_list_P.txt number the
           images, Split/FP/01 to 10 have same.txt and diff.txt with a line
           `frontal,profile` a pair; images 001/frontal/01.jpg in --input
  cfp-ff   the same folder: Split/FF, both images frontal
  agedb30  a line `path1 path2 1|0` (or 1|-1) a pair; the folds are ten equal
           runs of lines
  calfw    pairs_CALFW.txt: two lines a pair, `image fold` for one person and
           `image 0` for two; the pairs of two people have no fold there and
           are cut, in order, into ten equal runs
  cplfw    pairs_CPLFW.txt: two lines a pair, `image 1` or `image 0`; both kinds
           are cut, in order, into ten equal runs
  list     a line `path1 path2 1|0 [fold]` a pair, paths in --input

The class of an image is its person where the protocol's layout says who that is
(lfw, cfp, calfw, cplfw); for agedb30 and list its folder, or, without a folder,
the image itself.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from data_prep.writing import conversion_flags
from data_prep.writing.conversion import load_images
from data_prep.writing.writer import SKIPPED_FILE, DatasetWriter
from jamsface_jax.data import records
from jamsface_jax.data.decoding import EXTENSIONS
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.protocols.groups_file import read_groups, write_groups
from jamsface_jax.protocols.pairs_file import DEFAULT_FOLDS, read_pairs

_NUMBER = re.compile(r"_[0-9]+$")  # Of an image of a person.


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two images by name, whether they show one person, and the fold."""

  first: str
  second: str
  same: bool
  fold: int


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_pairs", __doc__)
  add = parser.add_argument
  add("--protocol", required=True, choices=sorted(PROTOCOLS))
  add("--input", required=True, help="folder of the images")
  add("--pairs", required=True, help="the protocol's file; CFP: its folder")
  conversion_flags.add_groups(parser)
  arguments = conversion_flags.parse(parser, argv)
  convert(
    arguments.input,
    arguments.output,
    protocol=arguments.protocol,
    pairs=arguments.pairs,
    groups=arguments.groups,
    name=arguments.name,
    skip_bad=arguments.skip_bad,
    threads=arguments.threads,
  )
  return 0


def convert(
  source: str,
  directory: str,
  *,
  protocol: str,
  pairs: str,
  name: str,
  skip_bad: bool,
  threads: int,
  groups: str | None = None,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: a protocol that cannot be read or does not fit the images, or a
      broken image.
  """
  if not os.path.isdir(source):
    raise InputError(
      f"--input {source!r} is not a folder: give the folder of the images."
    )
  read, person = PROTOCOLS[protocol]
  found = read(pairs, source)
  images = sorted({x for pair in found for x in (pair.first, pair.second)})
  people = sorted({person(image) for image in images})
  of_people = read_groups(groups, people) if groups else None

  def load(image: str) -> bytes:
    with open(os.path.join(source, image), "rb") as file:
      return file.read()

  write_verification_set(
    directory,
    name=name,
    source=f"pairs {protocol} {os.path.abspath(source)}",
    images={image: person(image) for image in images},
    load=load,
    pairs=found,
    skip_bad=skip_bad,
    threads=threads,
    groups=of_people,
  )


def write_verification_set(
  directory: str,
  *,
  name: str,
  source: str,
  images: Mapping[str, str],
  load: Callable[[str], bytes],
  pairs: Sequence[Pair],
  skip_bad: bool,
  threads: int,
  groups: Mapping[str, str] | None = None,
) -> None:
  """Writes images and the pairs of them as a data set, and says so.

  Args:
    directory: of the new data set.
    name: the prefix of its metrics.
    source: what is converted, for the writer.
    images: maps the images' names to class names, in the order of the records.
    load: returns the encoded bytes of an image.
    pairs: pairs of `images`.
    skip_bad: leave out unreadable images and the pairs with them.
    threads: for decoding.
    groups: the group of each class, by its name, if there are groups.

  Raises:
    InputError: a broken image, or no pairs of one kind.
  """
  # Decoded before anything is written: an image that goes takes pairs and
  # perhaps its class along.
  checked = load_images(
    ((image, 0) for image in images), load, check=True, threads=threads
  )
  sizes = {
    image: size
    for image, _, size in tqdm(
      checked, total=len(images), unit="image", disable=None
    )
  }
  broken = {
    image: size for image, size in sizes.items() if isinstance(size, str)
  }
  if broken and not skip_bad:
    image, reason = next(iter(broken.items()))
    raise InputError(
      f"image {image!r} cannot be read ({reason}): mend it, or leave such"
      " images and their pairs out with --skip_bad."
    )
  kept = [
    pair
    for pair in pairs
    if pair.first not in broken and pair.second not in broken
  ]
  if len({pair.same for pair in kept}) != 2:
    raise InputError(
      f"the {len(kept)} pairs with readable images are all of one kind: a"
      " protocol needs pairs of one person and pairs of two."
    )
  if len({pair.fold for pair in kept}) < 2:
    raise InputError(
      f"the {len(kept)} pairs with readable images are all in one fold: a"
      " protocol needs two folds or more."
    )
  lines = "".join(
    f"{pair.first}\t{pair.second}\t{pair.same:d}\t{pair.fold}\n"
    for pair in kept
  )
  classes = sorted({images[image] for image in images if image not in broken})
  labels = {person: label for label, person in enumerate(classes)}
  digest = hashlib.sha256(
    "\n".join([*images, lines, *broken]).encode()
  ).hexdigest()
  with DatasetWriter(
    directory, name=name, classes=classes, source=f"{source} {digest}"
  ) as writer:
    for image in list(images)[writer.position :]:
      if image in broken:
        writer.skip(image, broken[image])
      else:
        writer.add(labels[images[image]], image, load(image), sizes[image])
    path = os.path.join(directory, records.PAIRS_FILE)
    with open(path, "w", encoding="utf-8") as file:
      file.write(lines)
    if groups:
      write_groups(directory, {one: groups[one] for one in classes})
  index = records.read_index(directory)
  print(
    f"{len(kept):,} pairs ({sum(pair.same for pair in kept):,} of one person)"
    f" of {index.images:,} images in {directory}"
    + (
      f"; {len(broken)} images in {SKIPPED_FILE},"
      f" {len(pairs) - len(kept)} pairs left out"
      if broken
      else ""
    )
  )
  print(f"next: python -m jamsface_jax.evaluate --workdir=W --data={directory}")


def equal_runs(count: int) -> np.ndarray:
  """Cuts `count` items into ten runs, the longer ones first.

  As scikit-learn's KFold(10, shuffle=False), by which public results were made.

  Returns:
    The run of each item, int64 [count].
  """
  runs = np.array_split(np.arange(count), DEFAULT_FOLDS)
  return np.repeat(np.arange(DEFAULT_FOLDS), [len(run) for run in runs])


def _read_listed(path: str, source: str) -> list[Pair]:
  """Layouts that `read_pairs` knows: LFW's and the plain list."""
  names = sorted(
    pathlib.Path(folder, file).relative_to(source).as_posix()
    for folder, _, files in os.walk(source)
    for file in files
    if file.lower().endswith(EXTENSIONS)
  )
  pairs = read_pairs(path, names)
  return [
    Pair(names[first], names[second], bool(same), int(fold))
    for first, second, same, fold in zip(
      pairs.first, pairs.second, pairs.same, pairs.folds, strict=True
    )
  ]


def _read_agedb(path: str, source: str) -> list[Pair]:
  """A line `path1 path2 label` a pair; ten equal runs are the folds."""
  pairs = []
  lines = _lines(path)
  for fold, (where, fields) in zip(equal_runs(len(lines)), lines, strict=True):
    if len(fields) != 3 or fields[2] not in ("1", "0", "-1"):
      raise InputError(
        f"{where}: not a pair; write a line as 'path1 path2 1' for one person"
        " and 'path1 path2 0' for two."
      )
    first, second = (_image(where, source, name) for name in fields[:2])
    pairs.append(Pair(first, second, fields[2] == "1", int(fold)))
  return pairs


def _read_two_lines(path: str, source: str) -> list[Pair]:
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
    found.append(
      (_image(where, source, first), _image(where_2, source, second))
    )
    tokens.append(int(token))
  tokens = np.array(tokens)
  folds = np.empty(len(tokens), np.int64)
  for kind in tokens == 0, tokens != 0:
    folds[kind] = equal_runs(kind.sum())
  if tokens.max() > 1:  # CALFW's: the folds of the pairs of one person.
    folds[tokens != 0] = tokens[tokens != 0] - 1
  return [
    Pair(first, second, bool(token), int(fold))
    for (first, second), token, fold in zip(found, tokens, folds, strict=True)
  ]


def _read_cfp_fp(path: str, source: str) -> list[Pair]:
  return _read_cfp(path, source, "FP", "Pair_list_P.txt")


def _read_cfp_ff(path: str, source: str) -> list[Pair]:
  return _read_cfp(path, source, "FF", "Pair_list_F.txt")


def _read_cfp(
  path: str, source: str, split: str, second_list: str
) -> list[Pair]:
  """CFP: numbered images, and pairs of numbers in a folder for each fold."""
  first_images = _read_numbered(os.path.join(path, "Pair_list_F.txt"))
  second_images = _read_numbered(os.path.join(path, second_list))
  folder = os.path.join(path, "Split", split)
  if not os.path.isdir(folder):
    raise InputError(
      f"{folder}: no such folder; give CFP's folder 'Protocol' as --pairs."
    )
  folds = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and entry.name.isdigit()
  )
  pairs = []
  for fold, number in enumerate(folds):
    for file, same in ("same.txt", True), ("diff.txt", False):
      for where, fields in _lines(os.path.join(folder, number, file)):
        if len(fields) != 2:
          raise InputError(f"{where}: not a pair; write a line as '12,34'.")
        pairs.append(
          Pair(
            _numbered(where, fields[0], first_images, source),
            _numbered(where, fields[1], second_images, source),
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
  where: str, number: str, images: Mapping[str, str], source: str
) -> str:
  if number not in images:
    raise InputError(
      f"{where}: no image has the number {number!r}; give the lists and the"
      " pairs of one release."
    )
  return _image(where, source, images[number])


def _lines(path: str) -> list[tuple[str, list[str]]]:
  """The lines that are not blank: `file:line` and fields.

  Fields end at tabs if there are any, else at commas, else at blanks.
  """
  try:
    text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); give the protocol's own file"
      " (of CFP its folder) as --pairs."
    ) from None
  except UnicodeDecodeError:
    raise InputError(
      f"{path}: is not UTF-8 text; give the protocol's own text file."
    ) from None
  lines = []
  for number, line in enumerate(text.split("\n"), start=1):
    if line.strip():
      line = line.strip()
      cut = next((mark for mark in "\t," if mark in line), None)
      fields = [field.strip() for field in line.split(cut)]
      lines.append((f"{path}:{number}", fields))
  if not lines:
    raise InputError(f"{path}: is empty; give the protocol's own file.")
  return lines


def _image(where: str, source: str, name: str) -> str:
  """The name, if the image is there."""
  path = pathlib.PurePosixPath(name)
  if path.is_absolute() or ".." in path.parts or "\0" in name:
    raise InputError(
      f"{where}: image {name!r} lies outside --input; write paths in it."
    )
  if not os.path.isfile(os.path.join(source, name)):
    raise InputError(
      f"{where}: image {name!r} is not in {source!r}; add it, or give the"
      " folder that the protocol's paths start in as --input."
    )
  return path.as_posix()


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


if __name__ == "__main__":
  run_command(main)
