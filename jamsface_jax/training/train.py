"""The story of a run: data, state, steps, checkpoints, evaluations."""

import contextlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from jamsface_jax.data.pipeline import batches
from jamsface_jax.data.sources import (
  open_source,
)
from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation.evaluator import CENTRE_ANGLE, Evaluator
from jamsface_jax.head import memory
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.run import fine_tune
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.run.goodput import Goodput
from jamsface_jax.run.launches import note_launch
from jamsface_jax.run.progress import Progress
from jamsface_jax.run.resuming import begin, describe
from jamsface_jax.run.schedule import steps_of
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training import summary
from jamsface_jax.training.metric_writer import MetricWriter
from jamsface_jax.training.preemption import Preemption
from jamsface_jax.training.products import (
  gather_margins,
  plot,
  rank_margins,
  show,
)
from jamsface_jax.training.profiling import Profile
from jamsface_jax.training.step import make_train_step
from jamsface_jax.training.step_log import StepLog
from jamsface_jax.training.wandb_log import WandbLog


def train(
  config: Settings,
  run: RunDirectory,
  *,
  fine_tune_from: RunDirectory | None = None,
  fine_tune_keep: str = fine_tune.BACKBONE,
) -> int:
  """Trains, evaluates and reports; goes on where an earlier run stopped.

  The result is a function of the settings and the data alone: however often
  the run is stopped and started again, it sees the same examples in the same
  order and ends with the same parameters and metrics.

  Args:
    config: settings of the run.
    run: directory of this run, made if missing.
    fine_tune_from: directory of another run to begin with parts of.
    fine_tune_keep: these parts, see `plan_fine_tune`.

  Returns:
    Exit code: 0 done; 75 preempted or 130 interrupted, with a checkpoint
    written.

  Raises:
    InputError: a setting or the data is at fault.
    RunError: the loss is not finite, or a checkpoint cannot be written.
  """
  main_process = jax.process_index() == 0
  if not main_process:  # One process of several writes.
    run = run.without_writing()
  goodput = Goodput(run)
  mesh = sharding.make_mesh(config.mesh.model)
  micro_batch = config.data.batch_size // config.optimizer.accumulation
  sharding.check_divides(
    "data.batch_size / optimizer.accumulation", micro_batch, mesh
  )
  source = open_source(config.data)
  total_steps = steps_of(config.schedule.length, config, len(source))
  components = make_components(config, source.num_classes, len(source))
  head_lib.check_mesh(components.head, mesh)
  cost = memory.estimate(
    *(components.head, micro_batch, mesh),
    optimizer=components.optimizers.weights,
    fused_update=config.head.fused_update,
  )
  memory.check_fits(cost, components.head, mesh, memory.device_memory())
  evaluator = Evaluator(config, components, mesh, source.class_sizes)
  check_best(config, evaluator)

  with contextlib.ExitStack() as closing:
    preemption = Preemption()
    closing.callback(preemption.close)
    closing.enter_context(run.held())
    beginning = fine_tune.plan_fine_tune(run, fine_tune_from, fine_tune_keep)
    check_or_save(config, run)
    checkpoints = Checkpoints(
      run,
      keep_last=config.checkpoint.keep_last,
      keep_best=config.checkpoint.keep_best,
    )
    closing.callback(checkpoints.close)
    metadata = describe(config, source, beginning)
    state, first, stored = begin(
      *(config, components, mesh, source.class_sizes),
      *(checkpoints, metadata, beginning),
    )
    goodput.resume(stored.get("goodput", {}))
    writer = None
    if main_process:
      also = WandbLog(config, run) if config.wandb.project else None
      writer = MetricWriter(run, first, also)
    progress = Progress(total_steps, first, quiet=not main_process)
    progress.note(
      summary.opening(
        config, source, components, mesh, cost, first, total_steps
      )
    )
    note_launch(
      run,
      {"first": first, "total_steps": total_steps}
      | summary.facts(config, source, components, mesh),
    )
    log = StepLog(
      config,
      run,
      writer,
      progress,
      goodput,
      total_steps,
      begun=stored.get("log", {}),
    )
    closing.callback(log.close)

    rows = sharding.local_rows(config.data.batch_size, mesh)
    stream = batches(
      source,
      seed=config.seed,
      sampling=config.data.sampling,
      batch_size=config.data.batch_size,
      rows=rows,
      start=first,
      total_steps=total_steps,
      threads=config.data.threads,
    )
    closing.callback(stream.close)
    step_fn = make_train_step(config, components, mesh)
    profile = Profile(config.profiled_steps, run)
    closing.callback(profile.close)
    evaluations: list[Evaluation] = []

    def is_due(step: int) -> bool:
      return step == total_steps or _every(config.evaluation.every, step)

    def evaluate(step: int) -> list[Evaluation]:
      with goodput.spent("evaluation"):
        evaluations = evaluator.run(state)
        margins = gather_margins(state)
        of_classes = rank_margins(margins, source, components)
        of_classes |= evaluator.measure_centres(state)
        measured = log.add_evaluations(step, evaluations, of_classes)
        if main_process and step < total_steps:
          goodput.save()
          show(run, step, source, margins, components, evaluations, progress)
      checkpoints.note_metrics(step, measured)
      return evaluations

    # Stopped between a checkpoint and its evaluation: that is done now.
    if first and is_due(first) and lacks_evaluation(writer):
      evaluations = evaluate(first)

    for step in range(first + 1, total_steps + 1):
      with profile.step(step):
        with log.waiting():
          batch = next(stream)
        ids = batch.pop("ids")
        placed = sharding.put_batch(batch, rows, config.data.batch_size, mesh)
        state, metrics = step_fn(state, placed)
      profile.after(step, metrics)
      log.add(step, metrics, ids)  # Looks at the step before: no waiting.
      checkpoints.check()

      last = step == total_steps
      stopping = preemption.requested(step) and not last
      # A machine about to be taken away has time for a checkpoint only.
      evaluating = is_due(step) and not stopping
      if evaluating or stopping or _every(config.checkpoint.every, step):
        log.catch_up()  # A state that is not finite must not be saved.
        if evaluating:
          evaluations = evaluate(step)
        with goodput.spent("checkpoint"):
          now = {"log": log.state(), "goodput": goodput.now()}
          checkpoints.save(step, state, metadata | now)
          if last or stopping:
            checkpoints.wait()
      if stopping:
        goodput.save()
        progress.note(goodput.sentence())
        progress.note(f"stopped at step {step}: run the same command again.")
        return preemption.exit_code

    if not evaluations:  # Finished before: say again what came out.
      evaluations = evaluator.run(state)
    margins = gather_margins(state)
    if main_process:
      with goodput.spent("evaluation"):
        plot(run, source, margins, evaluations)
    goodput.save()
    progress.note(goodput.sentence())
    if main_process:
      show(run, total_steps, source, margins, components, evaluations, progress)
      progress.close()
      summary.close(run, total_steps, evaluations)
  return 0


def lacks_evaluation(writer: MetricWriter | None) -> bool:
  """Whether the metrics of the step resumed from lack those of evaluation.

  All processes get the answer of the one that writes the metrics.
  """
  # A line holds all of an evaluation: one name of it is enough.
  lacks = writer is not None and CENTRE_ANGLE not in writer.last
  return bool(multihost_utils.broadcast_one_to_all(np.bool_(lacks)))


def check_best(config: Settings, evaluator: Evaluator) -> None:
  """Refuses a `keep_best` that no evaluation will measure."""
  wanted = config.checkpoint.keep_best
  choices = evaluator.rising_metrics()
  if wanted and wanted not in choices:
    raise InputError(
      f"checkpoint.keep_best={wanted!r} is not measured by the sets of"
      f" evaluation.data: use one of {', '.join(choices) or 'none'}, or ''."
    )


def _every(interval: int, step: int) -> bool:
  return interval > 0 and step % interval == 0
