"""The notebook of the documentation, its cells run with small numbers."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "folder_to_roc.ipynb"
SMALL = {
  "identities": 12,
  "images": 60,
  "steps": 3,
  "batch_size": 16,
  "size": 32,
}


def cells():
  return [
    cell
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
  ]


def test_no_outputs_are_committed():
  assert all(
    not cell["outputs"] and cell["execution_count"] is None for cell in cells()
  )


@pytest.mark.slow
def test_notebook_goes_from_a_folder_to_a_roc(tmp_path):
  first, *rest = cells()
  assert first["metadata"]["tags"] == ["parameters"]
  parameters = ast.parse("".join(first["source"])).body
  assert {*SMALL, "folder"} == {line.targets[0].id for line in parameters}
  code = [
    "".join(first["source"]),
    *(f"{name} = {value}" for name, value in SMALL.items()),
    f"folder = {str(tmp_path)!r}",
    *("".join(cell["source"]) for cell in rest),
    "print(embeddings.shape, len(scores), curve.auc())",
  ]
  done = subprocess.run(
    [sys.executable, "-W", "error::DeprecationWarning", "-c", "\n".join(code)],
    cwd=ROOT,
    env=os.environ | {"MPLBACKEND": "agg", "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "(600, 128) 600 0." in done.stdout
  for name in ("roc.png", "run/report.html", "folders/train"):
    assert (tmp_path / name).exists()
