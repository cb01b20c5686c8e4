"""Graphs as other exporters write them: MXNet's, OpenCV's, TensorFlow's."""

import json

import numpy as np
import onnx
import pytest
from export_test import (
  SIZE,
  embed,
  embeddings_of,
  pixels,
  settings_of,
  variables_of,
)

from jamsface_jax.errors import InputError
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import fitting, importing, onnx_file, onnx_graph
from jamsface_jax.weights.importing import import_weights
from jamsface_jax.weights.normalization import PIXELS, parse
from jamsface_jax.weights.onnx_layers import OnnxEntry
from jamsface_jax.weights.pytorch_names import to_pytorch

helper, numpy_helper = onnx.helper, onnx.numpy_helper


def graph_of(name):
  model, _, variables = variables_of(name)
  arrays = to_pytorch(model, variables)
  data = onnx_graph.build(model, arrays, {}, image_size=SIZE, uint8=False)
  return onnx.load_from_string(data), arrays


def rename_input(proto, node_input):
  """Lets what reads the images read something else."""
  for node in proto.graph.node:
    for k, name in enumerate(node.input):
      if name == onnx_graph.INPUT:
        node.input[k] = node_input


def put_first(proto, *nodes):
  everything = [*nodes, *proto.graph.node]
  del proto.graph.node[:]
  proto.graph.node.extend(everything)


def as_mxnet(proto):
  """`_minusscalar0`, `_mulscalar0`, and every constant listed as an input."""
  rename_input(proto, "taken")
  for name, number in (("m", 127.5), ("s", 0.0078125)):
    proto.graph.initializer.append(
      numpy_helper.from_array(np.array([number], np.float32), name)
    )
  put_first(
    proto,
    helper.make_node("Sub", [onnx_graph.INPUT, "m"], ["less"]),
    helper.make_node("Mul", ["less", "s"], ["taken"]),
  )
  for tensor in proto.graph.initializer:
    proto.graph.input.append(
      helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    )


def as_tensorflow(proto):
  """Images [N, H, W, 3], as tf2onnx writes them."""
  rename_input(proto, "turned")
  put_first(
    proto,
    helper.make_node(
      "Transpose", [onnx_graph.INPUT], ["turned"], perm=(0, 3, 1, 2)
    ),
  )
  shape = ("N", SIZE, SIZE, 3)
  proto.graph.input[0].CopyFrom(
    helper.make_tensor_value_info(onnx_graph.INPUT, 1, shape)
  )


def quantise_kernels(proto, arrays, block):
  """As opencv_zoo's block quantiser does; changes `arrays` accordingly."""
  changed = 0
  for tensor in list(proto.graph.initializer):
    array = numpy_helper.to_array(tensor)
    if array.ndim not in (2, 4) or tensor.name not in arrays:
      continue
    flat = array.reshape(len(array), -1)
    count = -(-flat.shape[1] // block)
    padded = np.pad(flat, [(0, 0), (0, count * block - flat.shape[1])])
    scale = np.abs(padded.reshape(len(flat), count, block)).max(-1) / 127
    scale = np.maximum(scale, 1e-6).astype(np.float32)
    spread = np.repeat(scale, block, 1)[:, : flat.shape[1]]
    whole = np.round(flat / spread).astype(np.int8)
    arrays[tensor.name] = (whole * spread).reshape(array.shape)
    name = tensor.name
    proto.graph.initializer.remove(tensor)
    for part, numbers in (
      ("q", whole),
      ("s", scale),
      ("z", np.zeros(scale.shape, np.int8)),
      ("n", np.array(array.shape, np.int64)),
    ):
      proto.graph.initializer.append(
        numpy_helper.from_array(numbers, f"{name}.{part}")
      )
    put_first(
      proto,
      helper.make_node(
        "DequantizeLinear",
        [f"{name}.q", f"{name}.s", f"{name}.z"],
        [f"{name}.d"],
        axis=1,
        block_size=block,
      ),
      helper.make_node("Reshape", [f"{name}.d", f"{name}.n"], [name]),
    )
    # The quantiser leaves the old name among the inputs.
    proto.graph.input.append(
      helper.make_tensor_value_info(f"{name}.old", 1, array.shape)
    )
    changed += 1
  assert changed
  proto.opset_import[0].version = 21  # Blocks are of that.
  proto.ir_version = 10


def test_kernels_of_whole_numbers_are_read_as_what_they_stand_for(tmp_path):
  """SFace's int8bq form: embeddings are those of the kernels as they are."""
  proto, arrays = graph_of("fmobilenet")
  quantise_kernels(proto, arrays, block=4)
  path = str(tmp_path / "sface.onnx")
  onnx.save(proto, path)
  file = onnx_file.read(path)
  assert file.layers is not None, file.obstacle
  given = {len(layer.arrays["weight"]) for layer in file.layers}
  assert 12 in given
  found = [
    layer.arrays["weight"]
    for layer in file.layers
    if layer.arrays["weight"].ndim > 1
  ]
  expected = [array for array in arrays.values() if array.ndim > 1]
  assert len(found) == len(expected)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)
  # It runs, although inputs are listed that nothing gives.
  assert onnx_file.session(path)(pixels(2)).shape == (2, 12)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_normalisation_in_a_graph_becomes_the_networks(tmp_path, order):
  """Those MXNet's exporter wrote take pixels; insightface looks for the Sub."""
  model, _, variables = variables_of("fmobilenet")
  proto, _ = graph_of("fmobilenet")
  as_mxnet(proto)
  path = str(tmp_path / "network.onnx")
  onnx.save(proto, path)
  file = onnx_file.read(path)
  np.testing.assert_allclose(file.entry.factor, 1 / 128)
  np.testing.assert_allclose(file.entry.summand, -127.5 / 128)
  taken = importing._with_entry(file, PIXELS, order)
  np.testing.assert_allclose(taken.mean, 127.5)
  np.testing.assert_allclose(taken.std, 128)
  # Given numbers that are normalised already, it does it once more.
  twice = importing._with_entry(file, parse("10:2"), order)
  np.testing.assert_allclose(twice.mean, 10 + 127.5 * 2)
  np.testing.assert_allclose(twice.std, 2 * 128)
  images = pixels(2)
  expected = model.apply(
    variables, (np.float32(images) - 127.5) / 128, train=False
  )
  raw = onnx_file.session(path, PIXELS)(images)
  np.testing.assert_allclose(raw, expected, atol=1e-4)


def test_channels_are_turned_with_the_colours():
  factor, summand = np.float32([1, 2, 4]), np.float32([-3, -5, -7])
  file = onnx_file.OnnxFile(
    {},
    [],
    "",
    {},
    entry=OnnxEntry(factor, summand),
    activations=frozenset(),
    embedding_size=None,
  )
  rgb = importing._with_entry(file, PIXELS, "RGB")
  assert rgb.mean == (3, 2.5, 1.75) and rgb.std == (1, 0.5, 0.25)
  bgr = importing._with_entry(file, PIXELS, "BGR")
  assert bgr.mean == rgb.mean[::-1] and bgr.std == rgb.std[::-1]


def test_images_with_the_channels_last(tmp_path):
  proto, _ = graph_of("mbf")
  as_tensorflow(proto)
  texts = {
    "model": json.dumps(settings_of("mbf").model.__dict__),
    "image_size": str(SIZE),
  }
  helper.set_model_props(proto, texts)
  path = str(tmp_path / "network.onnx")
  onnx.save(proto, path)
  workdir = str(tmp_path / "run")
  import_weights(
    path,
    RunDirectory(workdir),
    **{"model": None, "embedding_size": None, "image_size": None},
    color_order=None,
  )
  model, _, variables = variables_of("mbf")
  expected = embeddings_of(model, variables, pixels(3))
  np.testing.assert_allclose(embed(workdir, pixels(3)), expected, atol=1e-4)


def test_the_length_of_embeddings_when_the_graph_does_not_say(tmp_path):
  """torch.onnx.export with dynamic axes leaves the output's shape open."""
  proto, _ = graph_of("mbf")
  for dimension in proto.graph.output[0].type.tensor_type.shape.dim:
    dimension.Clear()
  path = str(tmp_path / "network.onnx")
  onnx.save(proto, path)
  file = onnx_file.read(path)
  assert file.embedding_size is None
  assert fitting._embedding_size(file) == 12


@pytest.mark.parametrize("kind", ["QuantizeLinear", "ConvInteger"])
def test_networks_that_compute_in_whole_numbers_are_refused(tmp_path, kind):
  proto, _ = graph_of("mbf")
  put_first(proto, helper.make_node(kind, ["a", "b"], ["c"]))
  path = str(tmp_path / "network.onnx")
  onnx.save(proto, path)
  with pytest.raises(InputError, match=f"whole numbers \\({kind}\\)"):
    onnx_file.read(path)
