"""What the method brings with it, and what it may import."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jamsface_jax.head

FILES = sorted(pathlib.Path(jamsface_jax.head.__file__).parent.glob("*.py"))


def brought_by(imports):
  """Top-level names of the modules that an import statement loads."""
  code = f"{imports}; import sys; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  return {name.split(".")[0] for name in done.stdout.split()}


def test_it_brings_what_its_libraries_bring_and_no_more():
  # jaxtyping loads its types, and what prints them, when they are asked for.
  libraries = brought_by("import jax, optax; from jaxtyping import PyTree")
  more = brought_by("import jamsface_jax.head") - libraries
  assert more - sys.stdlib_module_names == {"jamsface_jax"}
  # Of these absl alone comes along, and it is optax that imports it.
  others = {"absl", "ml_collections", "tensorboardX", "orbax", "flax", "grain"}
  assert libraries & others == {"absl"}
  assert "absl" not in brought_by("import jax, jaxtyping")


def test_it_brings_of_this_package_what_it_stands_on():
  code = "import sys, jamsface_jax.head; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  names = [name.split(".") for name in done.stdout.split()]
  ours = {name[1] for name in names if name[0] == "jamsface_jax" and name[1:]}
  assert ours == {"devices", "errors", "head", "interruption", "version"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_files_import_these_packages_alone(path):
  packages = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      packages |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      packages.add(str(node.module).split(".")[0])
  packages -= sys.stdlib_module_names
  assert packages <= {"jamsface_jax", "jax", "jaxtyping", "numpy", "optax"}


def test_its_face_has_what_it_names():
  for name in jamsface_jax.head.__all__:
    assert hasattr(jamsface_jax.head, name), name
