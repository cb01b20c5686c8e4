"""What the system says by SIGTERM and SIGHUP: this process must go."""

import contextlib
import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Generator
from types import FrameType

from jamsface_jax.errors import EXIT_PREEMPTED

# The machine is taken away; the terminal or the connection is gone.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Notices:
  """Listens to SIGTERM and SIGHUP, in a thread of its own.

  At first a notice ends the process at once, with exit code 75: there is
  nothing to save. After `hold` it is noted, for who saves first. A thread
  listens because a handler of Python's would wait until the compiler, or a
  library in the middle of its work, comes back to Python.

  SIGHUP is left alone where it is ignored, as under `nohup`.

  Attributes:
    given: whether there was a notice.
  """

  def __init__(self) -> None:
    self.given = False
    self._held = False
    self._pass_on: Callable[[], None] | None = None
    self._leave: Callable[[str, int], object] = _leave_alone
    self._before = {
      number: signal.getsignal(number)
      for number in _SIGNALS
      if signal.getsignal(number) != signal.SIG_IGN
    }
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    for number in self._before:
      signal.signal(number, _do_nothing)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def leave_by(self, leave: Callable[[str, int], object]) -> None:
    """Chooses what ends the process, given a sentence and an exit code."""
    self._leave = leave

  def hold(self, pass_on: Callable[[], None] | None = None) -> None:
    """From now on a notice is noted and ends nothing.

    Args:
      pass_on: called at a notice, if somebody else is to hear of it.
    """
    self._pass_on = pass_on
    self._held = True

  def _listen(self) -> None:
    while received := os.read(self._reader, 1):
      number = received[0]
      if number not in self._before:
        continue  # Another signal, or the end of listening.
      self.given = True
      if number == signal.SIGHUP:
        _let_go_of_terminal()
      if not self._held:
        name = signal.Signals(number).name
        self._leave(
          f"stopped by {name}, with nothing to save: run the same command"
          " again.",
          EXIT_PREEMPTED,
        )
      elif self._pass_on:
        self._pass_on()

  def close(self) -> None:
    """Gives the signals back."""
    for number, handler in self._before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._wakeup)
    os.close(self._writer)
    self._thread.join()
    os.close(self._reader)


@contextlib.contextmanager
def listening() -> Generator[Notices]:
  """A context in which notices are heard."""
  notices = Notices()
  try:
    yield notices
  finally:
    notices.close()


def _do_nothing(number: int, frame: FrameType | None) -> None:
  """A handler, so that Python writes the signal to the pipe."""


def _leave_alone(text: str, code: int) -> None:
  """Ends this process, whatever its other threads do."""
  with contextlib.suppress(OSError):
    print(text, file=sys.stderr, flush=True)
  os._exit(code)


def _let_go_of_terminal() -> None:
  """Lets what is printed go nowhere, where the terminal is gone.

  Else the next line that is printed, or the bar, would be an error.
  """
  for stream in (1, 2):
    with contextlib.suppress(OSError):
      if not _is_gone(stream):
        continue
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, stream)
      os.close(nowhere)


def _is_gone(stream: int) -> bool:
  """Whether a stream was a terminal that has been hung up."""
  try:
    termios.tcgetattr(stream)
  except termios.error as error:
    return error.args[0] == errno.EIO  # What is none says ENOTTY.
  return False
