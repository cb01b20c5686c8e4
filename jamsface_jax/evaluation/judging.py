"""Judges networks and files of embeddings on test sets."""

import argparse
import os
from collections.abc import Sequence

import jax

from jamsface_jax.devices import processes, sharding
from jamsface_jax.embedding import embedder as embedder_lib
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation import foreign_embeddings
from jamsface_jax.evaluation.evaluator import Task, open_folder_task, open_tasks
from jamsface_jax.protocols.pooling import ALL, Pooling
from jamsface_jax.protocols.template_set import TemplateSet
from jamsface_jax.protocols.test_set import Evaluation, Settings, TestSet
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

FLIPS = {"sum": (True,), "none": (False,), "both": (True, False)}


def judge_network(
  run: RunDirectory,
  arguments: argparse.Namespace,
) -> tuple[list[Evaluation], dict[str, object]]:
  """Embeds the images of data sets; process 0 judges the embeddings."""
  first = jax.process_index() == 0
  config = read_settings(run)
  size = config.data.image_size
  if arguments.protocol:
    tasks = [open_folder_task(arguments.data, arguments.protocol, size)]
  else:
    tasks = open_tasks(arguments.data, size)
  chosen = arguments.flip or ("sum" if config.evaluation.flip else "none")
  evaluations: dict[str, list[Evaluation]] = {}
  for flip in FLIPS[chosen]:
    embedder, variables, metadata = embedder_lib.load(
      run,
      step=arguments.step,
      batch_size=config.evaluation.batch_size,
      flip=flip,
      mesh=sharding.make_mesh(-1),
    )
    processes.check_same(
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
    print(f"checkpoint {metadata['step']} of {run.path}")
  origin = {
    "workdir": run.absolute,
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
  rows = foreign_embeddings.open_embeddings(path)
  test_sets = foreign_embeddings.open_test_sets(arguments.protocol, path, rows)
  # What is known of each array, with the flip sum first.
  arrays = [(rows, foreign_embeddings.is_flip_sum(path))]
  if flipped:
    mirrored = foreign_embeddings.open_embeddings(flipped)
    both = foreign_embeddings.Sum(rows, mirrored, flipped)
    arrays = [(both, True), (rows, False)]
  evaluations = []
  for test_set in test_sets:
    for number, (array, flip) in enumerate(arrays):
      settings = Settings(
        fars=arguments.fars,
        poolings=choose_poolings(
          test_set,
          arguments.pooling,
          norms=not foreign_embeddings.are_units(array, path),
        ),
        flip=flip,
        plain=not number,
        replicates=arguments.bootstrap,
      )
      blocks = foreign_embeddings.blocks(array, test_set.ids)
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
