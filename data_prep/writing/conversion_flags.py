"""The flags that converters share."""

import argparse
import os
from collections.abc import Sequence

from data_prep.writing.conversion import ENGINES
from data_prep.writing.exclusions import SKIPPED_FILE
from jamsface_jax import shell


def positive_integer(text: str) -> int:
  """The type of a flag that counts something."""
  number = int(text)
  if number < 1:
    raise ValueError
  return number


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser with the flags of every converter but --input.

  Args:
    command: the module's name in data_prep.
    description: its docstring.
  """
  parser = argparse.ArgumentParser(
    prog=shell.name(f"data_prep.{command}"),
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--output",
    required=True,
    help="directory of the new data set, or gs://BUCKET/NAME",
  )
  add("--name", help="prefix of its metrics; default: the output's last part")
  add(
    "--skip_bad",
    action="store_true",
    help="leave out images that cannot be read, and pairs with them; lists"
    f" the images in {SKIPPED_FILE}",
  )
  add(
    "--threads",
    type=positive_integer,
    default=os.cpu_count(),
    help="for decoding; default: one a core",
  )
  return parser


def add_check_images(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that says how closely images are looked at."""
  parser.add_argument(
    "--check_images",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="decode every image once; otherwise only look at its head",
  )


def add_groups(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that says which people are judged as a group."""
  parser.add_argument(
    "--groups",
    metavar="FILE",
    help="CSV with the header identity,group and a line for each identity:"
    " evaluations then give error rates per group",
  )


def add_engine(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that says where the work is done."""
  parser.add_argument(
    "--engine",
    choices=sorted(ENGINES),
    default="local",
    help="local: in this process; ray: each shard is a task of a Ray cluster"
    " that shares the storage, with 1 of --threads by default; the result is"
    " the same",
  )
  parser.set_defaults(threads=None)


def parse(
  parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
  """Parses a command line, sys.argv if None, and completes --name."""
  arguments = parser.parse_args(argv)
  if not arguments.name:
    path = os.path.abspath(arguments.output)
    arguments.name = os.path.basename(path)
  return arguments
