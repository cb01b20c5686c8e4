"""Lists the commands, or runs the one that is named.

python -m jamsface_jax
"""

import runpy
import sys

from jamsface_jax import interruption, shell
from jamsface_jax.commands import PACKAGES, commands, find
from jamsface_jax.errors import InputError, run_command

_TITLES = ("Training and what comes after it", "Data sets")
_NEXT = """
Each says more with --help; --debug shows where an error came from, --log_level=
info lets the libraries speak, --version says which this is. To begin, without
any data:

  {} --config=configs/demo.py:tiny --workdir=build/tiny
"""


def main() -> int:
  """Prints a line for each command.

  Raises:
    InputError: there is a word after it that is no command.
  """
  for word in sys.argv[1:]:
    if word in ("-h", "--help"):
      break
    find(word)
  for title, package in zip(_TITLES, PACKAGES, strict=True):
    print(f"{title}:")
    for name, does in commands(package).items():
      print(f"  {shell.name(name):39} {does}")
  print(_NEXT.format(shell.name("jamsface_jax.main")), end="")
  return 0


def run() -> None:
  """Runs the command that the first word names, with the words after it.

  As Python does with -m: the module is `__main__`, and its name stands in
  `sys.argv`.
  """
  interruption.end_at_once()
  if sys.argv[1:] and not sys.argv[1].startswith("-"):
    try:
      module = find(sys.argv[1])
    except InputError:
      pass  # Said by `main`.
    else:
      del sys.argv[1]
      runpy.run_module(module, run_name="__main__", alter_sys=True)
      return
  run_command(main)


if __name__ == "__main__":
  run()
