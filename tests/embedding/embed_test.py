"""The command: killed, started again, on several processes, with mistakes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import assert_one_sentence

import jamsface_jax
from jamsface_jax.data.images import Block
from jamsface_jax.embedding import writing
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.storage.run_directory import RunDirectory

EMBED = "jamsface_jax.embed"
FILES = ["embeddings.npy", "labels.npy", "meta.json", "paths.txt"]


def embed(workdir, images, output, **changes):
  """The command without its flags."""
  writing.embed(
    RunDirectory(str(workdir)),
    str(images),
    str(output),
    **{
      "root": None,
      "color_order": None,
      "step": None,
      "raw": False,
      "norms": False,
      "float16": False,
      "flip": True,
      "batch_size": 8,
      "threads": None,
    }
    | changes,
  )
  return np.load(output / "embeddings.npy", mmap_mode="r")


def contents(directory):
  return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.slow
def test_folder_and_data_set_agree(
  run, untrained, dataset, image_folder, tmp_path
):
  flags = (f"--workdir={untrained}", "--batch_size=16")
  for name, images in (("d", dataset), ("f", image_folder / "images")):
    out = tmp_path / name
    done = run(EMBED, *flags, f"--images={images}", f"--output={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stdout.startswith(
      f"37 embeddings of 32 numbers in {out}/embeddings.npy ("
    )
    assert "images/s)" in done.stdout
    assert sorted(os.listdir(out)) == FILES
    rows = np.load(out / "embeddings.npy", mmap_mode="r")
    assert rows.shape == (37, 32) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    paths = (out / "paths.txt").read_text().splitlines()
    labels = np.load(out / "labels.npy")
    assert [f"Person_{k:02d}" for k in labels] == [p[:9] for p in paths]
    meta = json.loads((out / "meta.json").read_text())
    assert meta["color_order"] == "RGB" and meta["step"] == 1
    assert meta["images"] == 37 and meta["broken"] == 0
  for name in ("embeddings.npy", "labels.npy", "paths.txt"):
    a, b = ((tmp_path / k / name).read_bytes() for k in "df")
    assert a == b


def test_rows_are_those_of_load(untrained, image_folder, tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (21, 40, 50, 3), np.uint8)
  np.save(tmp_path / "a.npy", images)
  rows = embed(untrained, tmp_path / "a.npy", tmp_path / "e", color_order="RGB")
  embedder = jamsface_jax.load(untrained)
  np.testing.assert_allclose(rows, embedder(images), atol=1e-6)
  assert np.load(tmp_path / "e" / "labels.npy").tolist() == [-1] * 21
  assert (tmp_path / "e" / "paths.txt").read_text().split() == [
    str(k) for k in range(21)
  ]


def test_raw_norms_and_half_precision(untrained, image_folder, tmp_path):
  images = image_folder / "images"
  raw = embed(untrained, images, tmp_path / "raw", raw=True)
  norms = np.sqrt((np.asarray(raw, np.float64) ** 2).sum(axis=1))
  unit = embed(untrained, images, tmp_path / "half", norms=True, float16=True)
  assert unit.dtype == np.float16
  np.testing.assert_allclose(unit, raw / norms[:, None], atol=1e-3)
  got = np.load(tmp_path / "half" / "norms.npy")
  assert got.dtype == np.float32 and norms.std() > 0
  np.testing.assert_allclose(got, norms, rtol=1e-5)
  assert not (tmp_path / "raw" / "norms.npy").exists()
  plain = embed(untrained, images, tmp_path / "plain", raw=True, flip=False)
  assert np.abs(plain - raw).max() > 1e-2


def test_broken_images_are_nan_and_listed(untrained, image_folder, tmp_path):
  good = embed(untrained, image_folder / "images", tmp_path / "good")
  shutil.copytree(image_folder / "images", tmp_path / "in")
  names = (tmp_path / "good" / "paths.txt").read_text().splitlines()
  broken = [3, 8, 36]
  for row in broken:
    (tmp_path / "in" / names[row]).write_bytes(b"\xff\xd8 no image")
  rows = embed(untrained, tmp_path / "in", tmp_path / "e", norms=True)
  assert np.isnan(rows[broken]).all()
  sound = np.setdiff1d(np.arange(37), broken)
  np.testing.assert_array_equal(rows[sound], good[sound])
  norms = np.load(tmp_path / "e" / "norms.npy")
  assert np.flatnonzero(np.isnan(norms)).tolist() == broken
  lines = (tmp_path / "e" / "broken.txt").read_text().splitlines()
  fields = [line.split("\t") for line in lines]
  assert [f[:2] for f in fields] == [[str(k), names[k]] for k in broken]
  assert all("broken JPEG" in f[2] for f in fields)
  assert (tmp_path / "e" / "paths.txt").read_text().splitlines() == names
  assert json.loads((tmp_path / "e" / "meta.json").read_text())["broken"] == 3


@pytest.mark.parametrize(
  ("value", "dtype"), [(np.nan, "float32"), (1e6, "float16")]
)
def test_embeddings_that_are_not_finite_stop_the_run(value, dtype):
  raw = np.ones((3, 4), np.float32)
  raw[1] = value
  pixels = np.zeros((3, 2, 2, 3), np.uint8)
  block = Block(pixels, ["a", "b", "c"], np.zeros(3, np.int64), {})
  with pytest.raises(RunError, match=f"'b' is not a finite {dtype}"):
    writing._rows(raw, block, scale=False, dtype=dtype)


# Runs that are killed. Enough images that there is a middle.
MANY = 4000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """An array of noise images, and what a run without a kill makes of it."""
  root = tmp_path_factory.mktemp("many")
  rng = np.random.default_rng(0)
  np.save(root / "many.npy", rng.integers(0, 256, (MANY, 32, 32, 3), np.uint8))
  return root / "many.npy"


@pytest.fixture(scope="module")
def whole(many, untrained, tmp_path_factory):
  output = tmp_path_factory.mktemp("whole")
  done = subprocess.run(
    command(untrained, many, output), env=environment(2), timeout=300
  )
  assert done.returncode == 0
  return contents(output)


def command(workdir, many, output, *flags):
  return [
    sys.executable,
    "-m",
    EMBED,
    f"--workdir={workdir}",
    f"--images={many}",
    f"--output={output}",
    "--color_order=RGB",
    "--batch_size=16",
    "--norms",
    *flags,
  ]


def environment(devices):
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
  }


def start(*arguments):
  return subprocess.Popen(
    command(*arguments),
    env=environment(2),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def blocks_done(output, process="*"):
  """What the journals say."""
  lines = [
    line
    for path in output.glob(f"journal-{process}.jsonl")
    for line in path.read_text().splitlines()
  ]
  return sorted(json.loads(line)["block"] for line in lines if line[-1:] == "}")


def wait_for_blocks(output, count, processes):
  """Waits until each has written so many."""
  for number in range(len(processes)):
    while len(blocks_done(output, number)) < count:
      assert all(process.poll() is None for process in processes)
      time.sleep(0.005)


@pytest.mark.slow
def test_killed_in_the_middle(untrained, many, whole, tmp_path):
  output = tmp_path / "e"
  process = start(untrained, many, output)
  wait_for_blocks(output, 40, [process])
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  done = blocks_done(output)
  assert 40 <= len(done) < MANY // 16  # It was in the middle.
  assert not any((output / name).exists() for name in FILES)
  # What was damaged since is done again, and nothing else.
  partial = output / "embeddings.npy.partial"
  rows = np.lib.format.open_memmap(partial, "r+")
  assert np.any(rows[done[-1] * 16])
  rows[done[5] * 16] = 9
  rows.flush()
  again = start(untrained, many, output)
  out, errors = again.communicate(timeout=300)
  assert again.returncode == 0, errors
  before = 16 * (len(done) - 1)
  assert f"{before:,} of 4,000 images were embedded before" in out
  assert contents(output) == whole
  # Once more: nothing to do.
  again = start(untrained, many, output)
  out, errors = again.communicate(timeout=300)
  assert again.returncode == 0, errors
  assert "4,000 of 4,000 images were embedded before" in out
  assert contents(output) == whole


def start_two(workdir, many, output, *flags):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [
    start(
      workdir,
      many,
      output,
      f"--coordinator=127.0.0.1:{port}",
      "--num_processes=2",
      f"--process_id={k}",
      *flags,
    )
    for k in range(2)
  ]


@pytest.mark.slow
def test_two_processes_killed_and_finished(untrained, many, whole, tmp_path):
  output = tmp_path / "e"
  processes = start_two(untrained, many, output)
  wait_for_blocks(output, 10, processes)
  for process in processes:
    process.send_signal(signal.SIGKILL)
  for process in processes:
    process.communicate()
  done = blocks_done(output)
  assert 20 <= len(done) < MANY // 16
  assert min(done) < MANY // 32 <= max(done)  # A half each.
  processes = start_two(untrained, many, output)
  outputs = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert f"{16 * len(done):,} of 4,000 images" in outputs[0][0]
  assert "4,000 embeddings of 32 numbers" in outputs[0][0]
  assert "embedd" not in outputs[1][0]  # Said once.
  assert contents(output) == whole


@pytest.mark.slow
def test_one_of_two_processes_dies(untrained, many, whole, tmp_path):
  """The other ends too, instead of waiting; then one goes on alone."""
  output = tmp_path / "e"
  processes = start_two(untrained, many, output, "--process_timeout=8")
  wait_for_blocks(output, 5, processes)
  processes[1].send_signal(signal.SIGKILL)
  processes[1].communicate()
  _, errors = processes[0].communicate(timeout=120)
  assert processes[0].returncode, errors
  assert "process 1 of 2" in errors
  # The living one had done its half, which is kept.
  done = blocks_done(output)
  assert len(blocks_done(output, 0)) == MANY // 32 < len(done) < MANY // 16
  alone = start(untrained, many, output)
  out, errors = alone.communicate(timeout=300)
  assert alone.returncode == 0, errors
  assert f"{16 * len(done):,} of 4,000 images" in out
  assert contents(output) == whole


@pytest.mark.slow
def test_two_processes_are_both_refused(untrained, many, tmp_path):
  output = tmp_path / "e"
  output.mkdir()
  (output / "meta.json").write_text("{}")
  processes = start_two(untrained, many, output)
  outputs = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [2, 2], outputs
  assert "holds other embeddings" in outputs[0][1]
  assert "process 0 of 2" in outputs[1][1]
  assert "holds other embeddings" in outputs[1][1]


def test_another_run_is_refused(untrained, image_folder, tmp_path):
  images = shutil.copytree(image_folder / "images", tmp_path / "in")
  embed(untrained, images, tmp_path / "e")
  before = contents(tmp_path / "e")
  for changes, part in (
    ({"step": 0}, "step is 1 there and 0 here; network is"),
    ({"flip": False}, "flip is True there and False here"),
    ({"batch_size": 16}, "block is 8 there and 16 here"),
    ({"float16": True}, "dtype is 'float32' there"),
    ({"raw": True}, "normalized is True there"),
    ({"norms": True}, "norms is False there"),
  ):
    with pytest.raises(InputError, match=part):
      embed(untrained, images, tmp_path / "e", **changes)
  moved = shutil.copytree(untrained, tmp_path / "w")
  embed(moved, images, tmp_path / "e")  # The same network.
  (images / "Person_00" / "new.jpg").write_bytes(b"")
  with pytest.raises(InputError, match="images is 37 there and 38 here"):
    embed(untrained, images, tmp_path / "e")
  (images / "Person_00" / "new.jpg").unlink()
  (images / "Person_05" / "Person_05_0002.jpg").write_bytes(b"")
  with pytest.raises(InputError, match="source_fingerprint is"):
    embed(untrained, images, tmp_path / "e")
  assert contents(tmp_path / "e") == before


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--images=/nowhere"], ["'/nowhere'", "does not exist"]),
    (["--images=constraints.txt"], ["'constraints.txt'", "--root"]),
    (["--images=configs"], ["'configs'", "has no image"]),
    (["--images=IMAGES", "--batch_size=7"], ["--batch_size=7", "multiple"]),
    (["--images=IMAGES", "--batch_size=0"], ["--batch_size=0", "above 0"]),
    (["--images=IMAGES", "--threads=-1"], ["--threads=-1", "above 0"]),
    (["--images=IMAGES", "--step=5"], ["no checkpoint of step 5", "0, 1"]),
    (["--images=IMAGES", "--workdir=configs"], ["not a work directory"]),
    (["--images=IMAGES", "--output=setup.cfg"], ["'setup.cfg'", "written"]),
    (["--images=IMAGES", "--color_order=BGR"], ["belongs to an array"]),
    (["--images=ARRAY"], ["an array", "--color_order=RGB"]),
    (["--images=ARRAY", "--color_order=BGR"], ["is BGR", "[..., ::-1]"]),
    (["--images=IMAGES", "--process_id=1"], ["all three or none"]),
  ],
)
def test_mistakes_are_one_sentence(
  run, untrained, image_folder, many, tmp_path, flags, parts
):
  flags = [
    flag.replace("IMAGES", str(image_folder / "images")).replace(
      "ARRAY", str(many)
    )
    for flag in flags
  ]
  output = tmp_path / "e"
  done = run(
    EMBED, f"--workdir={untrained}", f"--output={output}", *flags, devices=2
  )
  assert_one_sentence(done, *parts)
  assert not output.exists()
