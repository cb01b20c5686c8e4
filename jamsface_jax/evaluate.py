"""Judges a trained network, or the embeddings of any other system.

  python -m jamsface_jax.evaluate --workdir=W --data=LFW_DIR[,IJBC_DIR...]
  python -m jamsface_jax.evaluate --workdir=W
  python -m jamsface_jax.evaluate --workdir=W --data=FOLDER --protocol=P
  python -m jamsface_jax.evaluate --embeddings=E.npy --protocol=P

A data set is judged by the protocols that lie in it: pairs.txt (LFW and its
kind), templates (IJB-B, IJB-C), search.csv (TinyFace, MegaFace, your own). With
DIR:all_pairs every image of it is compared with every other. Without --data it
is the run's own test sets, evaluation.data.

A FOLDER of images is judged by a P that is a pairs.txt or search.csv over their
paths, or all_pairs, with its sub-folders as people.

For E.npy, P is a data set, whose images in order are its rows, or
DIR:all_pairs; or a pairs.txt or search.csv, with the names of the rows in a
paths.txt beside E.npy; or all_pairs, with their classes in a labels.npy there.

Prints a table; writes results.json, ROC, CMC, histograms of scores and the
hardest pairs. It runs on several processes as jamsface_jax.main does: each
embeds its part of the images, and process 0 judges and writes.
"""

import argparse
from typing import Any

import jax
from jax.experimental import multihost_utils

from jamsface_jax import shell
from jamsface_jax.data.local_copy import keep_copies_in
from jamsface_jax.devices import processes
from jamsface_jax.devices.program_cache import keep_programs
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.evaluation.judging import FLIPS, judge_file, judge_network
from jamsface_jax.protocols.pooling import parse_pooling
from jamsface_jax.protocols.results import read_roc_lines, table, write_results
from jamsface_jax.protocols.test_set import Evaluation, JudgingSettings
from jamsface_jax.reports.plots import plot_evaluations
from jamsface_jax.storage.run_directory import (
  EvaluationDirectory,
  RunDirectory,
)
from jamsface_jax.storage.write_error import write_error


def main() -> int:
  """Reads the flags and evaluates."""
  arguments = parse()
  keep_copies_in(arguments.data_cache)
  with processes.joined(arguments):
    evaluate(arguments)
    multihost_utils.sync_global_devices("evaluated")
  return 0


def evaluate(arguments: argparse.Namespace) -> None:
  """Evaluates; process 0 prints and writes what comes out.

  Raises:
    InputError: see the modules of protocols and of their files.
  """
  others = {}
  for path in filter(None, arguments.against.split(",")):
    others |= read_roc_lines(path)
  if jax.process_index() > 0:
    judge(arguments)
    return
  output = place(arguments)
  with output.held():  # Before any work.
    evaluations, origin = judge(arguments)
    print(table(evaluations))
    try:
      write_results(output.results, evaluations, origin)
      plot_evaluations(output.plots, evaluations, others)
    except OSError as error:
      raise write_error("--output", output.path, error) from None
  print(f"results: {output.results.path}, and pictures beside it")


def place(arguments: argparse.Namespace) -> EvaluationDirectory:
  """Where what comes out goes."""
  if arguments.output:
    return EvaluationDirectory.at(arguments.output, "--output")
  if arguments.embeddings:
    return EvaluationDirectory.beside(arguments.embeddings)
  return RunDirectory(arguments.workdir).evaluation


def judge(
  arguments: argparse.Namespace,
) -> tuple[list[Evaluation], dict[str, Any]]:
  """Judges what the flags name, on all processes; see `evaluation.judging`."""
  wanted = JudgingSettings(
    fars=arguments.fars,
    poolings=arguments.pooling,
    flip=None,
    plain=True,
    replicates=arguments.bootstrap,
  )
  if arguments.embeddings:
    if jax.process_index() > 0:
      return [], {}
    return judge_file(
      arguments.embeddings,
      arguments.protocol,
      flipped=arguments.flipped,
      wanted=wanted,
    )
  run = RunDirectory(arguments.workdir)
  keep_programs()
  return judge_network(
    run,
    arguments.data,
    protocol=arguments.protocol,
    step=arguments.step,
    flip=arguments.flip,
    wanted=wanted,
  )


def parse() -> argparse.Namespace:
  """Reads the flags.

  Raises:
    InputError: flags that contradict each other, or a wrong value.
  """
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.evaluate"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", help="of a training run")
  add(
    "--data",
    help="data sets with protocols, comma between; default: those of the run",
  )
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add(
    "--flip",
    choices=FLIPS,
    help="add the embedding of the mirror image; default: as the run does",
  )
  add("--embeddings", help="a .npy file [N, D] of another system")
  add("--protocol", help="what to judge it by, see above")
  add("--flipped", help="a .npy file of their mirror images, to be added")
  add(
    "--pooling",
    default="",
    help="of templates, such as D1N1,D0N0: detector score, feature norm;"
    " default: all that the data allow",
  )
  add("--fars", default="", help="such as 1e-4,1e-6; default: all powers of 10")
  add(
    "--bootstrap",
    type=int,
    default=0,
    help="resamples of the identities for 95 %% intervals; default: none",
  )
  add("--against", default="", help="results.json of others, for the ROC plot")
  add("--output", help="default: evaluation/ in W, or beside E.npy")
  add("--data_cache", default="", help="for copies of data sets in buckets")
  processes.add_flags(parser)
  arguments = parser.parse_args()
  ours = arguments.workdir, arguments.data, arguments.step, arguments.flip
  theirs = arguments.embeddings, arguments.flipped
  network = arguments.workdir and not any(theirs)
  network = network and (arguments.data or not arguments.protocol)
  array = theirs[0] and arguments.protocol and not any(ours)
  if not network and not array:
    raise InputError(
      "flags: give --workdir, and --data, to judge a network here, or"
      " --embeddings and --protocol to judge those of another system."
    )
  if arguments.bootstrap < 0:
    raise InputError(
      f"--bootstrap={arguments.bootstrap} is not a number of resamples: give"
      " 1000, or 0 for no intervals."
    )
  arguments.fars = parse_fars(arguments.fars)
  arguments.pooling = [
    parse_pooling(one) for one in arguments.pooling.split(",") if one
  ]
  return arguments


def parse_fars(text: str) -> list[float] | None:
  """Reads rates with commas between; None for "".

  Raises:
    InputError: one is not above 0 and up to 1.
  """
  try:
    fars = [float(one) for one in text.split(",") if one]
  except ValueError:
    fars = [0.0]
  if not all(0 < far <= 1 for far in fars):
    raise InputError(
      f"--fars={text!r} is not a list of rates above 0 and up to 1: write"
      " 1e-4,1e-6."
    )
  return fars or None


if __name__ == "__main__":
  run_command(main)
