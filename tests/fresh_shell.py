"""Commands as somebody types them who has just opened a shell.

Nothing of the environment that the tests run in is there: no variable, no
interpreter on the path but the system's. docs_test types README's so, in a
clone with its `.venv`; packaging_test does it outside, where the wheel is
installed.
"""

import shlex
import subprocess

ACTIVATE = ". .venv/bin/activate"


def type_in(line, folder, home):
  """Types a command into a shell of its own.

  Args:
    line: the command, words quoted where need be.
    folder: where it is typed; has a `.venv`.
    home: the home directory of who types.

  Returns:
    What became of it, a `subprocess.CompletedProcess` with text.
  """
  return subprocess.run(
    ["sh", "-c", f"{ACTIVATE} && {shlex.join(shlex.split(line))}"],
    cwd=folder,
    env={"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=300,
  )
