"""Of two writers of one output the second is refused; nothing is mixed."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import convert

from data_prep import align, clean, from_search, inspect
from data_prep.writing.verification_set import write_verification_set
from jamsface_jax import evaluate, model_card, report
from jamsface_jax.embedding.writing import embed
from jamsface_jax.errors import InputError
from jamsface_jax.storage import lock
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights.exporting import export


def run_main(monkeypatch, module, *flags):
  monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
  return module.main()


def converting(_, images, output):
  convert(images, output)


def aligning(_, images, output):
  align.align(
    str(images / "images"),
    str(output),
    lambda *_: None,
    origin={},
    size=32,
    extension="png",
    skip_bad=False,
    threads=1,
  )


def searching(_, images, output):
  root = images / "search"
  for part in ("probe", "gallery"):
    (root / part / "p").mkdir(parents=True, exist_ok=True)
    picture = images / "images" / "Person_00" / "Person_00_0001.jpg"
    (root / part / "p" / "1.jpg").write_bytes(picture.read_bytes())
  from_search.convert(
    str(root), str(output), name="t", skip_bad=False, threads=1
  )


def pairing(_, images, output):
  from data_prep.formats.pair_protocols import Pair

  folder = images / "images"
  names = sorted(
    str(path.relative_to(folder)) for path in folder.rglob("*.jpg")
  )
  pairs = [
    Pair(names[k], names[k + 1], k % 2 == 0, k // 2 % 2) for k in range(8)
  ]
  write_verification_set(
    str(output),
    name="t",
    source="test",
    images={name: name.split("/")[0] for name in names},
    load=lambda name: (folder / name).read_bytes(),
    pairs=pairs,
    skip_bad=False,
    threads=1,
  )


def embedding(run, images, output):
  embed(
    run,
    str(images / "images"),
    str(output),
    root=None,
    color_order=None,
    step=None,
    raw=False,
    norms=False,
    float16=False,
    flip=False,
    batch_size=None,
    threads=1,
  )


def evaluating(run, images, output):
  arguments = evaluate.argparse.Namespace(
    against="",
    fars=None,
    pooling=[],
    bootstrap=0,
    embeddings=None,
    workdir=run.path,
    data=str(images),
    protocol=None,
    step=None,
    flip=None,
    output=str(output),
  )
  evaluate.evaluate(arguments)


DIRECTORIES = [converting, aligning, searching, pairing, embedding, evaluating]


@pytest.mark.parametrize("write", DIRECTORIES)
def test_second_writer_of_a_directory(write, untrained, image_folder, tmp_path):
  run, output = RunDirectory(untrained), tmp_path / "out"
  with lock.hold(str(output), "--output"):
    with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
      write(run, image_folder, output)
    assert os.listdir(output) == ["lock"]
  assert not output.exists()


def test_second_inspection(dataset, tmp_path):
  output = str(tmp_path / "out")
  with (
    lock.hold(output, "--output"),
    pytest.raises(InputError, match="in use by process"),
  ):
    inspect.inspect(
      dataset, against=None, output=output, faces=False, threads=1
    )


def test_second_writer_of_a_file(untrained, tmp_path, monkeypatch):
  run, output = RunDirectory(untrained), str(tmp_path / "out")
  np.save(tmp_path / "embeddings.npy", np.eye(3, dtype=np.float32))
  np.save(tmp_path / "labels.npy", np.zeros(3, np.int64))
  (tmp_path / "paths.txt").write_text("a\nb\nc\n")
  listing = dict.fromkeys(
    ("min_similarity", "class_similarity", "duplicate_similarity"), 0.5
  )
  flag = f"--output={output}"
  with lock.hold_file(output, "--output"):
    for write in (
      lambda: export(run, "numpy", output, step=None, input_dtype="uint8"),
      lambda: clean.clean(str(tmp_path), output, **listing),
      lambda: run_main(monkeypatch, report, untrained, flag),
      lambda: run_main(monkeypatch, model_card, untrained, flag),
    ):
      with pytest.raises(InputError, match=f"--output='{output}' is in use by"):
        write()


@pytest.mark.parametrize("write", [*DIRECTORIES, "export", "report"])
def test_outputs_are_tried_before_the_work(
  write, untrained, image_folder, tmp_path, monkeypatch
):
  """A file in the place of a folder stands for what cannot be written to."""
  run, output = RunDirectory(untrained), tmp_path / "file" / "out"
  (tmp_path / "file").write_text("")

  def work(*_, **__):
    raise AssertionError("The work has begun.")

  monkeypatch.setattr("data_prep.writing.conversion.write_shard", work)
  monkeypatch.setattr("jamsface_jax.embedding.writing.open_embedder", work)
  monkeypatch.setattr("jamsface_jax.evaluate.judge_network", work)
  monkeypatch.setattr("jamsface_jax.weights.exporting.open_embedder", work)
  monkeypatch.setattr("jamsface_jax.report.write", work)
  with pytest.raises(InputError, match="cannot be written to"):
    if write == "export":
      export(run, "numpy", str(output), step=None, input_dtype="uint8")
    elif write == "report":
      run_main(monkeypatch, report, untrained, f"--output={output}")
    else:
      write(run, image_folder, output)


FORKED = """
import contextlib, io, json, os, random, shutil, sys, traceback
from data_prep import from_folder
from jamsface_jax.errors import InputError
one, other, output, count = sys.argv[1:]
rng = random.Random(0)

def convert(source, delay):
  import time
  time.sleep(delay)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      from_folder.convert(source, output, name="t", identities=None,
        min_images=1, pairs=None, skip_bad=False, exclude=None, threads=1,
        shard_bytes=4000)
  except InputError as error:
    known = "is in use by", "holds a data set", "another conversion"
    if any(one in str(error) for one in known):
      os._exit(2)
    print(error, file=sys.stderr, flush=True)
    os._exit(3)
  except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(4)
  os._exit(0)

def files(directory):
  return {name: open(os.path.join(directory, name), "rb").read()
    for name in sorted(os.listdir(directory))}

whole = []
for source in (one, other):
  if (child := os.fork()) == 0:
    convert(source, 0)
  assert os.waitpid(child, 0)[1] == 0
  whole.append(files(output))
  shutil.rmtree(output)
ends = {}
for _ in range(int(count)):
  children = []
  for source in (one, other) if rng.random() < 0.8 else (one, one):
    delay = rng.uniform(0, 0.03)
    if (child := os.fork()) == 0:
      convert(source, delay)
    children.append(child)
  codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
  assert sorted(codes) == [0, 2], codes
  assert files(output) in whole, "mixed"
  shutil.rmtree(output)
print("never mixed")
"""


@pytest.mark.slow
def test_a_hundred_pairs_of_writers_never_mix(image_folder, tmp_path):
  """Two conversions of other images into one output, at random moments."""
  for name, people in (("one", range(6)), ("other", range(6, 12))):
    for k in people:
      folder = tmp_path / name / f"p{k}"
      folder.parent.mkdir(exist_ok=True)
      os.symlink(image_folder / "images" / f"Person_{k:02d}", folder)
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      FORKED,
      tmp_path / "one",
      tmp_path / "other",
      tmp_path / "out",
      "100",
    ],
    capture_output=True,
    text=True,
  )
  assert done.stdout == "never mixed\n", done.stderr
