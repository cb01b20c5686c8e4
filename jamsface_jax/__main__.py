"""Lists the commands.

python -m jamsface_jax
"""

import ast
import importlib.util
import pathlib

_NEXT = """
Each says more with --help; --debug shows where an error came from, and
--log_level=info lets the libraries speak. To begin, without any data:

  python -m jamsface_jax.main --config=configs/demo.py:tiny --workdir=build/tiny
"""


def commands(package: str) -> dict[str, str]:
  """The modules of a package that are commands, and what each does.

  Args:
    package: its name; its modules are read, not imported.

  Returns:
    First line of the docstring by name of the module.
  """
  found = {}
  (directory,) = importlib.util.find_spec(package).submodule_search_locations
  for path in sorted(pathlib.Path(directory).glob("[a-z]*.py")):
    text = path.read_text(encoding="utf-8")
    if "\n  run_command(" in text:
      doc = ast.get_docstring(ast.parse(text))
      found[f"{package}.{path.stem}"] = doc.split("\n")[0]
  return found


def main() -> None:
  """Prints a line for each command."""
  for title, package in (
    ("Training and what comes after it", "jamsface_jax"),
    ("Data sets", "data_prep"),
  ):
    print(f"{title}:")
    for name, does in commands(package).items():
      print(f"  python -m {name:30} {does}")
  print(_NEXT, end="")


if __name__ == "__main__":
  main()
