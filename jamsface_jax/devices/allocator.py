"""How much memory the C library keeps for threads that have no use for it."""

import ctypes
import os
from collections.abc import Callable

_M_ARENA_MAX = -8  # Of glibc's malloc.h.


def bound_arenas() -> None:
  """Has glibc keep one arena of memory for each core, where it says nothing.

  It makes eight a core, and what a thread has freed stays in its arena: of a
  run with a hundred threads, which XLA, Grain and TensorStore start, resident
  memory grew for hours. To be called before there are threads. Does nothing
  where another allocator is at work, or the user has chosen
  (`MALLOC_ARENA_MAX`, arenas in `GLIBC_TUNABLES`).
  """
  tunables = os.environ.get("GLIBC_TUNABLES", "")
  if "MALLOC_ARENA_MAX" in os.environ or "malloc.arena_" in tunables:
    return
  if mallopt := _of_glibc("mallopt"):
    mallopt(_M_ARENA_MAX, os.cpu_count() or 1)


def give_back() -> None:
  """Has glibc return to the system the pages that nothing is in.

  By itself it returns what lies at the end of an arena alone. Does nothing
  where another allocator is at work.
  """
  if malloc_trim := _of_glibc("malloc_trim"):
    malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
  """A function that other C libraries lack, if this one has it."""
  try:
    return getattr(ctypes.CDLL(None), name)
  except (AttributeError, OSError, TypeError):
    return None
