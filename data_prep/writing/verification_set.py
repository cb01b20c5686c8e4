"""Writes images and pairs of them as a data set."""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data_prep.formats.pair_protocols import Pair
from data_prep.writing.conversion import evaluation_command, warn_of_doubts
from data_prep.writing.exclusions import SKIPPED_FILE
from data_prep.writing.loading import load_images
from data_prep.writing.writer import DatasetWriter
from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.groups_file import write_groups
from jamsface_jax.storage.whole_file import written_whole


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
    directory: where the new data set goes.
    name: the prefix of its metrics.
    source: what is converted, for the writer.
    images: maps the images' names to class names, in the order of the records.
    load: returns the encoded bytes of an image.
    pairs: pairs of `images`.
    skip_bad: leave out unreadable images and the pairs with them.
    threads: how many decode.
    groups: the group of each class, by its name, if there are groups.

  Raises:
    InputError: a broken image, or no pairs of one kind.
  """
  # Decoded before anything is written: an image that goes takes pairs and
  # perhaps its class along.
  sizes, broken, content = _look_at(images, load, threads)
  if broken and not skip_bad:
    image, reason = next(iter(broken.items()))
    raise InputError(
      f"image {image!r} cannot be read ({reason}): mend it, or leave such"
      " images and their pairs out with --skip_bad."
    )
  kept = pairs_without(broken, pairs)
  lines = pair_lines(kept)
  classes = sorted({images[image] for image in sizes})
  labels = {person: label for label, person in enumerate(classes)}
  digest = hashlib.sha256(
    "\n".join([*images, lines, *broken, content]).encode()
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
    with written_whole(path) as file:
      file.write(lines)
    if groups:
      write_groups(directory, {one: groups[one] for one in classes})
    writer.count_left_out(pairs=len(pairs) - len(kept))
  _print_result(directory, kept, len(broken), len(pairs) - len(kept))


def _look_at(
  images: Collection[str], load: Callable[[str], bytes], threads: int
) -> tuple[dict[str, tuple[int, int]], dict[str, str], str]:
  """Reads all images.

  Returns:
    The (height, width) of each sound one, why the others are not, and a hash of
    what all hold.
  """
  sizes, broken, content = {}, {}, hashlib.sha256()
  with ThreadPoolExecutor(threads) as pool:
    items = ((image, 0) for image in images)
    looked_at = load_images(items, load, pool, check=True)
    for image, data, size in tqdm(
      looked_at, total=len(images), unit="image", disable=None
    ):
      content.update(hashlib.sha256(data).digest())
      if isinstance(size, str):
        broken[image] = size
      else:
        sizes[image] = size
  return sizes, broken, content.hexdigest()


def pair_lines(pairs: Sequence[Pair]) -> str:
  """What `pairs.txt` holds, in the layout without a header."""
  return "".join(
    f"{pair.first}\t{pair.second}\t{pair.same:d}\t{pair.fold}\n"
    for pair in pairs
  )


def pairs_without(broken: Collection[str], pairs: Sequence[Pair]) -> list[Pair]:
  """The pairs of sound images, if they are a protocol still.

  Args:
    broken: the images that are left out.
    pairs: all pairs.

  Raises:
    InputError: what is left has one kind of pairs, or one fold.
  """
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
  return kept


def _print_result(
  directory: str, pairs: Sequence[Pair], broken: int, left_out: int
) -> None:
  """Says what the set holds and what was left out, and a command for it."""
  reader = records.RecordReader(directory)
  print(
    f"{len(pairs):,} pairs ({sum(pair.same for pair in pairs):,} of one person)"
    f" of {reader.index.images:,} images in {directory}"
    + (
      f"; {broken} images in {SKIPPED_FILE}, {left_out} pairs left out"
      if broken
      else ""
    )
  )
  warn_of_doubts(reader)
  print(f"next: {evaluation_command(directory)}")
