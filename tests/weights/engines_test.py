"""onnxruntime in the place of JAX gives the same embeddings, and says when not.

Who vouches: JAX's own network, which the exports are compared with too.
"""

import json
import types

import jax
import numpy as np
import pytest
from export_test import SIZE, make_workdir

import jamsface_jax
from jamsface_jax.devices import sharding
from jamsface_jax.embedding.embedder import open_embedder, unit_length
from jamsface_jax.embedding.writing import embed
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import engines, onnx_file
from jamsface_jax.weights.engines import open_in_onnxruntime

NOISE = np.random.default_rng(0).integers(0, 256, (37, SIZE, SIZE, 3), np.uint8)


def rows_of(open_network, workdir, images, *, flip=True, batch_size=16):
  embedder, variables, _ = open_network(
    RunDirectory(str(workdir)),
    step=None,
    batch_size=batch_size,
    flip=flip,
    mesh=sharding.make_mesh(-1),
  )
  blocks = embedder.embed(
    variables, lambda n: images[n], len(images), threads=2
  )
  return np.concatenate(list(blocks))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return make_workdir(tmp_path_factory.mktemp("engines"), "iresnet")


@pytest.mark.parametrize("name", ["iresnet", "mbf", "vit", "edgenext"])
def test_embeddings_are_those_of_jax(tmp_path, name):
  workdir = make_workdir(tmp_path, name)
  found = {}
  for flip in (True, False):
    found[flip] = rows_of(open_in_onnxruntime, workdir, NOISE, flip=flip)
    want = rows_of(open_embedder, workdir, NOISE, flip=flip)
    assert found[flip].dtype == np.float32
    np.testing.assert_allclose(found[flip], want, atol=1e-5 * want.max())
  assert np.abs(found[True] - found[False]).max() > 0.1


def test_a_network_of_half_the_bits_is_computed_in_whole_ones(tmp_path):
  (tmp_path / "half").mkdir()
  half = make_workdir(tmp_path / "half", "iresnet", dtype="bfloat16")
  whole = make_workdir(tmp_path, "iresnet")
  want = rows_of(open_embedder, whole, NOISE)
  found = rows_of(open_in_onnxruntime, half, NOISE)
  np.testing.assert_allclose(found, want, atol=1e-5 * want.max())
  assert np.abs(rows_of(open_embedder, half, NOISE) - want).max() > 1e-3


def test_rows_do_not_depend_on_their_batch(workdir):
  once = rows_of(open_in_onnxruntime, workdir, NOISE)
  turned = rows_of(open_in_onnxruntime, workdir, NOISE[::-1])
  np.testing.assert_array_equal(turned[::-1], once)


def test_files_tell_the_engine_and_go_on_with_it_alone(workdir, tmp_path):
  np.save(tmp_path / "a.npy", NOISE)

  def write(output, name):
    embed(
      RunDirectory(workdir),
      str(tmp_path / "a.npy"),
      str(tmp_path / output),
      root=None,
      color_order="RGB",
      step=None,
      raw=False,
      norms=False,
      float16=False,
      flip=True,
      batch_size=8,
      threads=1,
      open_network=engines.opener(name),
    )
    return np.load(tmp_path / output / "embeddings.npy")

  ours, theirs = write("jax", "jax"), write("onnx", "onnxruntime")
  np.testing.assert_allclose(theirs, ours, atol=1e-5)
  for name, engine in (("jax", "jax"), ("onnx", "onnxruntime")):
    meta = json.loads((tmp_path / name / "meta.json").read_text())
    assert meta["engine"] == engine
  with pytest.raises(InputError, match="engine"):
    write("onnx", "jax")


def test_what_load_gives(workdir):
  rows = jamsface_jax.load(workdir, engine="onnxruntime")(NOISE[:5])
  want = unit_length(rows_of(open_embedder, workdir, NOISE[:5]))
  np.testing.assert_allclose(rows, want, atol=1e-5)


def test_another_network_is_refused(workdir, monkeypatch):
  opened = onnx_file.graph_session

  def other(graph):
    network = opened(graph)
    return lambda images: network(images) * 1.001

  monkeypatch.setattr(onnx_file, "graph_session", other)
  with pytest.raises(RunError, match="onnxruntime computes something else"):
    rows_of(open_in_onnxruntime, workdir, NOISE)


def test_where_it_is_no_use(workdir):
  """Meshes of other machines: what is asked of them, and no more."""
  cpu, gpu = jax.devices()[0], types.SimpleNamespace(platform="gpu")
  for devices, several, part in (
    ([gpu, gpu], False, "this machine has a gpu: leave it out"),
    ([cpu], True, "start one process"),
  ):
    mesh = types.SimpleNamespace(
      devices=np.array(devices), is_multi_process=several
    )
    with pytest.raises(InputError, match=part):
      open_in_onnxruntime(
        RunDirectory(workdir), step=None, batch_size=8, flip=True, mesh=mesh
      )


def test_an_engine_that_there_is_not(workdir):
  with pytest.raises(InputError, match="use one of jax, onnxruntime"):
    jamsface_jax.load(workdir, engine="tensorrt")
