"""The processes in which the runs of a comparison are trained."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


class Children:
  """Starts runs, and tells all of them to stop."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._living: set[subprocess.Popen[str]] = set()
    self._stopped = False

  def run(self, flags: Sequence[str], cores: Sequence[int]) -> tuple[int, str]:
    """Trains on some cores; returns exit code and what was said on stderr.

    Args:
      flags: those of `jamsface_jax.main`.
      cores: numbers of the cores.

    Raises:
      KeyboardInterrupt: no more are to be started.
    """
    module = [sys.executable, "-m", "jamsface_jax.ablation.child"]
    with self._lock:
      if self._stopped:
        raise KeyboardInterrupt
      child = subprocess.Popen(
        [*module, str(os.getpid()), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
      )
      self._living.add(child)
    if hasattr(os, "sched_setaffinity"):  # Before it has made its threads.
      with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(child.pid, cores)
    _, errors = child.communicate()
    with self._lock:
      self._living.discard(child)
    return child.returncode, errors

  def stop(self) -> None:
    """Sends SIGTERM to all, and starts no more."""
    with self._lock:
      self._stopped = True
      for child in self._living:
        child.send_signal(signal.SIGTERM)
