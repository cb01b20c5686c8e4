"""Which commands there are, by their names, and which one was meant.

`python -m jamsface_jax.embed`, `python -m jamsface_jax embed` and, where the
package is installed, `jamsface embed` are the same.
"""

import ast
import difflib
import functools
import pathlib
import sys
from collections.abc import Sequence

from jamsface_jax import shell
from jamsface_jax.errors import EXIT_BAD_INPUT, InputError

_FOLDER = pathlib.Path(__file__).parents[1]  # Of both packages.
PACKAGES = ("jamsface_jax", "data_prep")
# Words for what people mean, where the command is called otherwise.
_OTHER_WORDS = {"train": "main", "training": "main", "pods": "compile_check"}


def commands(package: str) -> dict[str, str]:
  """The modules of a package that are commands, and what each does.

  Args:
    package: name of the package; its modules are read, not imported.

  Returns:
    First line of the docstring by name of the module.
  """
  found = {}
  for path in sorted((_FOLDER / package).glob("[a-z]*.py")):
    text = path.read_text(encoding="utf-8")
    if "\n  run_command(" in text:
      doc = ast.get_docstring(ast.parse(text)) or ""
      found[f"{package}.{path.stem}"] = doc.split("\n")[0]
  return found


def find(word: str) -> str:
  """The module that a word of the command line means.

  Args:
    word: such as embed, train, from_folder or from-folder.

  Raises:
    InputError: it is no command; names the one that it is most like.
  """
  names, wanted = _by_name(), word.replace("-", "_")
  if wanted in names:
    return names[wanted]
  raise InputError(f"command line: {word!r} is no command: {_advice(wanted)}.")


def refuse_what_is_no_command(typed: Sequence[str]) -> None:
  """Ends Python, with a sentence, if it is told to run what is no command.

  Otherwise it would say that there is no such module, or run one that does
  nothing.

  Args:
    typed: the command line, with the interpreter.
  """
  place = list(typed).index("-m") if "-m" in typed else len(typed)
  module = next(iter(typed[place + 1 :]), "")
  if module.partition(".")[0] not in PACKAGES or module == "jamsface_jax":
    return
  file = _FOLDER.joinpath(*module.split(".")).with_suffix(".py")
  if file.is_file() and '\nif __name__ == "__main__":' in file.read_text():
    return
  advice = _advice(module.rpartition(".")[2])
  text = f"error: command line: {module!r} is no command: {advice}."
  print(text, file=sys.stderr)
  sys.exit(EXIT_BAD_INPUT)


@functools.cache
def _by_name() -> dict[str, str]:
  """Modules by what follows their package's name, and by other words."""
  names = {
    module.partition(".")[2]: module
    for package in PACKAGES
    for module in commands(package)
  }
  return names | {word: names[name] for word, name in _OTHER_WORDS.items()}


def _advice(word: str) -> str:
  """What to type instead of a word: the command that it is most like."""
  names = _by_name()
  near = difflib.get_close_matches(word, names, n=1)
  all_of_them = f"list that '{shell.name('jamsface_jax')}' prints"
  if not near:
    return f"use one of the {all_of_them}"
  return f"use '{shell.name(names[near[0]])}', or another of the {all_of_them}"
