"""Ctrl-C, before a command has begun, while it runs, and when it is done.

Python raises KeyboardInterrupt between any two of its own instructions. While
modules are imported that ends in tracebacks of other errors, in crashes of
libraries' C++ and in locks that are never released; and raised in a callback of
the garbage collector it is dropped, and the command goes on.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType

_CALLBACK_SECONDS = 0.05  # Longer than a callback takes to end.
_hook_before = sys.unraisablehook  # Of all that is no interruption.


def end_at_once() -> None:
  """Lets Ctrl-C end this process without a word: there is nothing to tidy up.

  It stays ignored where it is ignored, as shells have it in the background.
  """
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin() -> None:
  """Lets Ctrl-C raise KeyboardInterrupt; does nothing but after end_at_once."""
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    global _hook_before
    _hook_before, sys.unraisablehook = sys.unraisablehook, _raise_later
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finish() -> None:
  """Lets Ctrl-C end the process at once again; does nothing without begin."""
  if sys.unraisablehook is _raise_later:
    end_at_once()


def leave(code: int) -> None:
  """Ends the process after KeyboardInterrupt; does nothing without begin.

  All is tidied up. What else Python does at its end may crash: threads of C++
  that the interrupted work has left still run.

  Args:
    code: the exit code.
  """
  if sys.unraisablehook is _raise_later:
    with contextlib.suppress(OSError):  # Nobody reads, or the disk is full.
      sys.stdout.flush()
    os._exit(code)


def _raise_later(dropped: "sys.UnraisableHookArgs") -> None:
  if issubclass(dropped.exc_type, KeyboardInterrupt):
    # From a thread, after this: raised within, it would be dropped again.
    main = threading.get_ident()  # No other is interrupted.
    again = threading.Timer(
      _CALLBACK_SECONDS, lambda: signal.pthread_kill(main, signal.SIGINT)
    )
    again.daemon = True
    again.start()
  else:
    _hook_before(dropped)


@contextlib.contextmanager
def postponed() -> Generator[None, None, None]:
  """A part of a command that Ctrl-C comes after, such as an import.

  Libraries that it interrupts there crash, or complain from their threads. A
  second Ctrl-C ends the process at once. Threads other than the main one, which
  alone is interrupted, are left as they are.
  """
  in_main = threading.current_thread() is threading.main_thread()
  if not in_main or signal.getsignal(signal.SIGINT) is None:  # C handles it.
    yield
    return
  heard = []

  def hear(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    heard.append(number)

  before = signal.signal(signal.SIGINT, hear)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
    if heard:
      signal.raise_signal(signal.SIGINT)
