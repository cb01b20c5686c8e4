"""Trains in a process that ends with the one that started it.

  python -m jamsface_jax.ablation.child PARENT FLAG ...

PARENT is the process number of who starts it; the flags are those of
`jamsface_jax.main`. On Linux the system sends SIGTERM when the parent dies, of
whatever: the run writes a checkpoint and ends.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Of prctl(2).
_ENDED = 75  # As if it had been told just now.


def main() -> None:
  """Binds this process to its parent, then trains."""
  parent = int(sys.argv.pop(1))
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != parent:  # It died before.
    sys.exit(_ENDED)
  runpy.run_module("jamsface_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
