"""The wish to stop: a machine that is taken away, or Ctrl-C."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from jamsface_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED


class Preemption:
  """Whether the run is to stop after this step, with a checkpoint.

  SIGTERM says that the machine is about to be taken away: exit code 75, run the
  same command again. Ctrl-C is a person's wish: exit code 130, so that a
  scheduler which repeats preempted runs does not repeat this one. A second
  Ctrl-C ends the process at once, which does no harm either.
  """

  def __init__(self) -> None:
    self.exit_code: int = EXIT_PREEMPTED
    self._requested = False
    self._distributed = jax.process_count() > 1
    # With several processes JAX's own service listens to SIGTERM, and agrees
    # with the others on the step; a second handler would replace it.
    if not self._distributed:
      signal.signal(signal.SIGTERM, self._note)
    signal.signal(signal.SIGINT, self._interrupt)

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._requested = True

  def _interrupt(self, number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    self.exit_code = EXIT_INTERRUPTED
    # Not print: it may be the very thing that was interrupted.
    os.write(2, b"\nstopping after this step; Ctrl-C again stops at once.\n")
    if self._distributed:
      signal.raise_signal(signal.SIGTERM)
    else:
      self._requested = True

  def requested(self, step: int) -> bool:
    """Asked after each step; all processes get the same answer.

    Args:
      step: finished steps.
    """
    if self._distributed:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._requested

  def close(self) -> None:
    """Gives both signals back to Python."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not self._distributed:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
