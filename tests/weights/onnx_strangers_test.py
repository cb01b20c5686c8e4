"""ONNX files that speak of other files."""

import os

import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.weights import onnx_file

onnx = pytest.importorskip("onnx")
helper = onnx.helper


def elsewhere(place):
  tensor = onnx.TensorProto(name="w", data_type=1, dims=[4])
  tensor.data_location = onnx.TensorProto.EXTERNAL
  tensor.external_data.add(key="location", value=place)
  return tensor


def graph(nodes, **more):
  return helper.make_graph(nodes, "g", [], [], **more)


PLACES = {
  "initializer": lambda t: graph(
    [helper.make_node("Identity", ["w"], ["y"])], initializer=[t]
  ),
  "constant": lambda t: graph(
    [helper.make_node("Constant", [], ["y"], value=t)]
  ),
  "branch": lambda t: graph(
    [
      helper.make_node(
        "If",
        ["c"],
        ["y"],
        then_branch=graph([helper.make_node("Constant", [], ["y"], value=t)]),
      )
    ]
  ),
  "sparse": lambda t: graph(
    [
      helper.make_node(
        "Constant",
        [],
        ["y"],
        sparse_value=onnx.SparseTensorProto(values=t, dims=[4]),
      )
    ]
  ),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("place", ["secret", "../secret", "{}/secret"])
def test_numbers_in_other_files_are_not_read(
  tmp_path, monkeypatch, kind, place
):
  np.zeros(4, np.float32).tofile(tmp_path / "secret")
  monkeypatch.chdir(tmp_path)
  os.mkdir("model")
  model = helper.make_model(PLACES[kind](elsewhere(place.format(tmp_path))))
  path = tmp_path / "model" / "w.onnx"
  path.write_bytes(model.SerializeToString())
  with pytest.raises(InputError, match="keeps its variables in other files"):
    onnx_file.read(str(path))


@pytest.mark.parametrize("where", ["initializer", "constant"])
@pytest.mark.parametrize(
  "changes", [{"dims": [2**40]}, {"data_type": 77}, {"dims": [3]}]
)
def test_a_constant_that_cannot_be_read(tmp_path, where, changes):
  fields = {"name": "w", "data_type": 1, "dims": [4], "raw_data": bytes(16)}
  tensor = onnx.TensorProto(**fields | changes)
  model = helper.make_model(PLACES[where](tensor))
  path = tmp_path / "w.onnx"
  path.write_bytes(model.SerializeToString())
  with pytest.raises(InputError, match="constant 'w' cannot be read"):
    onnx_file.read(str(path))


def test_numbers_in_a_file_beside_it_are_read(tmp_path, monkeypatch):
  """As torch.onnx.export(dynamo=True) writes them: w.onnx and w.onnx.data."""
  monkeypatch.chdir(tmp_path)
  os.mkdir("model")
  numbers = np.arange(8, dtype=np.float32)
  numbers.tofile("model/w.onnx.data")
  np.full(8, 7, np.float32).tofile("w.onnx.data")  # Where the command runs.
  tensors = []
  for name, start in (("a", 0), ("b", 16)):
    tensor = elsewhere("w.onnx.data")
    tensor.name = name
    tensor.external_data.add(key="offset", value=str(start))
    tensor.external_data.add(key="length", value="16")
    tensors.append(tensor)
  nodes = [helper.make_node("Identity", ["a"], ["y"])]
  model = helper.make_model(graph(nodes, initializer=tensors))
  (tmp_path / "model" / "w.onnx").write_bytes(model.SerializeToString())
  for path in ("model/w.onnx", str(tmp_path / "model" / "w.onnx")):
    arrays = onnx_file.read(path).arrays
    np.testing.assert_array_equal(arrays["a"], numbers[:4])
    np.testing.assert_array_equal(arrays["b"], numbers[4:])
  (tmp_path / "model" / "w.onnx.data").write_bytes(bytes(20))
  with pytest.raises(InputError, match="'w.onnx.data', which is cut off"):
    onnx_file.read("model/w.onnx")
