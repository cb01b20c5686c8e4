"""The story of a run: data, state, steps, checkpoints, evaluations."""

import contextlib

import jax

from jamsface_jax.devices.notices import Notices, listening
from jamsface_jax.devices.sharding import in_turn
from jamsface_jax.evaluation.sets_beside import choose_beside
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.fine_tune import BACKBONE, plan_fine_tune
from jamsface_jax.run.goodput import Goodput
from jamsface_jax.run.launches import note_launch
from jamsface_jax.run.progress import StepProgress
from jamsface_jax.run.resuming import describe, restore_or_init
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training import summary
from jamsface_jax.training.divergence import check_bounded, saying_what_helps
from jamsface_jax.training.loop import Loop
from jamsface_jax.training.metric_writer import MetricWriter
from jamsface_jax.training.preemption import Preemption
from jamsface_jax.training.products import Products
from jamsface_jax.training.profiling import Profile
from jamsface_jax.training.setup import prepare
from jamsface_jax.training.step import make_end_pass, make_train_step
from jamsface_jax.training.step_log import StepLog
from jamsface_jax.training.wandb_log import open_wandb


def train(
  settings: Settings,
  run: RunDirectory,
  *,
  fine_tune_from: RunDirectory | None = None,
  fine_tune_keep: str = BACKBONE,
  heard: Notices | None = None,
) -> int:
  """Trains, evaluates and reports; goes on where an earlier launch stopped.

  The result is a function of the settings and the data alone: however often
  the run is stopped and launched again, it sees the same examples in the same
  order and ends with the same parameters and metrics.

  Args:
    settings: those of the run.
    run: directory of the run, made if missing.
    fine_tune_from: directory of another run to begin with parts of.
    fine_tune_keep: names of these parts, see `plan_fine_tune`.
    heard: tells of SIGTERM and SIGHUP; None: listens itself.

  Returns:
    Exit code: 0 done; 75 preempted or 130 interrupted, with a checkpoint
    written.

  Raises:
    InputError: a setting or the data is at fault.
    NotFiniteError: the loss is not finite.
    RunError: a checkpoint cannot be written.
  """
  if jax.process_index() > 0:  # All do the same, one writes and speaks.
    run = run.without_writing()
  goodput = Goodput(run)
  with contextlib.ExitStack() as stack:
    heard = heard or stack.enter_context(listening())
    settings, missing = choose_beside(settings)
    setup = prepare(settings)
    preemption = stack.enter_context(contextlib.closing(Preemption(heard)))
    stack.enter_context(run.held())
    run.set_misplaced_aside()
    fine_tune = plan_fine_tune(run, fine_tune_from, fine_tune_keep)
    check_or_save(settings, run)
    stack.enter_context(saying_what_helps(run))
    checkpoints = Checkpoints(
      run,
      keep_last=settings.checkpoint.keep_last,
      keep_best=settings.checkpoint.keep_best,
    )
    stack.enter_context(contextlib.closing(checkpoints))
    metadata = describe(settings, setup.source, fine_tune)
    restored = restore_or_init(
      settings,
      setup.components,
      setup.mesh,
      class_sizes=setup.source.class_sizes,
      checkpoints=checkpoints,
      metadata=metadata,
      fine_tune=fine_tune,
    )
    check_bounded(restored.state, restored.step)
    goodput.resume(restored.stored.get("goodput", {}))
    progress = StepProgress(
      setup.total_steps, restored.step, quiet=not run.writes
    )
    log = StepLog(
      settings,
      run,
      writer=MetricWriter(run, restored.step, open_wandb(settings, run)),
      progress=progress,
      goodput=goodput,
      total_steps=setup.total_steps,
      begun=restored.stored.get("log", {}),
    )
    stack.enter_context(contextlib.closing(log))
    progress.note(
      summary.opening(setup, restored.step, fine_tuned=fine_tune is not None)
    )
    if missing:
      progress.note(summary.not_evaluated(missing))
    note_launch(run, summary.facts(setup, restored.step))
    stream = setup.batches_from(restored.step)
    stack.enter_context(contextlib.closing(stream))
    profile = Profile(settings.profiled_steps, run)
    stack.enter_context(contextlib.closing(profile))
    loop = Loop(
      setup=setup,
      run=run,
      goodput=goodput,
      preemption=preemption,
      checkpoints=checkpoints,
      metadata=metadata,
      log=log,
      progress=progress,
      products=Products(run, setup.source, setup.components.head, progress),
      stream=stream,
      profile=profile,
      train_step=in_turn(
        make_train_step(settings, setup.components, setup.mesh), setup.mesh
      ),
      end_pass=make_end_pass(settings, setup.components, setup.mesh),
      state=restored.state,
    )
    return loop.go_on_from(restored.step)
