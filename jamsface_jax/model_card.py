"""Writes W/model_card.md: what a trained network is, for whom, and how good.

  python -m jamsface_jax.model_card --workdir=W
  python -m jamsface_jax.model_card --workdir=W --output=README.md

A run writes it at each evaluation; this command writes it again, with what
jamsface_jax.evaluate has measured since. It has the form of the model cards of
the Hugging Face Hub. What nobody but you can know is marked [author] in it: a
card that was edited is never written over.
"""

import argparse

from jamsface_jax import shell
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.reports.model_card import write
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory, RunFile
from jamsface_jax.storage.write_error import write_error


def main() -> int:
  """Reads the flags and writes the card."""
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.model_card"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", metavar="W", help="work directory of a run")
  add("given", nargs="?", metavar="W", help="the same, without the flag")
  add("--output", help="the file; default: model_card.md in W")
  arguments = parser.parse_args()
  workdir = arguments.workdir or arguments.given
  if not workdir:
    raise InputError("--workdir is needed: give the work directory of a run.")
  run = RunDirectory(workdir)
  read_settings(run)  # Nothing is locked in a directory of another kind.
  output = (
    RunFile.at(arguments.output, "--output")
    if arguments.output
    else run.model_card
  )
  with output.held("--output"):
    try:
      write(run, output)
    except OSError as error:
      raise write_error("--output", output.path, error) from None
  print(
    f"model card: {output.path}; what is marked [author] in it is yours"
    " to write"
  )
  return 0


if __name__ == "__main__":
  run_command(main)
