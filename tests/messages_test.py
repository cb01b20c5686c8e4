"""Every sentence that a user's mistake can bring up, in one table.

What raises it is tested beside what it is about; here is how all of them read.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ERRORS = ("InputError", "RunError", "NotFiniteError")
# Passes on what a library says of a flag or a recipe, which begins a sentence,
# or a sentence of the table.
PASSED_ON = {"command line: {}", "recipe {}: {}"}


def template(node):
  """A message with {} for what is filled in."""
  if isinstance(node, ast.Constant):
    return str(node.value)
  if isinstance(node, ast.JoinedStr):
    return "".join(template(part) for part in node.values)
  if isinstance(node, ast.BinOp):
    return template(node.left) + template(node.right)
  return "{}"


def messages():
  for package in ("jamsface_jax", "data_prep"):
    for path in sorted((ROOT / package).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
          isinstance(node, ast.Call)
          and getattr(node.func, "id", "") in ERRORS
          and node.args
        ):
          place = f"{path.relative_to(ROOT)}:{node.lineno}"
          yield pytest.param(template(node.args[0]), id=place)


TABLE = list(messages())


def test_the_table_is_long():
  assert len(TABLE) > 300


@pytest.mark.parametrize("text", TABLE)
def test_a_message_is_one_sentence_with_its_fix(text):
  if text in PASSED_ON:
    return
  assert "\n" not in text
  assert text.endswith("."), text
  assert ". " not in text.replace("... ", ""), text
  # What is at fault comes first: a file, a setting, a flag, by its own name.
  assert not text[:1].isupper(), text
  # What to do comes after a colon or a semicolon, or is what "must" be.
  assert any(sign in text for sign in (": ", "; ", " must ")), text
