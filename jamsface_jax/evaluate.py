"""Judges a trained network, or the embeddings of any other system.

  python -m jamsface_jax.evaluate --workdir=W --data=LFW_DIR[,IJBC_DIR...]
  python -m jamsface_jax.evaluate --workdir=W --data=FOLDER --protocol=P
  python -m jamsface_jax.evaluate --embeddings=E.npy --protocol=P

A data set is judged by the protocols that lie in it: pairs.txt (LFW and its
kind), templates (IJB-B, IJB-C), search.csv (TinyFace, MegaFace, your own). With
DIR:all_pairs every image of it is compared with every other.

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
import os
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from jamsface_jax import distributed, embedding_array, inference, sharding
from jamsface_jax.compiling import cache_in
from jamsface_jax.config import read_config
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.evaluation import Task, open_folder_task, open_tasks
from jamsface_jax.pooling import ALL, Pooling, parse_pooling
from jamsface_jax.protocols import Evaluation, Settings, TemplateSet, TestSet
from jamsface_jax.results import (
  plot_evaluations,
  read_roc_lines,
  table,
  write_results,
)

FLIPS = {"sum": (True,), "none": (False,), "both": (True, False)}


def main() -> int:
  """Reads the flags and evaluates."""
  arguments = parse()
  with distributed.joined(arguments):
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
  if arguments.embeddings:
    if jax.process_index() > 0:
      return
    evaluations, origin = judge_file(arguments)
    output = os.path.join(os.path.dirname(arguments.embeddings), "evaluation")
  else:
    cache_in(arguments.workdir)
    evaluations, origin = judge_network(arguments)
    output = os.path.join(arguments.workdir, "evaluation")
  if jax.process_index() > 0:
    return
  print(table(evaluations))
  output = arguments.output or output
  path = write_results(output, evaluations, origin)
  plot_evaluations(output, evaluations, others)
  print(f"results: {path}, and pictures beside it")


def parse() -> argparse.Namespace:
  """Reads the flags.

  Raises:
    InputError: flags that contradict each other, or a wrong value.
  """
  parser = argparse.ArgumentParser(
    prog="python -m jamsface_jax.evaluate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", help="of a training run")
  add("--data", help="data sets with protocols, comma between")
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add(
    "--flip",
    choices=FLIPS,
    help="add the embedding of the mirror image; default: as the run does",
  )
  add("--embeddings", help="a .npy file [N, D] of another system")
  add("--protocol", help="what to judge it by, see above")
  add("--flipped", help="likewise of the mirror images, to be added")
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
  distributed.add_flags(parser)
  arguments = parser.parse_args()
  ours = arguments.workdir, arguments.data, arguments.step, arguments.flip
  theirs = arguments.embeddings, arguments.flipped
  network = all(ours[:2]) and not any(theirs)
  array = theirs[0] and arguments.protocol and not any(ours)
  if not network and not array:
    raise InputError(
      "flags: give --workdir and --data to judge a network here, or"
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


def judge_network(
  arguments: argparse.Namespace,
) -> tuple[list[Evaluation], dict[str, object]]:
  """Embeds the images of data sets; process 0 judges the embeddings."""
  first = jax.process_index() == 0
  config = read_config(arguments.workdir)
  size = config.data.image_size
  if arguments.protocol:
    tasks = [open_folder_task(arguments.data, arguments.protocol, size)]
  else:
    tasks = open_tasks(arguments.data, size)
  chosen = arguments.flip or ("sum" if config.evaluation.flip else "none")
  evaluations: dict[str, list[Evaluation]] = {}
  for flip in FLIPS[chosen]:
    embedder, variables, metadata = inference.load(
      arguments.workdir,
      step=arguments.step,
      batch_size=config.evaluation.batch_size,
      flip=flip,
      mesh=sharding.make_mesh(-1),
    )
    distributed.check_same(
      {
        "checkpoint": [metadata["step"], metadata["data_fingerprint"]],
        "images": [(_key(task), len(task.test_set.ids)) for task in tasks],
        "flip": flip,
      },
      "--workdir, --data",
    )
    for task in tasks:
      settings = Settings(
        fars=arguments.fars,
        poolings=choose_poolings(task.test_set, arguments.pooling, norms=True),
        flip=flip,
        plain=flip == FLIPS[chosen][0],
        replicates=arguments.bootstrap,
      )
      evaluations.setdefault(_key(task), []).extend(
        task.evaluate(
          embedder,
          variables,
          settings,
          threads=config.data.threads,
          judges=first,
        )
      )
  if first:
    print(f"checkpoint {metadata['step']} of {arguments.workdir}")
  origin = {
    "workdir": os.path.abspath(arguments.workdir),
    "step": metadata["step"],
    "color_order": metadata["color_order"],
    "data_fingerprint": metadata["data_fingerprint"],
    "versions": metadata["versions"],
  }
  return [one for of_set in evaluations.values() for one in of_set], origin


def _key(task: Task) -> str:
  return f"{task.test_set.name} {type(task.test_set).__name__}"


def judge_file(
  arguments: argparse.Namespace,
) -> tuple[list[Evaluation], dict[str, object]]:
  """Judges embeddings that another system made."""
  path, flipped = arguments.embeddings, arguments.flipped
  rows = embedding_array.open_embeddings(path)
  test_sets = embedding_array.open_test_sets(arguments.protocol, path, rows)
  # What is known of each array, with the flip sum first.
  arrays = [(rows, embedding_array.is_flip_sum(path))]
  if flipped:
    mirrored = embedding_array.open_embeddings(flipped)
    both = embedding_array.Sum(rows, mirrored, flipped)
    arrays = [(both, True), (rows, False)]
  evaluations = []
  for test_set in test_sets:
    for number, (array, flip) in enumerate(arrays):
      settings = Settings(
        fars=arguments.fars,
        poolings=choose_poolings(
          test_set,
          arguments.pooling,
          norms=not embedding_array.are_units(array, path),
        ),
        flip=flip,
        plain=not number,
        replicates=arguments.bootstrap,
      )
      blocks = embedding_array.blocks(array, test_set.ids)
      evaluations += test_set.judge(blocks, settings, what=path)
  origin = {"file": os.path.abspath(path), "protocol": arguments.protocol}
  if flipped:
    origin["flipped"] = os.path.abspath(flipped)
  return evaluations, origin


def choose_poolings(
  test_set: TestSet, wanted: Sequence[Pooling], *, norms: bool
) -> list[Pooling]:
  """The poolings asked for, or all that the data allow.

  Args:
    test_set: to be judged.
    wanted: by the user; empty for all.
    norms: whether embeddings have lengths of their own.

  Raises:
    InputError: one that the data do not allow.
  """
  if not isinstance(test_set, TemplateSet):
    return list(wanted)
  if not norms and any(pooling.norm for pooling in wanted):
    raise InputError(
      "--pooling: N1 weighs an image by the length of its embedding, but all"
      " have length 1: choose N0, or give embeddings as the network made them."
    )
  test_set.check(wanted)
  return list(wanted) or [
    pooling
    for pooling in ALL
    if (norms or not pooling.norm)
    and (test_set.has_scores or not pooling.detector)
  ]


if __name__ == "__main__":
  run_command(main)
