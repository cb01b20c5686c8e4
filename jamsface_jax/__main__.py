"""Lists the commands.

python -m jamsface_jax
"""

import ast
import importlib.resources
import re
import sys

from jamsface_jax.errors import InputError, run_command

_NEXT = """
Each says more with --help; --debug shows where an error came from, and
--log_level=info lets the libraries speak. To begin, without any data:

  python -m jamsface_jax.main --config=configs/demo.py:tiny --workdir=build/tiny
"""


def commands(package: str) -> dict[str, str]:
  """The modules of a package that are commands, and what each does.

  Args:
    package: name of the package; its modules are read, not imported.

  Returns:
    First line of the docstring by name of the module.
  """
  found = {}
  directory = importlib.resources.files(package)
  for path in sorted(directory.iterdir(), key=lambda path: path.name):
    if not re.fullmatch(r"[a-z]\w*\.py", path.name):
      continue
    text = path.read_text(encoding="utf-8")
    if "\n  run_command(" in text:
      doc = ast.get_docstring(ast.parse(text)) or ""
      name = path.name.removesuffix(".py")
      found[f"{package}.{name}"] = doc.split("\n")[0]
  return found


def main() -> int:
  """Prints a line for each command.

  Raises:
    InputError: there is a word after it that is no help flag.
  """
  for word in sys.argv[1:]:
    if word in ("-h", "--help"):
      break
    raise InputError(
      f"command line: {word!r} is unknown: type a command of the list that"
      " 'python -m jamsface_jax' prints."
    )
  for title, package in (
    ("Training and what comes after it", "jamsface_jax"),
    ("Data sets", "data_prep"),
  ):
    print(f"{title}:")
    for name, does in commands(package).items():
      print(f"  python -m {name:30} {does}")
  print(_NEXT, end="")
  return 0


if __name__ == "__main__":
  run_command(main)
