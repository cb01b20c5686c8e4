"""The notice that a machine is about to be taken away."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
  """Whether the machine is to be taken away (SIGTERM)."""

  def __init__(self):
    self._requested = False
    self._distributed = jax.process_count() > 1
    # With several processes JAX's own service listens, and agrees with the
    # others on the step; a second handler would replace it.
    if not self._distributed:
      signal.signal(signal.SIGTERM, self._note)

  def _note(self, *_) -> None:
    self._requested = True

  def requested(self, step: int) -> bool:
    """Asked after each step; all processes get the same answer."""
    if self._distributed:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._requested
