"""The loop over steps: train, evaluate, save, stop, finish."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jamsface_jax.data.pipeline import Batch
from jamsface_jax.devices.allocator import give_back
from jamsface_jax.evaluation.evaluator import CENTRE_ANGLE, EvaluationDropped
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.goodput import Goodput
from jamsface_jax.run.progress import StepProgress
from jamsface_jax.run.state import TrainState
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training import summary
from jamsface_jax.training.divergence import check_bounded
from jamsface_jax.training.preemption import Preemption
from jamsface_jax.training.products import (
  Products,
  gather_margins,
  measure_margins,
)
from jamsface_jax.training.profiling import Profile
from jamsface_jax.training.setup import Setup
from jamsface_jax.training.step_log import StepLog


@dataclasses.dataclass(kw_only=True)
class Loop:
  """A run under way.

  Attributes:
    setup: what the run is.
    run: directory of the run.
    goodput: clock of the run.
    preemption: says when to stop.
    checkpoints: those of the run.
    metadata: what each checkpoint says of the run.
    log: takes the metrics of steps and evaluations.
    progress: shows lines to the user.
    products: writes report, card and plots.
    stream: batches of this process from the next step on.
    profile: traces the steps that are to be.
    train_step: one step, compiled; it takes over the state.
    end_pass: what comes after the last step of an epoch; it does too.
    state: the state after the last step.
    evaluations: what the last evaluation found.
  """

  setup: Setup
  run: RunDirectory
  goodput: Goodput
  preemption: Preemption
  checkpoints: Checkpoints
  metadata: dict[str, Any]
  log: StepLog
  progress: StepProgress
  products: Products
  stream: Iterator[Batch]
  profile: Profile
  train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
  end_pass: Callable[[TrainState], TrainState]
  state: TrainState
  evaluations: list[Evaluation] = dataclasses.field(default_factory=list)

  def go_on_from(self, finished: int) -> int:
    """Takes the steps that are left; returns the exit code of the run.

    Args:
      finished: steps done before.

    Raises:
      NotFiniteError: the loss is not finite.
      RunError: a checkpoint cannot be written.
    """
    total_steps = self.setup.total_steps
    # Stopped between a checkpoint and its evaluation: that is done now.
    if finished and self._is_due(finished) and self._lacks_evaluation():
      self._evaluate(finished)
    for step in range(finished + 1, total_steps + 1):
      self._take(step)
      if self.setup.ends_pass(step):
        self.state = self.end_pass(self.state)
      if step == finished + 1:  # Compiled: what follows is worth a checkpoint.
        self.preemption.begin()
      # A machine about to be taken away has time for a checkpoint only.
      stopping = self.preemption.requested(step)
      evaluating = self._is_due(step) and not stopping
      if evaluating or stopping or self._saves_after(step):
        self.log.catch_up()  # A state that is not finite must not be saved.
        check_bounded(self.state, step)
        if evaluating:
          stopping = not self._evaluate(step)
        self._save(step, wait=stopping or step == total_steps)
      if stopping:
        return self._stop(step)
    return self._finish()

  def _take(self, step: int) -> None:
    """Starts one step; what fails in it may be seen at the next."""
    with self.profile.step(step):
      with self.log.waiting():
        batch = next(self.stream)
      if not batch:
        self._skip(step)
        return
      ids = batch.pop("ids")
      self.state, metrics = self.train_step(
        self.state, self.setup.put(batch), self.setup.seed
      )
    self.profile.after(step, metrics)
    self.log.add(step, metrics, ids)  # Looks at the step before: no waiting.
    self.checkpoints.check()

  def _skip(self, step: int) -> None:
    """Counts a step of `data.skip_steps`, which changes nothing else."""
    state = self.state
    self.state = dataclasses.replace(state, step=state.step + 1)
    self.log.skip(step)

  def _is_due(self, step: int) -> bool:
    """Whether the state after this step is to be evaluated."""
    every = self.setup.settings.evaluation.every
    return step == self.setup.total_steps or (every > 0 and step % every == 0)

  def _saves_after(self, step: int) -> bool:
    """Whether the settings want a checkpoint of the state after this step."""
    every = self.setup.settings.checkpoint.every
    return every > 0 and step % every == 0

  def _lacks_evaluation(self) -> bool:
    """Whether the metrics of the step resumed from lack those of evaluation.

    All processes get the answer of the one that writes the metrics.
    """
    # A line holds all of an evaluation: one name of it is enough.
    lacks = CENTRE_ANGLE not in self.log.last_metrics
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(lacks)))

  def _evaluate(self, step: int) -> bool:
    """Judges the state after a step; logs and shows what comes out.

    Returns:
      Whether it was done: a run that is to stop drops it, and the next launch
      makes up for it.
    """
    setup = self.setup
    with self.goodput.spent("evaluation"):
      try:
        self.evaluations = setup.evaluator.run(
          self.state, stopping=lambda: self.preemption.requested(step)
        )
      except EvaluationDropped:
        self.progress.note(
          f"step {step}: the evaluation is dropped, to save in time; it is made"
          " up for when the run goes on."
        )
        return False
      margins = gather_margins(self.state)
      of_classes = measure_margins(
        margins, setup.source.class_sizes, setup.components.head
      )
      of_classes |= setup.evaluator.measure_centres(self.state)
      measured = self.log.add_evaluations(step, self.evaluations, of_classes)
      if step < setup.total_steps:
        self.goodput.save()
        self.products.write_report(step, margins, self.evaluations)
    self.checkpoints.note_metrics(step, measured)
    return True

  def _save(self, step: int, *, wait: bool) -> None:
    """Starts to save a checkpoint, with all that a later launch needs."""
    with self.goodput.spent("checkpoint"):
      # Each checkpoint leaves holes: a run of days must not grow by them.
      give_back()
      now = {"log": self.log.state(), "goodput": self.goodput.now()}
      self.checkpoints.save(step, self.state, self.metadata | now)
      if wait:
        self.checkpoints.wait()

  def _stop(self, step: int) -> int:
    """Ends a launch before the run is done."""
    self.goodput.save()
    self.progress.note(self.goodput.sentence())
    self.progress.note(f"stopped at step {step}: run the same command again.")
    return self.preemption.exit_code

  def _finish(self) -> int:
    """Leaves what the run came to."""
    total_steps = self.setup.total_steps
    if not self.evaluations:  # Finished before: say again what came out.
      self.evaluations = self.setup.evaluator.run(self.state)
    margins = gather_margins(self.state)
    with self.goodput.spent("evaluation"):
      self.products.plot(margins, self.evaluations)
    self.goodput.save()
    self.progress.note(self.goodput.sentence())
    self.products.write_report(total_steps, margins, self.evaluations)
    self.progress.close()
    text = summary.closing(self.run, total_steps, self.evaluations)
    self.run.summary.write_text(text + "\n")
    self.progress.note(text)
    return 0
