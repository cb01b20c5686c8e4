"""Lists the commands.

python -m jamsface_jax
"""

import ast
import pathlib

import data_prep
import jamsface_jax

_NEXT = """
Each says more with --help. To begin, without any data:

  python -m jamsface_jax.main --config=configs/demo.py:tiny --workdir=build/tiny
"""


def commands(package) -> dict[str, str]:
  """The modules of a package that are commands, and what each does.

  Args:
    package: the imported package; its modules are read, not imported.

  Returns:
    First line of the docstring by name of the module.
  """
  found = {}
  for path in sorted(pathlib.Path(package.__file__).parent.glob("[a-z]*.py")):
    text = path.read_text(encoding="utf-8")
    if "\n  run_command(" in text:
      doc = ast.get_docstring(ast.parse(text))
      found[f"{package.__name__}.{path.stem}"] = doc.split("\n")[0]
  return found


def main() -> None:
  """Prints a line for each command."""
  for title, package in (
    ("Training and what comes after it", jamsface_jax),
    ("Data sets", data_prep),
  ):
    print(f"{title}:")
    for name, does in commands(package).items():
      print(f"  python -m {name:30} {does}")
  print(_NEXT, end="")


if __name__ == "__main__":
  main()
