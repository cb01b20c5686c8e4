"""The error that is the user's to mend, and how a command reports it.

A command that meets bad input says one sentence (what is at fault, what is
wrong with it, the fix) and ends with exit code 2, without a traceback.
"""

import errno
import logging
import sys
from collections.abc import Callable

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
  """A setting, a file or a directory given by the user is at fault.

  Not a ValueError: libraries that read flags catch those and wrap the message.

  The message is one sentence that names the setting or file, says what is wrong
  with it and how to mend it.
  """


class RunError(RuntimeError):
  """A run that had to stop, with a message that says all: exit code 1."""


def run_command(command: Callable[[], int | None]) -> None:
  """Runs a command and exits with its code.

  `InputError` becomes one line on stderr and exit code 2, `RunError` one line
  and exit code 1, as does a full disk; Ctrl-C exit code 130. Every other
  exception is a defect and keeps its traceback.
  """
  # Orbax warns of what is meant, and logs with a traceback, from its threads,
  # the errors that it raises too.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  try:
    code = command() or 0
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    code = EXIT_BAD_INPUT
  except RunError as error:
    print(f"error: {error}", file=sys.stderr)
    code = EXIT_FAILURE
  except OSError as error:
    if error.errno not in _DISK_FULL:
      raise
    print(f"error: {error}: make room and run it again.", file=sys.stderr)
    code = EXIT_FAILURE
  except KeyboardInterrupt:
    code = EXIT_INTERRUPTED
  sys.stdout.flush()
  sys.exit(code)
