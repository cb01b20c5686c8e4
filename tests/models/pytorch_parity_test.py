"""Networks of PyTorch and those here compute the same, both ways.

Skipped where PyTorch is not installed, which nothing else here needs.
"""

import dataclasses
import json
from collections import OrderedDict

import numpy as np
import pytest

from jamsface_jax.devices import sharding
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.settings.sections import Model
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory  # noqa: E402
from jamsface_jax.weights import weight_files
from jamsface_jax.weights.exporting import export
from jamsface_jax.weights.importing import import_weights

torch = pytest.importorskip(
  "torch", reason="PyTorch, which only this comparison needs, is not installed"
)
import pytorch_networks as networks  # noqa: E402

LIMIT = 1e-4  # Of the largest difference between embeddings.
IMAGES = 4

NETWORKS = {
  "r50": (lambda: networks.IResNet((3, 4, 14, 3)), 43_590_848),
  "mbf": (lambda: networks.MobileFaceNet(), 2_059_520),
  "vit_t": (lambda: networks.ViT(256, 12), 19_137_792),
}


def pixels():
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
  return coarse.repeat(14, axis=1).repeat(14, axis=2)


def run_torch(network):
  images = torch.from_numpy(pixels()).permute(0, 3, 1, 2).float()
  with torch.no_grad():
    return network((images - 127.5) / 127.5).numpy()


def run_jax(workdir):
  mesh = sharding.make_mesh(-1)
  embedder, variables, _ = open_embedder(
    RunDirectory(workdir), step=None, batch_size=8, flip=False, mesh=mesh
  )
  images = pixels()
  blocks = embedder.embed(
    variables, lambda rows: images[rows], IMAGES, threads=1
  )
  return np.concatenate(list(blocks))


def take(path, workdir, **settings):
  import_weights(
    str(path),
    RunDirectory(str(workdir)),
    **{"model": None, "embedding_size": None, "image_size": None}
    | {"color_order": None}
    | settings,
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch_to_jax_and_back(tmp_path, name):
  make, parameters = NETWORKS[name]
  network = networks.randomize(make(), seed=1)
  assert sum(p.numel() for p in network.parameters()) == parameters
  expected = run_torch(network)
  # Embeddings of size one that depend on the image: the limit means something.
  assert 0.1 < expected.std() < 10
  assert np.abs(np.diff(expected, axis=0)).max() > 0.1

  torch.save(network.state_dict(), tmp_path / "network.pth")
  workdir = str(tmp_path / "w")
  take(tmp_path / "network.pth", workdir, model=name)
  imported = run_jax(workdir)
  difference = np.abs(imported - expected).max()
  print(f"{name}: imported, largest difference {difference:.2g}")
  assert difference < LIMIT

  for format in ("safetensors", "numpy"):
    exported = str(tmp_path / f"back.{format}")
    export(
      RunDirectory(workdir), format, exported, step=None, input_dtype="uint8"
    )
    other = networks.randomize(make(), seed=2)
    assert np.abs(run_torch(other) - expected).max() > 0.1
    arrays = weight_files.read(exported).arrays
    other.load_state_dict(
      {key: torch.from_numpy(array.copy()) for key, array in arrays.items()},
      strict=True,
    )
    difference = np.abs(run_torch(other) - imported).max()
    print(f"{name}: exported as {format}, largest difference {difference:.2g}")
    assert difference < LIMIT
    # Not a bit was lost on the way there and back.
    for key, tensor in network.state_dict().items():
      if not key.endswith("num_batches_tracked"):
        np.testing.assert_array_equal(arrays[key], tensor.numpy())


def low_ranks(module, share):
  """EdgeFace: linear layers become two, with `share` of the rank between."""
  for name, child in module.named_children():
    if isinstance(child, torch.nn.Linear):
      inputs, outputs = child.in_features, child.out_features
      rank = max(2, int(min(inputs, outputs) * share))
      parts = {
        "linear1": torch.nn.Linear(inputs, rank, bias=False),
        "linear2": torch.nn.Linear(rank, outputs),
      }
      setattr(module, name, torch.nn.Sequential(OrderedDict(parts)))
    else:
      low_ranks(child, share)


def timm_network(name, share):
  """A network of timm's as EdgeFace has it, with random values."""
  timm = pytest.importorskip("timm", reason="timm is not installed")
  network = timm.create_model(name, num_classes=512)
  if share:
    low_ranks(network, share)
  with torch.no_grad():
    for part, values in networks.randomize(network, seed=1).named_parameters():
      if part.rpartition(".")[2].startswith(("gamma", "temperature")):
        values.uniform_(0.5, 1.5)
  return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "of_timm", "share"),
  [
    ("edgeface_xxs", "edgenext_xx_small", 0),
    ("edgeface_xs", "edgenext_x_small", 0.6),
    ("edgeface_s", "edgenext_small", 0.5),
    ("edgeface_base", "edgenext_base", 0),
  ],
)
def test_edgeface_is_what_timm_makes(tmp_path, name, of_timm, share):
  network = timm_network(of_timm, share)
  torch.save(
    {f"model.{k}": v for k, v in network.state_dict().items()},
    tmp_path / "network.pt",
  )
  take(tmp_path / "network.pt", tmp_path / "w", model=name)
  expected = run_torch(network)
  assert np.abs(np.diff(expected, axis=0)).max() > 0.1
  difference = np.abs(run_jax(str(tmp_path / "w")) - expected).max()
  print(f"{name}: largest difference {difference:.2g} of {expected.std():.2g}")
  assert difference < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["edgeface_xs", "vit_t", "mbf"])
def test_graphs_of_pytorchs_exporters(tmp_path, name, dynamo):
  """Its linear layers on tokens have kernels without names."""
  pytest.importorskip("onnxscript", reason="onnxscript is not installed")
  if name in NETWORKS:
    network = networks.randomize(NETWORKS[name][0](), seed=1).eval()
  else:
    network = timm_network("edgenext_x_small", 0.6)
  path = str(tmp_path / "network.onnx")
  images = torch.zeros(1, 3, 112, 112)
  torch.onnx.export(network, images, path, dynamo=dynamo)
  take(path, tmp_path / "w", model=name)
  difference = np.abs(run_jax(str(tmp_path / "w")) - run_torch(network)).max()
  assert difference < LIMIT


@pytest.mark.slow
def test_squeeze_and_excitation(tmp_path):
  network = networks.randomize(networks.IResNet((1, 1, 1, 1), 16), seed=3)
  torch.save(network.state_dict(), tmp_path / "network.pth")
  settings = {
    **read_config_of("iresnet", tmp_path),
    "stages": (1, 1, 1, 1),
    "squeeze_reduction": 16,
  }
  arrays = {k: v.numpy() for k, v in network.state_dict().items()}
  path = str(tmp_path / "network.npz")
  weight_files.write_npz(path, arrays, {"model": json.dumps(settings)})
  take(path, tmp_path / "w")
  taken = read_settings(RunDirectory(str(tmp_path / "w")))
  assert taken.model.squeeze_reduction == 16
  difference = np.abs(run_jax(str(tmp_path / "w")) - run_torch(network)).max()
  assert difference < LIMIT


def read_config_of(name, tmp_path):
  """The settings of a model as an exported file has them."""
  return dataclasses.asdict(Model(name=name))


@pytest.mark.slow
def test_networks_trained_on_bgr_take_rgb(tmp_path):
  network = networks.randomize(networks.MobileFaceNet(), seed=4)
  torch.save(network.state_dict(), tmp_path / "network.pth")
  take(tmp_path / "network.pth", tmp_path / "w", model="mbf", color_order="BGR")
  images = torch.from_numpy(pixels()[..., ::-1].copy()).permute(0, 3, 1, 2)
  with torch.no_grad():
    expected = network((images.float() - 127.5) / 127.5).numpy()
  assert np.abs(run_jax(str(tmp_path / "w")) - expected).max() < LIMIT
  assert np.abs(run_torch(network) - expected).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
  "wrap",
  [
    lambda state: {"state_dict_backbone": state, "epoch": 3, "rate": 0.1},
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {f"x{k}": v for k, v in enumerate(state.values())},
    lambda state: {key: value.half() for key, value in state.items()},
  ],
  ids=["checkpoint", "prefix", "order", "half"],
)
def test_other_files_of_pytorch(tmp_path, wrap):
  network = networks.randomize(networks.MobileFaceNet(), seed=5)
  torch.save(wrap(network.state_dict()), tmp_path / "network.pth")
  take(tmp_path / "network.pth", tmp_path / "w", model="mbf")
  export(
    RunDirectory(str(tmp_path / "w")),
    "numpy",
    str(tmp_path / "back.npz"),
    step=None,
    input_dtype="uint8",
  )
  arrays = weight_files.read(str(tmp_path / "back.npz")).arrays
  for key, tensor in network.state_dict().items():
    if key in arrays:
      np.testing.assert_allclose(
        arrays[key], tensor.numpy(), rtol=1e-3, atol=1e-6
      )
  assert len(arrays) == sum(t.ndim > 0 for t in network.state_dict().values())
