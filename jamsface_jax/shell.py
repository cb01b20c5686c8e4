"""Commands to type, quoted as a shell wants them."""

import os
import shlex
import shutil
import sys

SCRIPT = "jamsface"  # What setup.cfg installs beside Python.
_WORDS = {"jamsface_jax.main": "train"}  # Where it is not the module's name.


def command(module: str, *words: str) -> str:
  """The command that runs a module of this project, as this process runs.

  With the script if that was typed, otherwise with Python; by its path where
  the shell would not find it, as in an environment that is not activated.

  Args:
    module: such as "jamsface_jax.embed".
    words: flags and arguments, each as the program gets it.

  Returns:
    A line for a shell, which hands over these words whatever is in them.
  """
  script = _script()
  if script:
    program = [_to_type(SCRIPT, script), *name(module).split()[1:]]
  else:
    program = [_to_type("python", sys.executable), "-m", module]
  return shlex.join([*program, *words])


def name(module: str) -> str:
  """What a module is called on a command line, where the shell finds it.

  Args:
    module: such as "jamsface_jax.embed".

  Returns:
    `jamsface embed` if that is how this process was begun, otherwise
    `python -m jamsface_jax.embed`.
  """
  if not _script():
    return f"python -m {module}"
  return f"{SCRIPT} {_WORDS.get(module, module.partition('.')[2])}".rstrip()


def _script() -> str | None:
  """The path of the script that began this process, if one did."""
  typed = sys.orig_argv[1:2]  # After the interpreter of its first line.
  return next((w for w in typed if os.path.basename(w) == SCRIPT), None)


def _to_type(word: str, path: str) -> str:
  """A word, if the shell finds this program by it; otherwise its path."""
  found = shutil.which(word)
  if not path or (
    found
    and os.path.dirname(found) == os.path.dirname(os.path.abspath(path))
    and os.path.realpath(found) == os.path.realpath(path)
  ):
    return word
  within = os.path.relpath(path)
  return path if within.startswith(os.pardir) else within
