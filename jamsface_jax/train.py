"""The story of a run: data, state, steps, checkpoints, evaluations."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jamsface_jax import (
  class_profile,
  fine_tune,
  head_cost,
  model_card,
  report,
  results,
  sharding,
  starts,
  summary,
  verification,
  workdir_lock,
)
from jamsface_jax import config as config_lib
from jamsface_jax import head as head_lib
from jamsface_jax.checkpoint import Checkpoints, versions
from jamsface_jax.data import records
from jamsface_jax.data.local_path import require_local
from jamsface_jax.data.pipeline import batches
from jamsface_jax.data.sources import (
  MixedSource,
  NoiseSource,
  RecordSource,
  Source,
)
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation import CENTRE_ANGLE, Evaluator
from jamsface_jax.fine_tune import FineTune
from jamsface_jax.goodput import Goodput
from jamsface_jax.metric_log import METRICS_FILE, read_metrics
from jamsface_jax.metric_writer import MetricWriter
from jamsface_jax.preemption import Preemption
from jamsface_jax.profiling import Profile
from jamsface_jax.progress import Progress
from jamsface_jax.protocols import Evaluation
from jamsface_jax.state import (
  Parts,
  TrainState,
  create_state,
  make_parts,
  state_shapes,
)
from jamsface_jax.step import make_train_step
from jamsface_jax.step_log import StepLog
from jamsface_jax.wandb_log import WandbLog

PLOTS = "plots"

# What a checkpoint says of its data and a resumed run must have too.
_GUARDED = ("data_fingerprint", "num_classes", "color_order")


def train(
  config: ConfigDict,
  workdir: str,
  *,
  fine_tune_from: str | None = None,
  fine_tune_keep: str = fine_tune.BACKBONE,
) -> int:
  """Trains, evaluates and reports; goes on where an earlier run stopped.

  The result is a function of the settings and the data alone: however often
  the run is stopped and started again, it sees the same examples in the same
  order and ends with the same parameters and metrics.

  Args:
    config: see `config.base_config`.
    workdir: of this run, made if missing.
    fine_tune_from: work directory of another run to begin with parts of.
    fine_tune_keep: these parts, see `fine_tune.plan`.

  Returns:
    Exit code: 0 done; 75 preempted or 130 interrupted, with a checkpoint
    written.

  Raises:
    InputError: a setting or the data is at fault.
    RunError: the loss is not finite, or a checkpoint cannot be written.
  """
  require_local(workdir, "--workdir")
  main_process = jax.process_index() == 0
  goodput = Goodput(workdir, save=main_process)
  config_lib.validate(config)
  mesh = sharding.make_mesh(config.mesh.model)
  micro_batch = config.data.batch_size // config.optimizer.accumulation
  sharding.check_divides(
    "data.batch_size / optimizer.accumulation", micro_batch, mesh
  )
  source = open_source(config)
  total_steps = config_lib.steps_of(config.schedule.length, config, len(source))
  parts = make_parts(config, source.num_classes, len(source))
  head_lib.check_mesh(parts.head, mesh)
  cost = head_cost.estimate(
    *(parts.head, micro_batch, mesh),
    optimizer=parts.optimizers.weights,
    fused_update=config.head.fused_update,
  )
  head_cost.check_fits(cost, parts.head, mesh, head_cost.device_memory())
  evaluator = Evaluator(config, parts, mesh, source.class_sizes)
  check_best(config, evaluator)

  with contextlib.ExitStack() as closing:
    preemption = Preemption()
    closing.callback(preemption.close)
    if main_process:
      closing.enter_context(workdir_lock.hold(workdir))
    beginning = fine_tune.plan(
      workdir, fine_tune_from, fine_tune_keep, save=main_process
    )
    config_lib.check_or_save(config, workdir, save=main_process)
    checkpoints = Checkpoints(
      workdir,
      keep_last=config.checkpoint.keep_last,
      keep_best=config.checkpoint.keep_best,
    )
    closing.callback(checkpoints.close)
    metadata = describe(config, source, beginning)
    state, first, stored = begin(
      *(config, parts, mesh, source.class_sizes),
      *(checkpoints, metadata, beginning),
    )
    goodput.resume(stored.get("goodput", {}))
    writer = None
    if main_process:
      also = WandbLog(config, workdir) if config.wandb.project else None
      writer = MetricWriter(workdir, first, also)
    progress = Progress(total_steps, first, quiet=not main_process)
    progress.note(
      summary.opening(config, source, parts, mesh, cost, first, total_steps)
    )
    if main_process:
      starts.note_start(
        workdir,
        {"first": first, "total_steps": total_steps}
        | summary.facts(config, source, parts, mesh),
      )
    log = StepLog(
      config,
      workdir,
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
    step_fn = make_train_step(config, parts, mesh)
    profile = Profile(config_lib.profiled_steps(config), workdir)
    closing.callback(profile.close)
    evaluations: list[Evaluation] = []

    def is_due(step: int) -> bool:
      return step == total_steps or _every(config.evaluation.every, step)

    def evaluate(step: int) -> list[Evaluation]:
      with goodput.spent("evaluation"):
        evaluations = evaluator.run(state)
        margins = gather_margins(state)
        of_classes = rank_margins(margins, source, parts)
        of_classes |= evaluator.measure_centres(state)
        measured = log.add_evaluations(step, evaluations, of_classes)
        if main_process and step < total_steps:
          goodput.save()
          show(workdir, step, source, margins, parts, evaluations, progress)
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
        plot(workdir, source, margins, evaluations)
    goodput.save()
    progress.note(goodput.sentence())
    if main_process:
      show(workdir, total_steps, source, margins, parts, evaluations, progress)
      progress.close()
      summary.close(workdir, total_steps, evaluations)
  return 0


def open_source(config: ConfigDict) -> Source:
  """Opens the training data that `config.data` names."""
  settings = config.data
  if settings.directory:
    sources = [
      RecordSource(directory, settings.image_size)
      for directory in settings.directory.split(",")
    ]
    return sources[0] if len(sources) == 1 else MixedSource(sources)
  return NoiseSource(
    settings.noise_classes, settings.noise_images, settings.image_size
  )


def describe(
  config: ConfigDict, source: Source, beginning: FineTune | None
) -> dict[str, Any]:
  """What a checkpoint says of the run that wrote it."""
  return {
    "num_classes": source.num_classes,
    "num_images": len(source),
    "data_fingerprint": source.fingerprint,
    "color_order": records.COLOR_ORDER,
    "image_size": config.data.image_size,
    "embedding_size": config.model.embedding_size,
    # As JSON gives it back, where tuples are lists.
    "model": json.loads(config.model.to_json()),
    "fine_tuned_from": beginning and dataclasses.asdict(beginning),
    "versions": versions(),
  }


def begin(
  config: ConfigDict,
  parts: Parts,
  mesh: Mesh,
  class_sizes: np.ndarray,
  checkpoints: Checkpoints,
  metadata: Mapping[str, Any],
  beginning: FineTune | None,
) -> tuple[TrainState, int, dict[str, Any]]:
  """Makes the first state, or restores the newest sound one.

  Returns:
    The state, its number of finished steps, and what its checkpoint says.

  Raises:
    InputError: the checkpoint is of other data or another model.
  """
  step = checkpoints.newest_sound()
  if step is None:
    state = create_state(
      *(config.seed, parts, config.data.image_size, mesh), class_sizes
    )
    if beginning:
      state = fine_tune.begin_with(beginning, state, config, parts, mesh)
    return state, 0, {}
  stored = checkpoints.metadata(step)
  theirs, ours = config_lib.flatten(stored), config_lib.flatten(metadata)
  conflicts = [
    f"{name} {theirs.get(name)!r} and not {value!r}"
    for name, value in ours.items()
    if name in _GUARDED or name.startswith("model.")
    if theirs.get(name) != value
  ]
  if conflicts:
    raise InputError(
      f"checkpoint {step} of this run has {', '.join(conflicts)}: give the same"
      " data and settings or choose another --workdir."
    )
  shapes = state_shapes(parts, config.data.image_size, mesh)
  return checkpoints.restore(step, shapes), step, stored


def lacks_evaluation(writer: MetricWriter | None) -> bool:
  """Whether the metrics of the step resumed from lack those of evaluation.

  All processes get the answer of the one that writes the metrics.
  """
  # A line holds all of an evaluation: one name of it is enough.
  lacks = writer is not None and CENTRE_ANGLE not in writer.last
  return bool(multihost_utils.broadcast_one_to_all(np.bool_(lacks)))


def check_best(config: ConfigDict, evaluator: Evaluator) -> None:
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


def gather_margins(state: TrainState) -> dict[str, np.ndarray]:
  """Both margins of all classes, [C] each, on every process."""
  margins = {
    name: state.params["head"][name]
    for name in (head_lib.ANGULAR, head_lib.COSINE)
  }
  return multihost_utils.process_allgather(margins, tiled=True)


def rank_margins(
  margins: Mapping[str, np.ndarray], source: Source, parts: Parts
) -> dict[str, float]:
  """Rank correlation of learned margins with class size, named as metrics.

  Below 0 where poor classes have the larger margins, as JAMsFace wants.
  """
  return {
    metric: verification.rank_correlation(
      source.class_sizes, margins[name][: source.num_classes]
    )
    for metric, name in _rank_names(parts).items()
  }


def _rank_names(parts: Parts) -> dict[str, str]:
  """The margins that are learned, by the metric of their rank correlation."""
  names = {
    "train/margin_angular_rank": head_lib.ANGULAR,
    "train/margin_cosine_rank": head_lib.COSINE,
  }
  return {
    metric: name
    for metric, name in names.items()
    if parts.head.margin(name).learned
  }


def plot(
  workdir: str,
  source: Source,
  margins: Mapping[str, np.ndarray],
  evaluations: list[Evaluation],
) -> None:
  """Draws what the run came to, as PNG files in `W/plots`.

  Args:
    workdir: has the metrics.
    source: gives the class sizes.
    margins: of all classes, [C].
    evaluations: the last ones.
  """
  # Here, since what draws takes long to import, and a run begins without it.
  from jamsface_jax import pictures

  directory = os.path.join(workdir, PLOTS)
  os.makedirs(directory, exist_ok=True)
  metrics = read_metrics(os.path.join(workdir, METRICS_FILE))
  pictures.plot_training(metrics, os.path.join(directory, "training.png"))
  angular, cosine = (
    margins[name][: source.num_classes]
    for name in (head_lib.ANGULAR, head_lib.COSINE)
  )
  pictures.plot_margins(
    source.class_sizes, angular, cosine, os.path.join(directory, "margins.png")
  )
  results.plot_evaluations(directory, evaluations, others={})


def show(
  workdir: str,
  step: int,
  source: Source,
  margins: Mapping[str, np.ndarray],
  parts: Parts,
  evaluations: list[Evaluation],
  progress: Progress,
) -> None:
  """Writes `W/report.html`, `W/model_card.md` and what they are made of.

  Whatever goes wrong is said and ends nothing: the run matters more.

  Args:
    workdir: of the run.
    step: finished steps.
    source: gives the class sizes.
    margins: of all classes, [C].
    parts: say which margins are learned.
    evaluations: the last ones.
    progress: where to say it.
  """
  learned = {
    kind: margins[name][: source.num_classes]
    for kind, name in (
      ("angular", head_lib.ANGULAR),
      ("cosine", head_lib.COSINE),
    )
    if parts.head.margin(name).learned
  }
  try:
    profile = class_profile.describe(source.class_sizes, learned)
    class_profile.write(
      os.path.join(workdir, class_profile.CLASSES_FILE), profile
    )
    results.write_results(workdir, evaluations, {"step": step})
    report.write([workdir], os.path.join(workdir, report.REPORT_FILE))
    if not model_card.is_edited(os.path.join(workdir, model_card.CARD_FILE)):
      model_card.write(workdir)
  except Exception as error:
    progress.note(
      f"step {step}: {report.REPORT_FILE} was not written"
      f" ({' '.join(str(error).split())}); the run goes on."
    )
