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


# Runs as Jupyter does when it opens the file: a kernel in the file's folder.
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
first = next(c for c in notebook.cells if c.cell_type == "code")
first.source += "\\n" + sys.argv[2]
last = "print(embeddings.shape, len(scores), curve.auc())"
notebook.cells.append(nbformat.v4.new_code_cell(last))
place = {"metadata": {"path": sys.argv[3]}}
nbclient.NotebookClient(notebook, timeout=900, resources=place).execute()
print(notebook.cells[-1].outputs[0].text)
"""


@pytest.mark.slow
def test_notebook_goes_from_a_folder_to_a_roc(tmp_path):
  first = cells()[0]
  assert first["metadata"]["tags"] == ["parameters"]
  parameters = ast.parse("".join(first["source"])).body
  assert {*SMALL, "folder"} == {line.targets[0].id for line in parameters}
  changes = [f"{name} = {value!r}" for name, value in SMALL.items()]
  changes.append(f"folder = {str(tmp_path)!r}")
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      EXECUTE,
      NOTEBOOK,
      "\n".join(changes),
      NOTEBOOK.parent,
    ],
    cwd=tmp_path,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "(600, 128) 600 0." in done.stdout
  for name in ("roc.png", "run/report.html", "folders/train"):
    assert (tmp_path / name).exists()
