"""Judges a network, or a file of embeddings, by every protocol asked for."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jamsface_jax.devices import processes, sharding
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.embedding.files import read_broken
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation import foreign_embeddings
from jamsface_jax.evaluation.tasks import Task, open_folder_task, open_tasks
from jamsface_jax.protocols.pooling import ALL, Pooling
from jamsface_jax.protocols.template_set import TemplateSet
from jamsface_jax.protocols.test_set import (
  Divisible,
  Evaluation,
  JudgingSettings,
  TestSet,
  with_left_out,
)
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

FLIPS = {"sum": (True,), "none": (False,), "both": (True, False)}


def judge_network(
  run: RunDirectory,
  data: str | None,
  *,
  protocol: str | None,
  step: int | None,
  flip: str | None,
  wanted: JudgingSettings,
) -> tuple[list[Evaluation], dict[str, Any]]:
  """Embeds the images of test sets; process 0 judges the embeddings.

  All processes must call it.

  Args:
    run: the directory of a training run.
    data: the data sets, see `open_tasks`; with a protocol a folder of images;
      None for the test sets of the run.
    protocol: what to judge a folder by, see `open_folder_task`; None for data
      sets.
    step: the step of the checkpoint; None for the newest.
    flip: a key of `FLIPS`; None to do as the run does.
    wanted: how to judge; its flip and plain are chosen here, and without
      poolings all that the data allow are taken.

  Returns:
    What came out, test set by test set, and JSON values that say whose
    embeddings these were. Nothing came out of processes that did not judge.

  Raises:
    InputError: no such network or test set, or a pooling that it cannot have.
  """
  first = jax.process_index() == 0
  config = read_settings(run)
  size = config.data.image_size
  data = data or config.evaluation.data
  if not data:
    raise InputError(
      f"--workdir={run.path!r} has no test set of its own (evaluation.data):"
      " give --data=DATASET, or --data=DATASET:all_pairs."
    )
  if protocol:
    tasks = [open_folder_task(data, protocol, size)]
  else:
    tasks = open_tasks(data, size)
  flips = FLIPS[flip or ("sum" if config.evaluation.flip else "none")]
  evaluations: list[list[Evaluation]] = [[] for _ in tasks]
  metadata: dict[str, Any] = {}
  for flipped in flips:
    embedder, variables, metadata = open_embedder(
      run,
      step=step,
      batch_size=config.evaluation.batch_size,
      flip=flipped,
      mesh=sharding.make_mesh(-1),
    )
    _check_same(tasks, metadata, flipped)
    for task, found in zip(tasks, evaluations, strict=True):
      settings = dataclasses.replace(
        wanted,
        poolings=choose_poolings(task.test_set, wanted.poolings, norms=True),
        flip=flipped,
        plain=flipped == flips[0],
      )
      found += task.evaluate(
        embedder,
        variables,
        settings,
        threads=config.data.threads,
        judges=first,
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
  return [one for found in evaluations for one in found], origin


def _check_same(
  tasks: Sequence[Task], metadata: dict[str, Any], flip: bool
) -> None:
  """Refuses processes that see other checkpoints or test sets."""
  processes.check_same(
    {
      "checkpoint": [metadata["step"], metadata["data_fingerprint"]],
      "images": [
        (
          f"{task.test_set.name} {type(task.test_set).__name__}",
          len(task.test_set.ids),
        )
        for task in tasks
      ],
      "flip": flip,
    },
    "--workdir, --data",
  )


def judge_file(
  path: str, protocol: str, *, flipped: str | None, wanted: JudgingSettings
) -> tuple[list[Evaluation], dict[str, Any]]:
  """Judges embeddings that another system made.

  Args:
    path: a .npy file of embeddings.
    protocol: what to judge them by, see `foreign_embeddings.open_test_sets`.
    flipped: a .npy file of the embeddings of the mirrored images, to be added,
      and left out again for a second judgement; None if there is none.
    wanted: how to judge, see `judge_network`.

  Returns:
    What came out, test set by test set, and JSON values that say whose
    embeddings these were.

  Raises:
    InputError: a file or a protocol that does not fit.
  """
  rows = foreign_embeddings.open_embeddings(path)
  test_sets = foreign_embeddings.open_test_sets(protocol, path, rows)
  # What is known of each array, with the flip sum first.
  arrays: list[tuple[foreign_embeddings.Rows, bool | None]]
  arrays = [(rows, foreign_embeddings.is_flip_sum(path))]
  if flipped:
    mirrored = foreign_embeddings.open_embeddings(flipped)
    both = foreign_embeddings.Sum(rows, mirrored, flipped)
    arrays = [(both, True), (rows, False)]
  evaluations = []
  broken = read_broken(os.path.dirname(path))
  for test_set in test_sets:
    left_out: dict[str, int] = {}
    if np.isin(broken, test_set.ids).any() and isinstance(test_set, Divisible):
      test_set, left_out = test_set.without(broken)
    for number, (array, flip) in enumerate(arrays):
      settings = dataclasses.replace(
        wanted,
        poolings=choose_poolings(
          test_set,
          wanted.poolings,
          norms=not foreign_embeddings.are_units(array),
        ),
        flip=flip,
        plain=not number,
      )
      blocks = foreign_embeddings.blocks(array, test_set.ids)
      evaluations += [
        with_left_out(one, left_out)
        for one in test_set.judge(blocks, settings, what=path)
      ]
  origin = {"file": os.path.abspath(path), "protocol": protocol}
  if flipped:
    origin["flipped"] = os.path.abspath(flipped)
  return evaluations, origin


def choose_poolings(
  test_set: TestSet, wanted: Sequence[Pooling], *, norms: bool
) -> list[Pooling]:
  """The poolings asked for, or all that the data allow.

  Args:
    test_set: the test set to be judged.
    wanted: what the user asks for; empty for all.
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
