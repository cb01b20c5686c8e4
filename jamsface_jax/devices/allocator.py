"""How much memory the C library keeps for threads that have no use for it."""

import ctypes
import os

_M_ARENA_MAX = -8  # Of glibc's malloc.h.


def bound_arenas() -> None:
  """Has glibc keep one arena of memory for each core, where it says nothing.

  It makes eight a core, and what a thread has freed stays in its arena: of a
  run with a hundred threads, which XLA, Grain and TensorStore start, resident
  memory grew for hours. To be called before there are threads. Does nothing
  where another allocator is at work, or the user has chosen
  (`MALLOC_ARENA_MAX`, `GLIBC_TUNABLES`).
  """
  if {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"} & os.environ.keys():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # No glibc.
  mallopt(_M_ARENA_MAX, os.cpu_count() or 1)
