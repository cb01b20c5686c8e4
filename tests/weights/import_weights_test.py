"""Published weights become work directories, or are refused with a list."""

import dataclasses
import json
import os
import zipfile

import jax
import numpy as np
import onnx
import pytest
from conftest import assert_one_sentence
from export_test import (
  NETWORKS,
  SIZE,
  embed,
  embeddings_of,
  pixels,
  settings_of,
  variables_of,
)
from numpy_networks import edgenext, mobilefacenet
from torch_files import (
  Call,
  old_storage,
  tensor,
  write_old_torch,
  write_pth,
  write_torch,
)

from jamsface_jax.errors import InputError
from jamsface_jax.run.checkpoint import CheckpointReader
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import onnx_graph
from jamsface_jax.weights.importing import import_weights
from jamsface_jax.weights.pytorch_names import (
  from_pytorch,
  pytorch_shapes,
  to_pytorch,
)
from jamsface_jax.weights.weight_files import write_npz, write_safetensors


def take(path, workdir, **settings):
  import_weights(
    str(path),
    RunDirectory(str(workdir)),
    **{"model": None, "embedding_size": None, "image_size": None}
    | {"color_order": None}
    | settings,
  )
  return str(workdir)


def arrays_of(name, seed=0):
  model, _, variables = variables_of(name, seed=seed)
  return to_pytorch(model, variables)


def texts_of(name):
  settings = json.dumps(dataclasses.asdict(settings_of(name).model))
  return {"model": settings, "image_size": str(SIZE)}


def expected_of(name, images):
  model, _, variables = variables_of(name)
  return np.asarray(embeddings_of(model, variables, images))


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_is_the_same(name):
  model, shapes, variables = variables_of(name)
  arrays = to_pytorch(model, variables)
  assert {k: a.shape for k, a in arrays.items()} == pytorch_shapes(
    model, shapes
  )
  back = from_pytorch(model, shapes, arrays)
  assert jax.tree.structure(back) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize("name", NETWORKS)
def test_safetensors_that_say_their_model(tmp_path, name):
  path = str(tmp_path / "w")
  write_safetensors(path, arrays_of(name), texts_of(name))
  workdir = take(path, tmp_path / "run")
  expected = expected_of(name, pixels(3))
  np.testing.assert_allclose(embed(workdir, pixels(3)), expected, atol=1e-4)


def test_the_work_directory_is_honest(tmp_path):
  path = str(tmp_path / "w.npz")
  write_npz(path, arrays_of("iresnet"), texts_of("iresnet"))
  workdir = take(path, tmp_path / "run")
  config = read_settings(RunDirectory(workdir))
  assert config.model.stages == (1, 2) and config.data.image_size == SIZE
  reader = CheckpointReader(RunDirectory(workdir))
  metadata = reader.metadata(reader.choose(None))
  assert metadata["num_classes"] == metadata["num_images"] == 0
  assert metadata["data_fingerprint"] == "none: imported from w.npz"
  origin = metadata["origin"]
  assert origin["file"] == "w.npz" and origin["matched_by"] == "names"
  assert len(origin["sha256"]) == 64
  assert origin["metadata"] == texts_of("iresnet")
  assert not os.path.exists(str(tmp_path / "run.partial"))


def test_other_names_in_the_order_of_the_network(tmp_path):
  arrays = {f"{k}.x": a for k, a in enumerate(arrays_of("mbf").values())}
  arrays["0.num_batches_tracked"] = np.array(3)
  path = str(tmp_path / "w.npz")
  write_npz(path, arrays, texts_of("mbf"))
  workdir = take(path, tmp_path / "run")
  expected = expected_of("mbf", pixels(3))
  np.testing.assert_allclose(embed(workdir, pixels(3)), expected, atol=1e-4)
  # safetensors' own library sorts by name: the order means nothing.
  write_safetensors(str(tmp_path / "s"), arrays, texts_of("mbf"))
  with pytest.raises(InputError, match="without order"):
    take(tmp_path / "s", tmp_path / "other")


def test_bgr_becomes_rgb(tmp_path):
  path = str(tmp_path / "w.npz")
  write_npz(path, arrays_of("mbf"), texts_of("mbf"))
  workdir = take(path, tmp_path / "run", color_order="BGR")
  expected = expected_of("mbf", pixels(3)[..., ::-1])
  np.testing.assert_allclose(embed(workdir, pixels(3)), expected, atol=1e-4)
  assert np.abs(expected - expected_of("mbf", pixels(3))).max() > 0.1


@pytest.mark.parametrize("batch", [1, 2, "None"])
def test_onnx_traced_with_a_batch(tmp_path, batch, capsys):
  """As `torch.onnx.export` writes a network for the images that it is shown.

  torch2onnx.py of arcface_torch shows one and then calls the batch "None": the
  input is free, the Reshape is not.
  """
  model, _, variables = variables_of("mbf")
  arrays = to_pytorch(model, variables)
  data = onnx_graph.build(model, arrays, {}, image_size=SIZE, uint8=False)
  proto = onnx.load_from_string(data)
  fixed = batch if isinstance(batch, int) else 1
  (flatten,) = (n for n in proto.graph.node if n.op_type == "Flatten")
  flatten.op_type = "Reshape"
  flatten.input.append("shape")
  shape = onnx.numpy_helper.from_array(np.array([fixed, -1]), "shape")
  proto.graph.initializer.append(shape)
  dimension = proto.graph.input[0].type.tensor_type.shape.dim[0]
  dimension.Clear()
  field = "dim_value" if isinstance(batch, int) else "dim_param"
  setattr(dimension, field, batch)
  onnx.helper.set_model_props(proto, texts_of("mbf"))
  path = str(tmp_path / "network.onnx")
  onnx.save(proto, path)
  workdir = take(path, tmp_path / "run")
  done = capsys.readouterr()
  assert "largest difference from network.onnx" in done.out
  assert "warning" not in done.err
  expected = expected_of("mbf", pixels(3))
  np.testing.assert_allclose(embed(workdir, pixels(3)), expected, atol=1e-4)


def fold(path, arrays, norms):
  """Rewrites a graph as PyTorch's exporter does: folded, names of numbers."""
  model = onnx.load(path)
  graph = model.graph
  values = {
    tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64)
    for tensor in graph.initializer
  }
  integers = {t.name for t in graph.initializer if t.data_type == 7}
  users = {node.input[0]: node for node in graph.node}
  folded = 0
  for node in list(graph.node):
    after = users.get(node.output[0])
    if node.op_type != "Conv" or after is None:
      continue
    if after.op_type != "BatchNormalization":
      continue
    scale, bias, mean, var = (values[name] for name in after.input[1:])
    factor = scale / np.sqrt(var + 1e-5)
    kernel = node.input[1]
    values[kernel] = values[kernel] * factor[:, None, None, None]
    values[kernel + ".b"] = bias - mean * factor
    node.input.append(kernel + ".b")
    node.output[0] = after.output[0]
    graph.node.remove(after)
    folded += 1
  assert folded >= norms
  used = sorted({name for n in graph.node for name in n.input} & set(values))
  numbers = {name: f"onnx::{k + 500}" for k, name in enumerate(used)}
  del graph.initializer[:]
  for name in used:
    kind = np.int64 if name in integers else np.float32
    graph.initializer.append(
      onnx.numpy_helper.from_array(values[name].astype(kind), numbers[name])
    )
  for node in graph.node:
    for k, name in enumerate(node.input):
      node.input[k] = numbers.get(name, name)
  del model.metadata_props[:]
  onnx.checker.check_model(model, full_check=True)
  onnx.save(model, path)


@pytest.fixture(scope="module", params=["iresnet18", "mbf"])
def published(request, tmp_path_factory):
  """A full-size network as ONNX, as published ones are: name, path, arrays."""
  name, size = request.param, 112
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(NETWORKS, name, {"name": name})
    model, _, variables = variables_of(name, size)
  arrays = to_pytorch(model, variables)
  path = str(tmp_path_factory.mktemp("published") / "network.onnx")
  data = onnx_graph.build(model, arrays, {}, image_size=size, uint8=False)
  with open(path, "wb") as file:
    file.write(data)
  fold(path, arrays, norms=20)
  return name, path, model, variables


@pytest.mark.slow
def test_onnx_as_published(tmp_path, published, capsys):
  name, path, model, variables = published
  short = {"iresnet18": "r18", "mbf": "mbf"}[name]
  workdir = take(path, tmp_path / "run", model=short, embedding_size=12)
  assert "largest difference from network.onnx" in capsys.readouterr().out
  images = np.random.default_rng(1).integers(0, 256, (2, 112, 112, 3), np.uint8)
  expected = embeddings_of(model, variables, images)
  # Where numbers are some thousands, the small ones are sums of large ones.
  atol = max(1e-3, 2e-6 * np.abs(expected).max())
  np.testing.assert_allclose(
    embed(workdir, images), expected, atol=atol, rtol=1e-4
  )
  reader = CheckpointReader(RunDirectory(workdir))
  assert reader.metadata(0)["origin"]["matched_by"] == "layers"


@pytest.mark.slow
def test_onnx_that_computes_something_else(tmp_path, published):
  name, path, _, _ = published
  graph = onnx.load(path)
  prelu = next(n for n in graph.graph.node if n.op_type == "PRelu")
  relu = onnx.helper.make_node("Neg", [prelu.output[0]], ["negated"])
  for node in graph.graph.node:
    if prelu.output[0] in node.input:
      node.input[list(node.input).index(prelu.output[0])] = "negated"
  position = list(graph.graph.node).index(prelu) + 1
  graph.graph.node.insert(position, relu)
  changed = str(tmp_path / "changed.onnx")
  onnx.save(graph, changed)
  with pytest.raises(InputError, match="computes something else"):
    take(changed, tmp_path / "run", model=name, embedding_size=12)
  other = {"iresnet18": "iresnet34", "mbf": "mbf_large"}[name]
  with pytest.raises(InputError, match=f"does not fit '{other}'"):
    take(path, tmp_path / "run", model=other, embedding_size=12)
  with pytest.raises(InputError, match=f"--model={name} comes nearest: all"):
    take(path, tmp_path / "run", model=other, embedding_size=12)
  with pytest.raises(InputError, match="left over|different|missing"):
    take(path, tmp_path / "run", model=name, embedding_size=13)
  assert not os.path.exists(tmp_path / "run")


# As core/model.py of MobileFaceNet_Pytorch makes it, for images 64x48.
def paper_arrays(images_of=(4, 3)):
  """Random arrays of the paper's MobileFaceNet under its names, in order."""
  rng = np.random.default_rng(0)
  arrays = {}

  def conv(name, *shape):
    spread = np.prod(shape[1:]) ** -0.5
    arrays[f"{name}.weight"] = rng.normal(0, spread, shape)

  def norm(name, size):
    arrays[f"{name}.weight"] = rng.uniform(0.5, 1.5, size)
    arrays[f"{name}.bias"] = rng.normal(0, 0.2, size)
    arrays[f"{name}.running_mean"] = rng.normal(0, 0.2, size)
    arrays[f"{name}.running_var"] = rng.uniform(0.5, 1.5, size)

  def block(name, outputs, inputs, *size, linear=False):
    conv(f"{name}.conv", outputs, inputs, *size)
    norm(f"{name}.bn", outputs)
    if not linear:
      arrays[f"{name}.prelu.weight"] = rng.uniform(0.1, 0.5, outputs)

  block("conv1", 64, 3, 3, 3)
  block("dw_conv1", 64, 1, 3, 3)
  inputs, number = 64, 0
  for expansion, outputs, count in (
    (2, 64, 5),
    (4, 128, 1),
    (2, 128, 6),
    (4, 128, 1),
    (2, 128, 2),
  ):
    for _ in range(count):
      name, within = f"blocks.{number}.conv", inputs * expansion
      conv(f"{name}.0", within, inputs, 1, 1)
      norm(f"{name}.1", within)
      arrays[f"{name}.2.weight"] = rng.uniform(0.1, 0.5, within)
      conv(f"{name}.3", within, 1, 3, 3)
      norm(f"{name}.4", within)
      arrays[f"{name}.5.weight"] = rng.uniform(0.1, 0.5, within)
      conv(f"{name}.6", outputs, within, 1, 1)
      norm(f"{name}.7", outputs)
      inputs, number = outputs, number + 1
  block("conv2", 512, 128, 1, 1)
  block("linear7", 512, 1, *images_of, linear=True)
  block("linear1", 128, 512, 1, 1, linear=True)
  return {name: np.float32(array) for name, array in arrays.items()}


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_mobilefacenet_of_the_paper(tmp_path, order):
  """A file of before 1.6 as 068.ckpt is, against NumPy."""
  arrays = paper_arrays()
  storages = [
    old_storage(str(k), array) for k, array in enumerate(arrays.values())
  ]
  network = {}
  for (name, array), storage in zip(arrays.items(), storages, strict=True):
    strides = tuple(step // 4 for step in array.strides)
    network[f"module.{name}"] = tensor(storage, array.shape, strides)
  path = write_old_torch(
    tmp_path / "068.ckpt", {"epoch": 68, "net_state_dict": network}, storages
  )
  workdir = take(
    path,
    tmp_path / "run",
    **{"model": "mbf_paper", "image_size": 64, "color_order": order},
    normalization="127.5,120,110:128,64,32",
  )
  settings = read_settings(RunDirectory(workdir)).model
  assert (settings.embedding_size, settings.side_crop) == (128, 8)
  images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
  taken = (images - np.array([127.5, 120, 110])) / np.array([128, 64, 32])
  if order == "BGR":
    taken = taken[..., ::-1]
  expected = mobilefacenet(arrays, taken[:, :, 8:56].transpose(0, 3, 1, 2))
  assert expected.std() > 0.1
  np.testing.assert_allclose(embed(workdir, images), expected, atol=1e-4)
  reader = CheckpointReader(RunDirectory(workdir))
  origin = reader.metadata(reader.choose(None))["origin"]
  assert origin["color_order"] == order and origin["matched_by"] == "order"
  assert origin["normalization"] == (
    "(pixel - (127.5, 120.0, 110.0)) / (128.0, 64.0, 32.0)"
  )


def test_an_edgeface(tmp_path):
  """Its end is called `head`, as what trainers have beside other networks."""
  arrays = arrays_of("edgeface")
  path = str(tmp_path / "edgeface_xs_gamma_06.npz")
  write_npz(path, {f"model.{name}": a for name, a in arrays.items()}, {})
  workdir = take(path, tmp_path / "run", model="edgeface_xs", image_size=SIZE)
  assert read_settings(RunDirectory(workdir)).model.embedding_size == 12
  reader = CheckpointReader(RunDirectory(workdir))
  origin = reader.metadata(reader.choose(None))["origin"]
  assert origin["matched_by"] == "names"
  images = pixels(2)
  given = images.transpose(0, 3, 1, 2) / 127.5 - 1
  expected = edgenext(arrays, given, heads=4)
  assert expected.std() > 0.1 and np.abs(np.diff(expected, axis=0)).max() > 0.1
  np.testing.assert_allclose(embed(workdir, images), expected, atol=1e-4)


def as_pytorch_exports(data, prefix):
  """A graph of ours with the names and kernels of PyTorch's exporters."""
  proto = onnx.load_from_string(data)
  graph, number = proto.graph, 1000
  constants = {one.name: one for one in graph.initializer}
  for node in list(graph.node):
    if node.op_type == "Transpose" and node.input[0] in constants:
      (user,) = (n for n in graph.node if node.output[0] in n.input)
      kernel = onnx.numpy_helper.to_array(constants[node.input[0]])
      name = f"onnx::MatMul_{number}"
      graph.initializer.append(onnx.numpy_helper.from_array(kernel.T, name))
      user.input[list(user.input).index(node.output[0])] = name
      graph.initializer.remove(constants[node.input[0]])
      graph.node.remove(node)
      number += 1
  for one in graph.initializer:
    if one.name.startswith(("onnx::", "constant_")):
      continue
    for node in graph.node:
      for k, name in enumerate(node.input):
        if name == one.name:
          node.input[k] = prefix + name
    one.name = prefix + one.name
  del proto.metadata_props[:]
  return proto


def fold_linear(proto):
  """What `dynamo` makes of a linear layer and the normalisation after it."""
  graph = proto.graph
  arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
  makers = {node.output[0]: node for node in graph.node}
  gone = []
  for node in list(graph.node):
    if node.op_type == "BatchNormalization":
      product = makers[node.input[0]]
      scale, shift, mean, var = (np.float64(arrays[n]) for n in node.input[1:])
      factor = scale / np.sqrt(var + node.attribute[0].f)
      kernel = product.input[1]
      arrays[kernel] = np.float32(arrays[kernel] * factor[:, None])
      arrays[f"{kernel}_bias"] = np.float32(shift - mean * factor)
      product.input.append(f"{kernel}_bias")
      product.output[0] = node.output[0]
      gone += node.input[1:]
      graph.node.remove(node)
  del graph.initializer[:]
  graph.initializer.extend(
    onnx.numpy_helper.from_array(array, name)
    for name, array in arrays.items()
    if name not in gone
  )


@pytest.mark.parametrize(
  ("name", "prefix", "folded"),
  [
    ("edgeface", "model.", False),
    ("vit", "", False),
    ("vit", "module.", True),
  ],
)
def test_kernels_that_exporters_call_by_numbers(tmp_path, name, prefix, folded):
  """As torch 2.14's do, see pytorch_parity_test."""
  model, _, variables = variables_of(name)
  arrays = to_pytorch(model, variables)
  data = onnx_graph.build(model, arrays, {}, image_size=SIZE, uint8=False)
  proto = as_pytorch_exports(data, prefix)
  assert sum(t.name.startswith("onnx::") for t in proto.graph.initializer) > 5
  if folded:
    fold_linear(proto)
  onnx.checker.check_model(proto)
  if name == "vit":
    onnx.helper.set_model_props(proto, texts_of(name))
  path = str(tmp_path / "network.onnx")
  onnx.save(proto, path)
  chosen = {} if name == "vit" else {"model": "edgeface_xs", "image_size": SIZE}
  workdir = take(path, tmp_path / "run", **chosen)
  expected = expected_of(name, pixels(3))
  np.testing.assert_allclose(embed(workdir, pixels(3)), expected, atol=1e-4)


def test_a_file_of_another_network_names_the_nearest(tmp_path):
  arrays = paper_arrays(images_of=(7, 7))
  path = str(tmp_path / "w.npz")
  write_npz(path, arrays, {})
  with pytest.raises(InputError, match="--model=mbf_paper comes nearest: all"):
    take(path, tmp_path / "run", model="mbf")
  with pytest.raises(InputError, match="--model is missing.*mbf_paper comes"):
    take(path, tmp_path / "run")
  del arrays["blocks.3.conv.3.weight"]
  write_npz(path, arrays, {})
  with pytest.raises(InputError) as error:
    take(
      path,
      tmp_path / "run",
      **{"model": "mbf_paper", "color_order": "RGB"},
      normalization="127.5:128",
    )
  assert "49 of its 50 kernels are there, but nothing instead of" in str(
    error.value
  )


def test_an_activation_without_arrays_is_asked_for(tmp_path):
  arrays = {
    name: array
    for name, array in paper_arrays().items()
    if array.ndim > 1
    or not name.endswith(("u.weight", ".2.weight", "5.weight"))
  }
  path = str(tmp_path / "w.npz")
  write_npz(path, arrays, {})
  known = {"model": "mbf_paper", "image_size": 64, "color_order": "RGB"}
  known["normalization"] = "127.5:128"
  with pytest.raises(InputError, match="--activation is missing.*no PReLU"):
    take(path, tmp_path / "run", **known)
  workdir = take(path, tmp_path / "run", **known, activation="relu6")
  settings = read_settings(RunDirectory(workdir)).model
  assert settings.activation == "relu6"


def test_a_last_normalisation_without_scale(tmp_path):
  """As AdaFace's, beside its head and under its trainer's prefix."""
  arrays = arrays_of("ir")
  model, _, variables = variables_of("ir")
  last = variables["params"]["embedding_bn"]
  last["scale"], last["bias"] = np.ones(12, "f"), np.zeros(12, "f")
  expected = embeddings_of(model, variables, pixels(3))
  state = {
    f"model.{name}": array
    for name, array in arrays.items()
    if name not in ("output_layer.4.weight", "output_layer.4.bias")
  }
  state["head.kernel"] = np.ones((12, 77), np.float32)
  path = str(tmp_path / "w.npz")
  write_npz(path, state, texts_of("ir"))
  workdir = take(path, tmp_path / "run")
  np.testing.assert_allclose(embed(workdir, pixels(3)), expected, atol=1e-4)


def small(**changes):
  """Changed arrays of a small network, and what they say of themselves."""
  arrays = arrays_of("iresnet")
  for name, array in changes.items():
    name = name.replace("__", ".")
    if array is None:
      del arrays[name]
    else:
      arrays[name] = np.float32(array)
  return arrays


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"bn2__bias": None}, ["missing: bn2.bias (16,)"]),
    ({"stray": np.ones(3)}, ["left over: stray (3,)"]),
    (
      {"conv1__weight": np.ones((8, 3, 7, 7))},
      ["different: conv1.weight (8, 3, 7, 7) instead of (8, 3, 3, 3)"],
    ),
    ({"fc__bias": np.full(12, np.nan)}, ["'fc.bias'", "not finite"]),
    ({"bn1__running_var": -np.ones(8)}, ["'bn1.running_var'", "below 0"]),
  ],
)
def test_what_does_not_fit_is_listed(tmp_path, changes, parts):
  path = str(tmp_path / "w.npz")
  write_npz(path, small(**changes), texts_of("iresnet"))
  with pytest.raises(InputError) as error:
    take(path, tmp_path / "run")
  for part in parts:
    assert part in str(error.value)
  assert not os.path.exists(tmp_path / "run")


def test_long_lists_are_cut(tmp_path):
  path = str(tmp_path / "w.npz")
  write_npz(path, {"a": np.ones(3, np.float32)}, {})
  with pytest.raises(InputError, match=r"and \d+ more") as error:
    take(path, tmp_path / "run", model="r50")
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    ({"model": "r50"}, ["--model=iresnet50", "says iresnet"]),
    ({"image_size": 112}, ["--image_size=112", f"says {SIZE}"]),
    ({"embedding_size": 512}, ["--embedding_size=512", "says 12"]),
  ],
)
def test_flags_that_contradict_the_file(tmp_path, flags, parts):
  path = str(tmp_path / "w.npz")
  write_npz(path, arrays_of("iresnet"), texts_of("iresnet"))
  with pytest.raises(InputError) as error:
    take(path, tmp_path / "run", **flags)
  for part in parts:
    assert part in str(error.value)


def test_metadata_that_do_not_fit(tmp_path):
  path = str(tmp_path / "w.npz")
  for texts, says in (
    (texts_of("iresnet") | {"normalization": "pixel / 255"}, "pixel / 255"),
    (texts_of("iresnet") | {"model": "{"}, "settings of a model"),
    (texts_of("iresnet") | {"model": '{"depth": 3}'}, "settings of a model"),
  ):
    write_npz(path, arrays_of("iresnet"), texts)
    with pytest.raises(InputError, match=says):
      take(path, tmp_path / "run")
  write_npz(path, arrays_of("iresnet"), texts_of("iresnet") | {"x": "y"})
  texts = texts_of("iresnet") | {"color_order": "BGR"}
  write_npz(path, arrays_of("iresnet"), texts)
  with pytest.raises(InputError, match="--color_order=RGB contradicts"):
    take(path, tmp_path / "run", color_order="RGB")


def test_files_of_onnx_that_are_refused(tmp_path):
  path = tmp_path / "x.onnx"
  for data in (b"", b"nothing of the kind", b"\x08\x07"):
    path.write_bytes(data)
    with pytest.raises(InputError, match="not an ONNX file"):
      take(path, tmp_path / "run", model="r50")
  with pytest.raises(InputError, match="cannot be read"):
    take(tmp_path / "nowhere.onnx", tmp_path / "run", model="r50")
  model, _, variables = variables_of("iresnet")
  data = onnx_graph.build(
    model, to_pytorch(model, variables), {}, image_size=SIZE, uint8=True
  )
  graph = onnx.load_from_string(data)
  onnx.external_data_helper.convert_model_to_external_data(
    graph, location="../secret", size_threshold=0
  )
  entry = graph.graph.initializer[0]
  entry.data_location = onnx.TensorProto.EXTERNAL
  path.write_bytes(graph.SerializeToString())
  with pytest.raises(InputError, match="in other files"):
    take(path, tmp_path / "run", model="r50")


def test_mistakes_are_one_sentence(run, tmp_path):
  def command(path, *flags, workdir="run"):
    return run(
      "jamsface_jax.import_weights",
      f"--input={path}",
      f"--workdir={tmp_path / workdir}",
      *flags,
    )

  arrays = arrays_of("iresnet")
  good = write_pth(tmp_path / "good.pth", arrays)
  assert_one_sentence(command(good), "--model", "r50, r100", "mbf", "vit_t")
  assert_one_sentence(command(good, "--model=r51"), "'r51'", "iresnet50")
  done = command(good, "--model=r50")
  assert_one_sentence(done, "does not fit", "more", "of this kind")
  done = command(good, "--model=mbf_paper", "--activation=relu")
  assert_one_sentence(done, "--normalization and --color_order", "127.5:128")
  done = command(good, "--model=r50", "--normalization=half")
  assert_one_sentence(done, "--normalization='half'", "127.5:128")
  done = command(good, "--model=r50", "--activation=relu")
  assert_one_sentence(done, "--activation=relu", "leave it out")
  assert_one_sentence(command(tmp_path / "nowhere", "--model=r50"), "No such")
  bad = tmp_path / "bad.pth"
  bad.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
  assert_one_sentence(command(bad, "--model=r50"), "not a file of weights")
  evil = write_torch(
    tmp_path / "evil.pth",
    Call("os", "system", f"touch {tmp_path / 'HERE'}"),
    [],
  )
  assert zipfile.is_zipfile(evil)
  assert_one_sentence(command(evil, "--model=r50"), "os.system")
  assert not (tmp_path / "HERE").exists()
  (tmp_path / "there").mkdir()
  done = command(good, "--model=r50", workdir="there")
  assert_one_sentence(done, "there", "exists")
  assert not (tmp_path / "run").exists()
