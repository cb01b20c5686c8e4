"""docs/architecture.md lists every file, with what the file says of itself."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("jamsface_jax", "data_prep")


def first_line(path):
  doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
  return doc.split("\n")[0]


def listing():
  """The tables of files, a folder after the other, as the page has them."""
  lines = []
  for package in PACKAGES:
    for init in sorted((ROOT / package).rglob("__init__.py"), key=str):
      folder = init.parent
      files = sorted(folder.glob("*.py"))
      says = first_line(init)
      lines += [f"### {folder.relative_to(ROOT)}/", "", says, ""]
      lines += ["| file | what it is |", "|---|---|"]
      lines += [
        f"| `{file.name}` | {first_line(file)} |"
        for file in files
        if file.name != "__init__.py"
      ]
      lines.append("")
  return "\n".join(lines)


def test_every_file_is_listed():
  page = PAGE.read_text(encoding="utf-8")
  begin, end = "<!-- files -->\n\n", "<!-- end of files -->"
  assert page.split(begin)[1].split(end)[0] == listing() + "\n"


def test_every_station_of_a_walk_is_there():
  """A walk names files and, in them, functions: `folder/file.py: name`."""
  page = PAGE.read_text(encoding="utf-8")
  stations = re.findall(r"`([\w/]+\.py): ([\w.]+)`", page)
  assert len(stations) > 30
  for file, name in stations:
    path = ROOT / "jamsface_jax" / file
    if not path.exists():
      path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
      tree = next(
        node
        for node in ast.walk(tree)
        if getattr(node, "name", None) == part
        or part in [getattr(t, "id", "") for t in getattr(node, "targets", ())]
      )


if __name__ == "__main__":  # Prints what the page must have.
  print(listing())
