r"""Names the people in images: who of a gallery is nearest, or nobody.

  python -m jamsface_jax.search --workdir=W --gallery=PEOPLE --images=PHOTOS \
    --output=F
  python -m jamsface_jax.search --workdir=W --trained_on --images=PHOTOS \
    --output=F

PEOPLE and PHOTOS are folders, lists, images, data sets or arrays of aligned
faces, as jamsface_jax.embed takes them, or what it wrote (embedded once,
searched often), or any .npy file of floating-point numbers [N, D]. Photographs
that nobody has aligned need --align: all faces of PHOTOS are named, and of each
photograph of PEOPLE the large and central face is its person's.

A person of PEOPLE is a folder of images, an image that lies in none, or a class
of a data set. With --trained_on the people are those of the training data,
known by the weights of their classes: no threshold is measured for these, so
none is nobody unless --threshold says so.

Whoever is less like the nearest person than a threshold is nobody. It is read
from the evaluation of W, at the --far of its test set with the most pairs.

F/names.csv   a line an image: its name, and the nearest people with cosines
F/names.json  the same, and what was searched how
F/names.html  the same to look at; with --faces, a contact sheet

Search is exact. Memory does not grow with PHOTOS; of PEOPLE it holds the names.
"""

import argparse

from jamsface_jax import shell
from jamsface_jax.data.local_copy import keep_copies_in
from jamsface_jax.devices import processes
from jamsface_jax.devices.program_cache import keep_programs
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.searching import threshold
from jamsface_jax.searching.files import PAGE_FILE
from jamsface_jax.searching.network import Network
from jamsface_jax.searching.search import search
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.storage.upload import write_folder


def main() -> int:
  """Reads the flags and searches."""
  arguments = parse()
  processes.refuse_several("search")
  keep_programs()
  keep_copies_in(arguments.data_cache)
  run = RunDirectory(arguments.workdir) if arguments.workdir else None
  write_folder(
    arguments.output,
    lambda output: search(
      Network(run, step=arguments.step),
      arguments.images,
      arguments.gallery,
      output,
      threshold=_threshold(arguments, run),
      k=arguments.most,
      faces=arguments.faces,
      align=arguments.align,
    ),
    last=PAGE_FILE,
    what="what a search found",
  )
  return 0


def _threshold(
  arguments: argparse.Namespace, run: RunDirectory | None
) -> threshold.Threshold | None:
  """Where nobody begins; None where the nearest is always named."""
  if arguments.threshold is not None:
    return threshold.given(arguments.threshold)
  if arguments.trained_on:
    return None
  if run is None:
    raise InputError(
      "--workdir or --threshold is needed, to tell somebody from nobody: give"
      " the --workdir of a training run that was evaluated, or a cosine as"
      " --threshold."
    )
  return threshold.measured(run, arguments.far)


def parse() -> argparse.Namespace:
  """Reads the flags.

  Raises:
    InputError: flags that contradict each other, or a wrong value.
  """
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.search"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", help="of a training run")
  add("--gallery", help="the people")
  add("--trained_on", action="store_true", help="the people are the classes")
  add("--images", required=True, help="who is to be named")
  add("--output", required=True, help="directory of what was found")
  add(
    "--far",
    type=float,
    default=1e-3,
    help="share of pairs of two people above the threshold; default: 1e-3",
  )
  add("--threshold", type=float, help="a cosine, instead of --far")
  add("--most", type=int, default=3, help="people per image; default: 3")
  add("--align", action="store_true", help="find the faces of photographs")
  add("--faces", action="store_true", help="show images on the page")
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add("--data_cache", default="", help="for copies of data sets in buckets")
  arguments = parser.parse_args()
  if (arguments.gallery is None) != arguments.trained_on:
    raise InputError(
      "either --gallery or --trained_on says who the people are: give one of"
      " them."
    )
  if arguments.trained_on and arguments.workdir is None:
    raise InputError(
      "--trained_on needs --workdir, whose training the people are of: give it."
    )
  if arguments.most < 1:
    raise InputError(f"--most={arguments.most} must be above 0.")
  return arguments


if __name__ == "__main__":
  run_command(main)
