"""The error that is the user's to mend, and how a command reports it.

A command that meets bad input says one sentence (what is at fault, what is
wrong with it, the fix) and ends with exit code 2, without a traceback.
"""

import errno
import gc
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Callable

from jamsface_jax import interruption
from jamsface_jax.version import __version__

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_NOT_FINITE = 3
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141  # What a shell says of SIGPIPE.

_DEBUG, _LOG_LEVEL = "--debug", "--log_level="
_MAX_PIXELS = "--max_pixels="
MAX_PIXELS_VARIABLE = "JAMSFACE_MAX_PIXELS"  # For the workers of a command too.
_LEVELS = ("debug", "info", "warning", "error", "critical")

# What is heard of the rest of a checkpoint of which a part can't be written.
_LOOP_IS_CLOSED = "Event loop is closed"
_NOT_AWAITED = "coroutine '.*serialize.*' was never awaited"
_print_unraisable = sys.unraisablehook

# Objects made between two looks for cycles. JAX makes millions as it traces,
# and they stay: at Python's 700, looking takes a tenth of the time of a start.
GARBAGE_THRESHOLDS = (50_000, 20, 50)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
  """A setting, a file or a directory given by the user is at fault.

  Not a ValueError: libraries that read flags catch those and wrap the message.

  The message is one sentence that names the setting or file, says what is wrong
  with it and how to mend it.
  """


class RunError(RuntimeError):
  """A run that had to stop, with a message that says all: exit code 1.

  Attributes:
    exit_code: of the command.
  """

  exit_code = EXIT_FAILURE


class NotFiniteError(RunError):
  """A run that has diverged, and would again at another start.

  Args:
    text: what was seen.
    step: the step that cannot be gone on from.
  """

  exit_code = EXIT_NOT_FINITE

  def __init__(self, text: str, step: int) -> None:
    super().__init__(text)
    self.step = step


def one_line(error: object, most: int | None = 200) -> str:
  """The text of an error of a library, to be put into a sentence.

  Args:
    error: the exception, or its text.
    most: characters that are kept; None: all.
  """
  return " ".join(str(error).split())[:most]


def run_command(command: Callable[[], int | None]) -> None:
  """Runs a command and exits with its code.

  `InputError` becomes one line on stderr and exit code 2, `RunError` one line
  and its exit code, a full disk one line and exit code 1; Ctrl-C exit code 130,
  and 141 if nobody reads on what is printed, as in `COMMAND | head`. Every
  other exception is a defect and keeps its traceback.

  Flags of every command are read here: --debug shows the traceback of an error
  too; --log_level lets the libraries speak; --max_pixels raises the bound on
  the images that are decoded, see `data.decoding`; --version says it, and no
  more is done.
  """
  debug = False
  try:
    sys.unraisablehook = _report_unraisable
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    interruption.begin()
    debug, level = _take_flags(sys.argv)
    if "--version" in sys.argv:
      print(f"jamsface_jax {__version__}")
      sys.exit(0)
    logging.basicConfig(level=level or logging.WARNING)
    # Orbax warns of what is meant, and logs with a traceback, from its threads,
    # the errors that it raises too; matplotlib, of fonts that it can spare.
    for name in ("absl", "asyncio", "matplotlib"):
      logging.getLogger(name).setLevel(level or logging.CRITICAL)
    warnings.filterwarnings("ignore", _NOT_AWAITED, RuntimeWarning)
    if level:  # JAX has a level of its own.
      logging.getLogger("jax").setLevel(level)
    code = command() or 0
    sys.stdout.flush()
  except InputError as error:
    code = _say(f"error: {error}", EXIT_BAD_INPUT, debug)
  except RunError as error:
    code = _say(f"error: {error}", error.exit_code, debug)
  except OSError as error:
    if error.errno in DISK_FULL:
      text = f"error: {error}: make room and run it again."
      code = _say(text, EXIT_FAILURE, debug)
    elif error.errno == errno.EPIPE and _nobody_reads():
      # Python flushes what is left when it ends, and would complain again.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      code = EXIT_NO_READER
    else:
      raise
  except KeyboardInterrupt:
    interruption.leave(EXIT_INTERRUPTED)
    code = EXIT_INTERRUPTED
  # Threads may have to end yet, and people press it again.
  interruption.finish()
  sys.exit(code)


def _nobody_reads() -> bool:
  """Whether it was standard output whose reader has gone."""
  poll = select.poll()
  poll.register(sys.stdout, select.POLLOUT)
  return any(
    event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)
  )


def _say(text: str, code: int, debug: bool) -> int:
  """Prints what ended a command; returns its exit code."""
  if debug:
    traceback.print_exc()
  print(text, file=sys.stderr)
  return code


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
  """Prints what can't be raised, as ever; not what Orbax leaves behind.

  When an array of a checkpoint can't be written, Orbax closes its event loop
  and raises. TensorStore's threads write the other arrays all the same, and
  each reports that there is nobody left to tell: hundreds of tracebacks, some
  of them in the midst of the line that says what is wrong.
  """
  error = unraisable.exc_value
  if not (isinstance(error, RuntimeError) and str(error) == _LOOP_IS_CLOSED):
    _print_unraisable(unraisable)


def _take_flags(argv: list[str]) -> tuple[bool, int | None]:
  """Takes the flags of every command out of a command line.

  Returns:
    Whether to show tracebacks, and the level from which on libraries may log,
    None if not given.

  Raises:
    InputError: there is no such level.
  """
  debug = _DEBUG in argv
  level = None
  for one in argv:
    if one.startswith(_LOG_LEVEL):
      level = one.removeprefix(_LOG_LEVEL)
    if one.startswith(_MAX_PIXELS):
      _set_max_pixels(one.removeprefix(_MAX_PIXELS))
  argv[:] = [
    one
    for one in argv
    if one != _DEBUG and not one.startswith((_LOG_LEVEL, _MAX_PIXELS))
  ]
  if level is None:
    return debug, None
  if level not in _LEVELS:
    raise InputError(
      f"{_LOG_LEVEL}{level} is unknown: use one of {', '.join(_LEVELS)}."
    )
  return debug, getattr(logging, level.upper())


def _set_max_pixels(text: str) -> None:
  """Notes how many pixels an image may have, for what decodes.

  Raises:
    InputError: it is no such number.
  """
  if not text.isascii() or not text.isdigit() or int(text) == 0:
    raise InputError(
      f"{_MAX_PIXELS}{text} is not a number of pixels: write"
      f" {_MAX_PIXELS}200000000."
    )
  os.environ[MAX_PIXELS_VARIABLE] = text
