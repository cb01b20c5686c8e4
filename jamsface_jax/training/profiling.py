"""A trace of some steps, for TensorBoard's profiler, XProf and Perfetto."""

import contextlib
from collections.abc import Generator
from typing import Any

import jax

from jamsface_jax.storage.run_directory import RunDirectory


class Profile:
  """Traces the wanted steps of a run, each process its own devices.

  The trace goes to `W/tensorboard/plugins/profile/TIME/`: `*.xplane.pb`, which
  TensorBoard's profile plugin reads, and `*.trace.json.gz`, which
  https://ui.perfetto.dev opens.

  Args:
    steps: numbers of the steps to trace; empty: none.
    run: directory of the run.
  """

  def __init__(self, steps: range, run: RunDirectory):
    self._steps = steps
    self._run = run
    self._running = False

  @contextlib.contextmanager
  def step(self, step: int) -> Generator[None, None, None]:
    """A context for the work of one step, which viewers then know by number.

    Starts the trace if this step is the first of those to come.
    """
    if step in self._steps and not self._running:
      jax.profiler.start_trace(self._run.new_traces())
      self._running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def after(self, step: int, results: Any) -> None:
    """Ends the trace after the last of its steps, when that has been done.

    Args:
      step: the step that has been started.
      results: arrays that are there when it has been done.
    """
    if self._running and step + 1 not in self._steps:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Ends a trace that a stop of the run has cut short."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
