r"""Draws data sets of procedural faces: one to train on, one to verify.

No photograph, no download, no pre-trained weight: a whole experiment
(long-tailed training set, verification of unseen identities) from one seed.

  python -m data_prep.synthesize --output=DIR

DIR/train holds --images images of --identities identities whose sizes follow
--tail; DIR/test other identities and pairs.txt, in LFW's layout. With
--held_out=N, DIR/held_out has N more images of each training identity, to see
how well rich and poor classes are told apart (evaluation.known). With
--mislabelled=SHARE so many training images have the class of another; their
names keep the true one.
They are hard enough to compare losses: on the 6,000 pairs of the default
settings the cosine of raw pixels (56 x 56, mean image subtracted) is right for
63 %, that of a small convolutional network after 400 steps for 90 %.
"""

import argparse
import contextlib
import functools
import multiprocessing
import multiprocessing.pool
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker

import cv2
import tqdm

from data_prep.synthetic import classes, photos
from data_prep.synthetic.pairs import (
  FOLDS,
  person_name,
  verification_pairs,
  write_pairs,
)
from data_prep.writing.writer import DatasetWriter
from jamsface_jax import shell
from jamsface_jax.data import records
from jamsface_jax.errors import InputError, run_command


def _draw(job: tuple[int, int], seed: int, size: int) -> list[bytes]:
  """What a worker does: all images of one identity."""
  # OpenCV's threads cost more than they gain on small images.
  cv2.setNumThreads(1)
  identity, images = job
  numbers = range(1, images + 1)
  return photos.draw_identity(seed, identity, numbers, size)


def _progress(
  drawn: Iterable[list[bytes]], total: int
) -> Iterator[list[bytes]]:
  """Passes identities on; a bar on a terminal, ten lines elsewhere."""
  terminal = sys.stderr.isatty()
  done = 0
  with tqdm.tqdm(total=total, unit=" images", disable=not terminal) as bar:
    for images in drawn:
      yield images
      before, done = done, done + len(images)
      bar.update(len(images))
      if not terminal and 10 * done // total > 10 * before // total:
        print(f"{done} of {total} images", file=sys.stderr, flush=True)


def synthesize(
  output: str,
  *,
  train_sizes: Sequence[int],
  mislabelled: float,
  held_out: int,
  test_identities: int,
  test_images: int,
  pairs: int,
  seed: int,
  size: int,
  workers: int,
) -> None:
  """Writes the data sets; their bytes depend on all but `workers`.

  Args:
    output: the directory that they are written to.
    train_sizes: images of each training identity.
    mislabelled: share of training images whose class is another's.
    held_out: images more of each, in a set of their own; 0: no such set.
    test_identities: identities that are only in the test set.
    test_images: images of each of them.
    pairs: how many verification pairs, half of them positive.
    seed: chooses everything random.
    size: height and width of the images in pixels.
    workers: processes that draw.

  Raises:
    InputError: a data set is there already, or impossible pairs or labels.
  """
  names = ("train", "test", "held_out") if held_out else ("train", "test")
  directories = {name: os.path.join(output, name) for name in names}
  _refuse_existing(output, directories.values())
  identities = len(train_sizes) + test_identities
  # A counter of its own, which no image has.
  rng = photos.generator(seed, identities)
  folds = verification_pairs(test_identities, test_images, pairs, rng)
  labels = classes.training_labels(train_sizes, mislabelled, rng).tolist()
  people = [person_name(identity) for identity in range(identities)]
  split = len(train_sizes)
  people_of = dict.fromkeys(names, people[:split]) | {"test": people[split:]}
  sizes = [*map(int, train_sizes), *[test_images] * test_identities]
  drawn_sizes = [n + held_out * (i < split) for i, n in enumerate(sizes)]
  draw = functools.partial(_draw, seed=seed, size=size)
  source = f"synthetic {seed} {sizes} {size}"
  if held_out:
    source += f" {held_out}"
  if mislabelled:
    source += f" mislabelled {mislabelled}"
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(_start_workers(workers))
    # All are finished, or none.
    writers = {
      name: stack.enter_context(
        DatasetWriter(
          directory,
          name=f"synthetic_{name}",
          classes=people_of[name],
          source=source,
          synthetic=True,
        )
      )
      for name, directory in directories.items()
    }
    drawn = pool.imap(draw, enumerate(drawn_sizes))
    _write(
      writers,
      enumerate(_progress(drawn, sum(drawn_sizes))),
      people=people,
      train_sizes=train_sizes,
      train_labels=iter(labels),
      size=size,
    )
    with tempfile.TemporaryDirectory() as scratch:
      path = os.path.join(scratch, records.PAIRS_FILE)
      write_pairs(path, folds, split)
      writers["test"].add_pairs(path)


def _start_workers(number: int) -> multiprocessing.pool.Pool:
  """Starts processes that draw; Ctrl-C is the business of this one alone.

  The terminal sends it to all; they inherit that it is blocked, so that none
  complains, and end when this one ends the pool.
  """
  # Python lets signals through when it has started this one, which would be
  # between the workers' mask and the workers.
  resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    return multiprocessing.get_context("spawn").Pool(number)
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _refuse_existing(output: str, directories: Iterable[str]) -> None:
  """Refuses to write over a data set."""
  for directory in directories:
    if os.path.exists(os.path.join(directory, records.INDEX_FILE)):
      raise InputError(
        f"--output {output!r} holds a data set already ({directory}): choose"
        " another directory or delete it first."
      )


def _write(
  writers: Mapping[str, DatasetWriter],
  drawn: Iterable[tuple[int, list[bytes]]],
  *,
  people: Sequence[str],
  train_sizes: Sequence[int],
  train_labels: Iterator[int],
  size: int,
) -> None:
  """Writes the images of each identity into the sets that they belong to.

  Args:
    writers: "train", "test" and perhaps "held_out".
    drawn: an identity and its images; first those to train on.
    people: what the identities are called.
    train_sizes: images to train on of each of the first of them; what it has
      more is held out. All images of the others are for the test.
    train_labels: the class of each image to train on.
    size: height and width of the images in pixels.
  """
  # Before, if interrupted.
  written = {name: writer.position for name, writer in writers.items()}
  split = len(train_sizes)
  for identity, images in drawn:
    person, trained = people[identity], identity < split
    for number, image in enumerate(images, start=1):
      part = "test"
      if trained:
        part = "train" if number <= train_sizes[identity] else "held_out"
      label = identity if trained else identity - split
      if part == "train":
        label = int(next(train_labels))
      if written[part]:
        written[part] -= 1
        continue
      name = f"{person}/{person}_{number:04d}.jpg"
      writers[part].add(label, name, image, (size, size))


class _Formatter(
  argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
  """Shows the defaults, and the description as it is."""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog=shell.name("data_prep.synthesize"),
    description=__doc__,
    formatter_class=_Formatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--output", required=True, help="directory for the data sets")
  add("--identities", type=int, default=600, help="classes to train on")
  add(
    "--images",
    type=int,
    help=f"training images in all; {classes.DEFAULT_IMAGES} with zipf,"
    " as the file says with file",
  )
  add(
    "--tail",
    default="zipf:1.0",
    help="class sizes: zipf:EXPONENT, or file:PATH with one size a line",
  )
  add("--smallest_class", type=int, default=2, help="least images of a class")
  add("--largest_class", type=int, default=100, help="most images of a class")
  add(
    "--held_out",
    type=int,
    default=0,
    help="images more of each training identity, for held_out/",
  )
  add(
    "--mislabelled",
    type=float,
    default=0.0,
    help="share of training images that have the class of another",
  )
  add("--test_identities", type=int, default=200, help="never trained on")
  add("--test_images", type=int, default=10, help="images of each of these")
  add("--pairs", type=int, default=6000, help="verification pairs in all")
  add("--seed", type=int, default=0, help="same seed, same bytes")
  add("--size", type=int, default=112, help="pixels of a side")
  add(
    "--workers",
    type=int,
    default=os.cpu_count(),
    help="processes; the bytes do not depend on it",
  )
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """The command."""
  flags = _parse(arguments)
  for name, least, most in (
    ("identities", 2, 50_000),
    ("held_out", 0, 9_999),
    ("mislabelled", 0, 0.5),
    ("test_identities", 2 * FOLDS, 50_000),
    ("test_images", 2, 9_999),
    ("smallest_class", 1, 9_999),
    ("largest_class", flags.smallest_class, 9_999),
    ("seed", 0, 2**63 - 1),
    ("size", 32, 1024),
    ("workers", 1, 1024),
  ):
    value = getattr(flags, name)
    if not least <= value <= most:
      raise InputError(
        f"--{name}={value} is out of range: choose {least} to {most}."
      )
  sizes = classes.class_sizes(
    flags.tail,
    flags.identities,
    flags.images,
    flags.smallest_class,
    flags.largest_class,
  )
  synthesize(
    flags.output,
    train_sizes=sizes.tolist(),
    mislabelled=flags.mislabelled,
    held_out=flags.held_out,
    test_identities=flags.test_identities,
    test_images=flags.test_images,
    pairs=flags.pairs,
    seed=flags.seed,
    size=flags.size,
    workers=flags.workers,
  )
  train = os.path.join(flags.output, "train")
  then = shell.command(
    "jamsface_jax.main",
    "--config=configs/demo.py",
    f"--workdir={os.path.join(flags.output, 'run')}",
    f"--config.data.directory={train}",
    f"--config.evaluation.data={os.path.join(flags.output, 'test')}",
  )
  print(
    f"wrote {sizes.sum()} images of {len(sizes)} identities ({sizes.max()} to"
    f" {sizes.min()} each) to {train} and {flags.pairs} pairs of"
    f" {flags.test_identities} others to {os.path.join(flags.output, 'test')}"
    f"\nnext: {then}"
  )


if __name__ == "__main__":
  run_command(main)
