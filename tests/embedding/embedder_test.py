"""Embeddings depend on their image alone; `load` gives the same."""

import os
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from conftest import save_untrained
from jax.sharding import NamedSharding

import jamsface_jax
from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.devices import sharding
from jamsface_jax.embedding import face_embedder
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.errors import InputError
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

NOISE = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), np.uint8)


def embed(workdir, images, *, batch_size, mesh, flip=True, step=None):
  embedder, variables, _ = open_embedder(
    RunDirectory(workdir),
    step=step,
    batch_size=batch_size,
    flip=flip,
    mesh=mesh,
  )
  blocks = embedder.embed(
    variables, lambda n: images[n], len(images), threads=2
  )
  return np.concatenate(list(blocks))


def test_rows_do_not_depend_on_their_batch(untrained, mesh):
  once = embed(untrained, NOISE, batch_size=16, mesh=mesh)
  assert once.shape == (37, 32) and once.dtype == np.float32
  # Other neighbours, another place in the batch: not a bit changes.
  turned = embed(untrained, NOISE[::-1], batch_size=16, mesh=mesh)
  np.testing.assert_array_equal(turned[::-1], once)
  black = NOISE.copy()
  black[1::2] = 0
  black = embed(untrained, black, batch_size=16, mesh=mesh)
  np.testing.assert_array_equal(black[::2], once[::2])
  # Another program: the order of sums may change.
  for batch_size in (8, 40, 64):
    other = embed(untrained, NOISE, batch_size=batch_size, mesh=mesh)
    np.testing.assert_allclose(other, once, atol=1e-5)


def test_rows_do_not_depend_on_the_number_of_devices(untrained):
  eight = embed(untrained, NOISE, batch_size=16, mesh=sharding.make_mesh(-1))
  alone = jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  one = embed(untrained, NOISE, batch_size=16, mesh=alone)
  np.testing.assert_allclose(one, eight, atol=1e-5)


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_pieces_of_a_batch_are_the_batch(untrained, monkeypatch, mesh, cores):
  """Of sizes that fill it, that leave something over, and larger than it."""
  run = RunDirectory(untrained)
  model = make_model(read_settings(run))
  monkeypatch.setattr(os, "cpu_count", lambda: 8 * cores)
  embedder, variables, _ = open_embedder(
    run, step=None, batch_size=40, flip=False, mesh=mesh
  )
  images = np.concatenate([NOISE, NOISE[:3]])
  rows = embedder.start(variables, images)
  whole = model.apply(variables, normalize(images), train=False)
  np.testing.assert_allclose(rows, whole, atol=1e-5)


def test_a_large_batch_needs_the_memory_of_a_small_one(untrained):
  mesh = sharding.make_mesh(-1)
  sizes = []
  for batch_size in (64, 1024):
    embedder, variables, _ = open_embedder(
      RunDirectory(untrained),
      step=None,
      batch_size=batch_size,
      flip=True,
      mesh=mesh,
    )
    images = jax.ShapeDtypeStruct(
      (batch_size, 32, 32, 3),
      np.uint8,
      sharding=NamedSharding(mesh, sharding.BATCH),
    )
    program = embedder._forward.lower(variables, images).compile()
    sizes.append(program.memory_analysis().temp_size_in_bytes)
  # Taken whole, the large one needs sixteen times as much.
  assert sizes[1] < 3 * sizes[0]


def test_flipped_image_has_the_same_embedding(untrained):
  mesh = sharding.make_mesh(-1)
  for flip in (True, False):
    plain, mirrored = (
      embed(untrained, x, batch_size=8, mesh=mesh, flip=flip)
      for x in (NOISE[:8], NOISE[:8, :, ::-1])
    )
    assert np.allclose(plain, mirrored, atol=1e-5) == flip


def test_flip_adds_the_mirrored_image(untrained):
  mesh = sharding.make_mesh(-1)
  plain, mirrored = (
    embed(untrained, x, batch_size=8, mesh=mesh, flip=False)
    for x in (NOISE[:8], np.ascontiguousarray(NOISE[:8, :, ::-1]))
  )
  both = embed(untrained, NOISE[:8], batch_size=8, mesh=mesh)
  np.testing.assert_allclose(both, plain + mirrored, atol=1e-5)


def test_channels_matter(untrained):
  """Else nothing would notice BGR."""
  mesh = sharding.make_mesh(-1)
  rgb = embed(untrained, NOISE, batch_size=40, mesh=mesh)
  bgr = embed(untrained, NOISE[..., ::-1], batch_size=40, mesh=mesh)
  assert np.abs(rgb - bgr).max() > 1e-2


def test_network_of_other_colors_is_refused(tmp_path):
  save_untrained(str(tmp_path), steps=(3,), color_order="BGR")
  with pytest.raises(InputError, match="takes BGR images.*decode to RGB"):
    jamsface_jax.load(str(tmp_path))


@pytest.fixture(scope="module")
def embedder(untrained):
  return jamsface_jax.load(untrained)


def test_load_agrees_with_batches(untrained, embedder):
  raw = embed(untrained, NOISE, batch_size=40, mesh=sharding.make_mesh(-1))
  rows = embedder(NOISE)
  assert rows.shape == (37, 32) and rows.dtype == np.float32
  lengths = np.sqrt((raw.astype(np.float64) ** 2).sum(axis=1))
  np.testing.assert_allclose(rows, raw / lengths[:, None], atol=1e-6)
  np.testing.assert_allclose(embedder(NOISE, raw=True), raw, atol=1e-5)
  assert embedder.image_size == 32 and embedder.embedding_size == 32
  assert embedder.step == 1 and embedder.color_order == "RGB"
  first = jamsface_jax.load(untrained, step=0, flip=False)
  want = embed(
    untrained,
    NOISE,
    batch_size=40,
    mesh=sharding.make_mesh(-1),
    flip=False,
    step=0,
  )
  np.testing.assert_allclose(first(NOISE, raw=True), want, atol=1e-5)
  assert np.abs(want - raw).max() > 1e-2


def test_any_number_of_images(embedder):
  rows = embedder(NOISE)
  one = embedder(NOISE[5])
  assert one.shape == (32,)
  np.testing.assert_allclose(one, rows[5], atol=1e-6)
  for count in (0, 1, 2, 3, 9):
    some = embedder(NOISE[:count])
    assert some.shape == (count, 32)
    np.testing.assert_allclose(some, rows[:count], atol=1e-6)
  listed = embedder([NOISE[7], NOISE[2]])
  np.testing.assert_allclose(listed, rows[[7, 2]], atol=1e-6)


def test_more_images_than_a_batch(embedder, monkeypatch):
  monkeypatch.setattr(face_embedder, "_MOST", 2)  # 16 on eight devices.
  rows = embedder(NOISE)
  monkeypatch.undo()
  np.testing.assert_allclose(rows, embedder(NOISE), atol=1e-6)


def test_images_of_other_sizes_are_scaled(embedder):
  large = np.random.default_rng(1).integers(0, 256, (2, 70, 50, 3), np.uint8)
  small = [cv2.resize(x, (32, 32), interpolation=cv2.INTER_AREA) for x in large]
  np.testing.assert_array_equal(embedder(large), embedder(small))


@pytest.mark.parametrize(
  ("images", "part"),
  [
    ([NOISE[0], NOISE[0, :16]], r"2 shapes, \(16, 32, 3\) and \(32, 32, 3\)"),
    (NOISE / 255, "float64"),
    (NOISE[..., 0], r"uint8 \[37, 32, 32\] given"),
    (NOISE[..., :1], r"uint8 \[37, 32, 32, 1\] given"),
    (NOISE[None], r"uint8 \[1, 37, 32, 32, 3\] given"),
    ([], "give paths"),
  ],
)
def test_what_are_no_images_is_refused(embedder, images, part):
  with pytest.raises(InputError, match=part):
    embedder(images)


def test_load_refuses_what_is_no_work_directory(tmp_path, untrained):
  with pytest.raises(InputError, match="not a work directory"):
    jamsface_jax.load(str(tmp_path))
  with pytest.raises(InputError, match="of step 7: it has 0, 1"):
    jamsface_jax.load(untrained, step=7)


def test_two_lines_print_nothing(untrained):
  code = f"import jamsface_jax; jamsface_jax.load({untrained!r})"
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_importing_the_package_is_cheap():
  code = (
    "import sys, jamsface_jax; jamsface_jax.load;"
    "sys.exit(bool({'jax', 'numpy', 'cv2'} & set(sys.modules)))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
