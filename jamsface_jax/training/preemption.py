"""The wish to stop: a machine that is taken away, or Ctrl-C."""

import os
import signal
from types import FrameType

import jax
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from jamsface_jax.devices.notices import Notices
from jamsface_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED


class Preemption:
  """Whether the run is to stop, with a checkpoint.

  SIGTERM says that the machine is about to be taken away, SIGHUP that the
  terminal or the connection is gone: exit code 75, run the same command again.
  Ctrl-C is a person's wish: exit code 130, so that a scheduler which repeats
  preempted runs does not repeat this one. A second Ctrl-C ends the process at
  once, which does no harm either.

  Until `begin` there is nothing to save, and all of them end the process.

  Args:
    heard: tells of SIGTERM and SIGHUP.
  """

  def __init__(self, heard: Notices) -> None:
    self.exit_code: int = EXIT_PREEMPTED
    self._heard = heard
    self._begun = False
    self._agreed = False
    self._asked = 0
    self._interrupted = False
    self._distributed = jax.process_count() > 1

  def begin(self) -> None:
    """From now on there is something to save before the end."""
    if self._distributed:
      # JAX's own service agrees with the other processes on when to stop. It
      # takes SIGTERM over.
      self._heard.hold(pass_on=_tell_jax)
      jax.config.update("jax_enable_preemption_service", True)
      if jax_distributed.global_state.preemption_sync_manager is None:
        jax_distributed.global_state.initialize_preemption_sync_manager()
    else:
      self._heard.hold()
    signal.signal(signal.SIGINT, self._interrupt)
    self._begun = True

  def _interrupt(self, number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    self.exit_code = EXIT_INTERRUPTED
    # Not print: it may be the very thing that was interrupted.
    os.write(2, b"\nstopping after this step; Ctrl-C again stops at once.\n")
    self._interrupted = True
    if self._distributed:
      _tell_jax()

  def requested(self, step: int) -> bool:
    """Whether to stop now; all processes get the same answer.

    All must ask equally often.

    Args:
      step: finished steps.
    """
    if not self._begun:
      return False
    if not self._distributed:
      return self._heard.given or self._interrupted
    if not self._agreed:
      # The processes stop at the same question: JAX wants a number that grows
      # by one.
      self._asked += 1
      self._agreed = multihost_utils.reached_preemption_sync_point(self._asked)
    return self._agreed

  def close(self) -> None:
    """Gives Ctrl-C back to Python."""
    if self._begun:
      signal.signal(signal.SIGINT, signal.default_int_handler)


def _tell_jax() -> None:
  """Lets JAX's service know, which listens to SIGTERM."""
  os.kill(os.getpid(), signal.SIGTERM)
