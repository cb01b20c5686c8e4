"""Exported files compute what the network computes, and say how to feed it."""

import dataclasses
import functools
import json
import os
import re
import sys

import jax
import jax.export
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from conftest import assert_one_sentence

from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.devices import sharding
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.models import init_backbone
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import (
  exporting,
  onnx_file,
  onnx_graph,
  weight_files,
)
from jamsface_jax.weights.importing import import_weights
from jamsface_jax.weights.pytorch_names import (
  from_pytorch,
  layers,
  pytorch_shapes,
  to_pytorch,
)
from jamsface_jax.weights.weight_files import write_npz

SIZE = 35  # Odd: stride 2 and patches of 9 and 4 leave something over.

NETWORKS = {
  "iresnet": {"name": "iresnet", "stages": (1, 2), "width": 1 / 8},
  "squeeze": {"name": "iresnet", "stages": (1, 1), "width": 1 / 4}
  | {"squeeze_reduction": 4, "stem_stride": 2},
  "mbf": {"name": "mobilefacenet", "stages": (1, 1, 2, 1), "width": 1 / 8},
  "mbf_blocks": {"name": "mobilefacenet", "stages": (2, 1, 1, 1)}
  | {"width": 1 / 8},
  "separable": {"name": "mbf_separable", "width": 1 / 16, "side_crop": 2}
  | {"activation": "relu6", "pixel_mean": (123.7, 116.3, 103.5)}
  | {"pixel_std": (58.4, 57.1, 57.4)},
  "ir": {"name": "ir18", "width": 1 / 16, "squeeze_reduction": 2},
  "fmobilenet": {"name": "fmobilenet", "stages": (1, 2), "width": 1 / 8},
  "vit": {"name": "vit", "stages": (2,), "width": 1 / 16},
  "edgenext": {"name": "edgenext", "stages": (1, 2, 1, 1), "width": 1 / 2},
}
# A published one, deep; its linear layers are of low rank.
EDGEFACE = {"name": "edgeface_xs"}


def settings_of(name):
  networks = {**NETWORKS, "edgeface": EDGEFACE}
  chosen = networks[name] | {"embedding_size": 12}
  return replaced(Settings(), {f"model.{k}": v for k, v in chosen.items()})


def variables_of(name, size=SIZE, seed=0):
  """A network with variables as in trained ones, by PyTorch's names."""
  model = make_model(settings_of(name))
  shapes = jax.eval_shape(
    lambda key: init_backbone(key, model, size), jax.random.key(0)
  )
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == "kernel":
      spread = np.prod(leaf.shape[:-1]) ** -0.5
      return rng.normal(0, spread, leaf.shape).astype(np.float32)
    if name in ("mean", "bias"):
      return rng.normal(0, 0.2, leaf.shape).astype(np.float32)
    return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

  return model, shapes, jax.tree_util.tree_map_with_path(draw, shapes)


def make_workdir(directory, name, dtype="float32", arrays=None):
  """A work directory with such a network, imported; returns its path."""
  model, _, variables = variables_of(name)
  settings = dataclasses.asdict(settings_of(name).model) | {"dtype": dtype}
  metadata = {"model": json.dumps(settings), "image_size": str(SIZE)}
  path = str(directory / f"{name}.npz")
  write_npz(path, arrays or to_pytorch(model, variables), metadata)
  workdir = str(directory / f"w_{name}")
  return import_as_it_says(path, workdir)


def import_as_it_says(path, workdir):
  """Imports a file that says what network it holds; returns `workdir`."""
  import_weights(
    path,
    RunDirectory(workdir),
    model=None,
    embedding_size=None,
    image_size=None,
    color_order=None,
  )
  return workdir


DEEP = ("separable", "ir")  # Published depths, which take long to compile.


def test_what_is_exported_is_folded_for_no_device(tmp_path):
  _, _, variables = variables_of("iresnet", size=28)
  found = []
  for lanes in (1, 16):
    chosen = NETWORKS["iresnet"] | {"embedding_size": 12, "lanes": lanes}
    settings = replaced(
      Settings(), {f"model.{k}": v for k, v in chosen.items()}
    )
    model = json.dumps(dataclasses.asdict(settings.model))
    path = str(tmp_path / f"{lanes}.npz")
    arrays = to_pytorch(make_model(settings), variables)
    write_npz(path, arrays, {"model": model, "image_size": "28"})
    workdir = import_as_it_says(path, str(tmp_path / f"w{lanes}"))
    output = export(workdir, "onnx", tmp_path / f"{lanes}.onnx")
    nodes = [node.op_type for node in onnx.load(output).graph.node]
    found.append((nodes, embed(workdir, pixels(3, 28))))
  (nodes, plain), (folded_nodes, folded) = found
  assert nodes == folded_nodes
  np.testing.assert_allclose(folded, plain, rtol=1e-4, atol=1e-5)


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(name, marks=pytest.mark.slow if name in DEEP else ())
    for name in NETWORKS
  ],
)
def network(request, tmp_path_factory):
  """Name, path of a work directory, and embeddings of `pixels(5)`."""
  workdir = make_workdir(tmp_path_factory.mktemp("export"), request.param)
  return request.param, workdir, embed(workdir, pixels(5))


def embeddings_of(model, variables, images):
  """By the network itself, of pixels."""
  run = jax.jit(functools.partial(model.apply, train=False))
  return run(variables, normalize(images))


def pixels(count, size=SIZE):
  rng = np.random.default_rng(3)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def embed(workdir, images):
  embedder, variables, _ = open_embedder(
    RunDirectory(workdir),
    step=None,
    batch_size=8,
    flip=False,
    mesh=sharding.make_mesh(-1),
  )
  blocks = embedder.embed(
    variables, lambda rows: images[rows], len(images), threads=1
  )
  return np.concatenate(list(blocks))


def export(workdir, format, output, input_dtype="uint8", step=None):
  exporting.export(
    RunDirectory(str(workdir)),
    format,
    str(output),
    step=step,
    input_dtype=input_dtype,
  )
  return str(output)


def assert_described(texts, input_layout=None):
  assert texts["color_order"] == "RGB"
  assert texts["image_size"] == str(SIZE)
  assert texts["normalization"] == "pixel / 127.5 - 1"
  assert f"{SIZE}x{SIZE}" in texts["images"] and "bilinear" in texts["images"]
  assert texts["embedding_size"] == "12"
  assert texts["step"] == "0"
  assert json.loads(texts["origin"])["matched_by"] == "names"
  assert texts.get("input") == input_layout


def assert_sums_alike(found, expected, all_expected):
  """In another order: some parts in ten million of the largest number."""
  largest = np.abs(all_expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * largest)


def test_onnx(tmp_path, network, capsys):
  _, workdir, expected = network
  path = export(workdir, "onnx", tmp_path / "pixels.onnx")
  printed = capsys.readouterr().out
  for batch in (1, 4, 64):
    assert f"batch {batch}: largest difference" in printed
  model = onnx.load(path)
  onnx.checker.check_model(model, full_check=True)
  texts = {entry.key: entry.value for entry in model.metadata_props}
  assert_described(texts, f"pixels uint8 [N, {SIZE}, {SIZE}, 3]")
  run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  for count in (0, 1, 2, 3, 5):
    (found,) = run.run(None, {"images": pixels(5)[:count]})
    assert_sums_alike(found, expected[:count], expected)

  path = export(workdir, "onnx", tmp_path / "float.onnx", "float32")
  run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  assert run.get_modelmeta().custom_metadata_map["input"] == (
    f"normalised float32 [N, 3, {SIZE}, {SIZE}]"
  )
  images = (pixels(5).transpose(0, 3, 1, 2) - np.float32(127.5)) / 127.5
  (found,) = run.run(None, {"images": images.astype(np.float32)})
  assert_sums_alike(found, expected, expected)


def test_stablehlo(tmp_path, network):
  _, workdir, expected = network
  path = export(workdir, "stablehlo", tmp_path / "x")
  with open(path, "rb") as file:
    loaded = jax.export.deserialize(bytearray(file.read()))
  assert loaded.platforms == ("cpu", "cuda", "tpu")
  assert_described(
    json.loads(loaded.fun_name), f"pixels uint8 [N, {SIZE}, {SIZE}, 3]"
  )
  # Accelerators would round what they multiply.
  text = loaded.mlir_module()
  products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", text)
  assert products
  for line in products:
    assert line.count("HIGHEST") == 2, line
  for count in (0, 1, 2, 3, 5):
    found = loaded.call(pixels(5)[:count])
    assert found.shape == (count, 12)
    assert_sums_alike(found, expected[:count], expected)


@pytest.mark.parametrize("format", ["safetensors", "numpy"])
def test_arrays_under_pytorchs_names(tmp_path, network, format):
  name, workdir, _ = network
  path = export(workdir, format, tmp_path / "x")
  if format == "safetensors":
    arrays = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
      texts = file.metadata()
  else:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
    texts = json.loads(str(arrays.pop("metadata")))
  assert_described(texts)
  model, shapes, variables = variables_of(name)
  expected = to_pytorch(model, variables)
  assert set(arrays) == set(expected)
  assert {k: a.shape for k, a in arrays.items()} == pytorch_shapes(
    model, shapes
  )
  for key, array in expected.items():
    np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize(
  "format", ["onnx", "stablehlo", "safetensors", "numpy"]
)
@pytest.mark.parametrize("name", ["mbf", "vit"])
def test_numbers_of_half_the_bits(tmp_path, format, name, capsys):
  """What it changes is measured, and is what rounded numbers change."""
  workdir = make_workdir(tmp_path, name)
  sizes, rows = [], []
  for dtype in ("float32", "float16"):
    path = str(tmp_path / f"{dtype}.{format}")
    exporting.export(
      RunDirectory(workdir),
      format,
      path,
      **{"step": None, "input_dtype": "uint8", "dtype": dtype},
    )
    sizes.append(os.path.getsize(path))
    rows.append(run_file(path, format, name))
  _, _, variables = variables_of(name)
  count = sum(array.size for array in jax.tree.leaves(variables))
  # Two bytes a number less; a graph has a Cast for each variable instead.
  assert sizes[0] - sizes[1] > 0.8 * count
  printed = [
    float(line.split("difference ")[1].split(",")[0])
    for line in capsys.readouterr().out.splitlines()
    if line.startswith("batch 64")
  ]
  model, _, variables = variables_of(name)
  rounded = jax.tree.map(lambda a: np.float32(np.float16(a)), variables)
  expected = embeddings_of(model, rounded, pixels(3))
  np.testing.assert_allclose(rows[1], expected, atol=1e-4)
  assert np.abs(rows[1] - rows[0]).max() > 1e-4 < printed[-1] < 0.2


def run_file(path, format, name):
  """Embeddings of `pixels(3)` by what loads such a file."""
  if format == "onnx":
    run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return run.run(None, {"images": pixels(3)})[0]
  if format == "stablehlo":
    with open(path, "rb") as file:
      return jax.export.deserialize(bytearray(file.read())).call(pixels(3))
  arrays = weight_files.read(path).arrays
  model, shapes, _ = variables_of(name)
  variables = from_pytorch(model, shapes, arrays)
  return embeddings_of(model, variables, pixels(3))


def test_numbers_beyond_half_the_bits(tmp_path):
  model, _, variables = variables_of("mbf")
  arrays = to_pytorch(model, variables)
  name = next(n for n in arrays if n.endswith("running_var"))
  arrays[name][0] = 1e5
  workdir = make_workdir(tmp_path, "mbf", arrays=arrays)
  path = str(tmp_path / "x.onnx")
  with pytest.raises(InputError, match="--dtype=float16 cannot hold"):
    exporting.export(
      RunDirectory(workdir),
      "onnx",
      path,
      **{"step": None, "input_dtype": "uint8", "dtype": "float16"},
    )
  assert not os.path.exists(path)


def test_every_variable_has_one_name():
  for name in NETWORKS:
    model, _, variables = variables_of(name)
    arrays = to_pytorch(model, variables)
    assert len(arrays) == len(jax.tree.leaves(variables))
    sizes = sum(array.size for array in arrays.values())
    assert sizes == sum(leaf.size for leaf in jax.tree.leaves(variables))
    torch_names = [layer.torch for layer in layers(model)]
    assert len(set(torch_names)) == len(torch_names)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_have_the_order_of_the_network(name):
  """Whatever is recomputed in training; files without names rely on it."""
  model, _, _ = variables_of(name)
  names = [layer.torch for layer in layers(model)]
  assert [x.torch for x in layers(model.clone(remat=True))] == names
  expected = {
    "iresnet": "layer2.0.prelu layer2.0.conv2 layer2.0.bn3"
    " layer2.0.downsample.0 layer2.0.downsample.1 layer2.1.bn1",
    "squeeze": "layer1.0.bn3 layer1.0.se.fc1 layer1.0.se.fc2"
    " layer1.0.downsample.0",
    "mbf": "layers.1.layers.0 layers.1.layers.1 layers.1.layers.2"
    " layers.2.layers.0.layers.0",
    "mbf_blocks": "layers.1.layers.1.layers.2.layers.1"
    " layers.2.layers.0.layers.0",
    "separable": "layers.1.layers.0 layers.1.layers.1 layers.1.point.layers.0"
    " layers.1.point.layers.1 layers.2.layers.0.layers.0",
    "ir": "input_layer.2 body.0.res_layer.0 body.0.res_layer.1"
    " body.0.res_layer.2 body.0.res_layer.3 body.0.res_layer.4"
    " body.0.res_layer.5 body.0.res_layer.se_block.fc1"
    " body.0.res_layer.se_block.fc2 body.1.res_layer.0",
    "fmobilenet": "stem.prelu stage1_block1_depthwise.conv"
    " stage1_block1_depthwise.bn stage1_block1_depthwise.prelu"
    " stage1_block1_point.conv",
    "vit": "pos_embed mask_token patch_embed.proj blocks.0.norm1"
    " blocks.0.attn.qkv blocks.0.attn.proj blocks.0.norm2 blocks.0.mlp.fc1",
    "edgenext": "stages.1.blocks.0.gamma stages.1.blocks.1.convs.0"
    " stages.1.blocks.1.pos_embd.token_projection stages.1.blocks.1.norm_xca"
    " stages.1.blocks.1.xca.qkv stages.1.blocks.1.xca.temperature"
    " stages.1.blocks.1.xca.proj stages.1.blocks.1.gamma_xca",
  }[name].split()
  first = names.index(expected[0])
  assert names[first : first + len(expected)] == expected


def test_names_of_evolve():
  """As in face.evoLVe's model_irse.py: no normalisation before the PReLU."""
  chosen = {"model.name": "evolve50", "model.squeeze_reduction": 16}
  model = make_model(replaced(Settings(), chosen))
  names = [layer.torch for layer in layers(model)]
  first = names.index("body.3.res_layer.0")
  assert names[first : first + 10] == [
    *(f"body.3.res_layer.{k}" for k in range(5)),
    "body.3.res_layer.5.fc1",
    "body.3.res_layer.5.fc2",
    "body.3.shortcut_layer.0",
    "body.3.shortcut_layer.1",
    "body.4.res_layer.0",
  ]
  assert names[-3:] == ["output_layer.0", "output_layer.3", "output_layer.4"]
  assert "body.0.shortcut_layer.0" not in names


def test_networks_of_half_precision_are_exported_in_full(tmp_path):
  exact = make_workdir(tmp_path / "", "iresnet")
  (tmp_path / "half").mkdir()
  half = make_workdir(tmp_path / "half", "iresnet", dtype="bfloat16")
  path = export(half, "onnx", tmp_path / "x.onnx")
  found = onnx_file.session(path)(pixels(2))
  difference = np.abs(embed(half, pixels(2)) - embed(exact, pixels(2))).max()
  assert difference > 1e-3  # What training in bfloat16 computes.
  np.testing.assert_allclose(found, embed(exact, pixels(2)), atol=1e-4)


def test_a_wrong_graph_gets_no_name(tmp_path, monkeypatch):
  workdir = make_workdir(tmp_path, "iresnet")
  build = onnx_graph.build

  def wrong(model, arrays, metadata, **settings):
    arrays = arrays | {"fc.bias": arrays["fc.bias"] + np.float32(0.01)}
    return build(model, arrays, metadata, **settings)

  monkeypatch.setattr(onnx_graph, "build", wrong)
  with pytest.raises(RunError, match="computes something else"):
    export(workdir, "onnx", tmp_path / "x.onnx")
  assert not list(tmp_path.glob("x.onnx*"))


def test_mistakes_are_one_sentence(run, tmp_path):
  workdir = make_workdir(tmp_path, "iresnet")
  (tmp_path / "old.npz").write_text("old")

  def command(workdir, output, *flags):
    return run(
      "jamsface_jax.export",
      f"--workdir={workdir}",
      "--format=numpy",
      f"--output={output}",
      *flags,
    )

  assert_one_sentence(command(workdir, tmp_path / "old.npz"), "exists")
  assert (tmp_path / "old.npz").read_text() == "old"
  done = command(workdir, tmp_path / "new.npz", "--step=3")
  assert_one_sentence(done, "no checkpoint of step 3")
  assert_one_sentence(command(tmp_path, tmp_path / "new.npz"), "work directory")
  done = command(workdir, tmp_path / "nowhere" / "x.npz")
  assert_one_sentence(done, "cannot be written", "No such file")
  done = command(workdir, tmp_path / "new.npz")
  assert done.returncode == 0, done.stderr
  assert "step 0" in done.stdout


def test_without_the_packages_of_onnx(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  with pytest.raises(InputError, match=r"jamsface-jax\[onnx\]"):
    export("nowhere", "onnx", tmp_path / "x.onnx")
