"""Every command that has a work directory or an output, against a bucket.

What answers is the stand-in of `gcs_server`, which says who vouches for it; the
clients are the real ones.
"""

import importlib
import json
import os
import re

import numpy as np
import pytest

import jamsface_jax
from jamsface_jax.commands import commands
from jamsface_jax.errors import InputError
from jamsface_jax.storage.bucket import Bucket

RUN = "gs://commands/finished"
OUT = "gs://commands/out"
LENGTH = 2  # Steps.


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="module")
def bucket(gcs, cache, run, dataset):
  """A finished run of `main` and its data set, in a bucket."""
  data = Bucket("gs://commands/tiny")
  files = [n for n in os.listdir(dataset) if n != "lock"]
  data.upload({n: os.path.join(dataset, n) for n in files})
  done = run(
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    f"--workdir={RUN}",
    f"--config.schedule.length={LENGTH}",
    f"--config.data.directory={data.address}",
    f"--config.evaluation.data={data.address}",
  )
  assert done.returncode == 0, done.stderr
  return Bucket("gs://commands")


def call(monkeypatch, command, *flags):
  """Runs a command in this process, as `run_command` would."""
  monkeypatch.setattr("sys.argv", [command, *map(str, flags)])
  return importlib.import_module(command).main()


def images(root):
  return root / "images" / "Person_00"


# Flags of each command, and an object that is there afterwards.
TABLE = {
  "evaluate": (
    [f"--workdir={RUN}", "--data=gs://commands/tiny"],
    "finished/evaluation/results.json",
  ),
  "evaluate, output": (
    [f"--workdir={RUN}", "--data=gs://commands/tiny", f"--output={OUT}/e"],
    "out/e/results.json",
  ),
  "embed": (
    [f"--workdir={RUN}", "--images=IMAGES", f"--output={OUT}/embedded"],
    "out/embedded/meta.json",
  ),
  "search": (
    [
      f"--workdir={RUN}",
      "--gallery=IMAGES",
      "--images=IMAGES",
      "--threshold=0.5",
      f"--output={OUT}/found",
    ],
    "out/found/names.html",
  ),
  "export": (
    [f"--workdir={RUN}", "--format=numpy", f"--output={OUT}/weights.npz"],
    "out/weights.npz",
  ),
  "import_weights": (
    ["--input=WEIGHTS", "--workdir=gs://commands/imported"],
    "imported/config.json",
  ),
  "report": ([RUN], "finished/report.html"),
  "report, output": ([RUN, f"--output={OUT}/r.html"], "out/r.html"),
  "model_card": ([RUN], "finished/model_card.md"),
  "model_card, output": ([RUN, f"--output={OUT}/card.md"], "out/card.md"),
  "doctor": (
    [f"--workdir={RUN}", "--data=gs://commands/tiny"],
    "finished/config.json",
  ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_command_reads_and_writes_there(
  name, bucket, image_folder, tmp_path, monkeypatch, capsys
):
  flags, there = TABLE[name]
  if name == "import_weights":
    export = importlib.import_module("jamsface_jax.export")
    monkeypatch.setattr(
      "sys.argv",
      ["", f"--workdir={RUN}", "--format=numpy", f"--output={tmp_path}/w.npz"],
    )
    export.main()
  names = {"IMAGES": images(image_folder), "WEIGHTS": tmp_path / "w.npz"}
  words = [
    re.sub("IMAGES|WEIGHTS", lambda m: str(names[m[0]]), one) for one in flags
  ]
  before = bucket.blobs()
  command = f"jamsface_jax.{name.partition(',')[0]}"
  assert not call(monkeypatch, command, *words), capsys.readouterr().out
  after = bucket.blobs()
  if name == "doctor":
    assert after == before  # It looks, and leaves nothing.
    return
  assert after[there] != before.get(there)
  locks = [one for one in after if one.split("/")[-1].endswith("lock")]
  assert not locks and not any("doctor-" in one for one in after)
  if name in ("embed", "export", "search", "import_weights"):
    with pytest.raises(InputError, match="exists|already"):
      call(monkeypatch, command, *words)


def test_main_has_left_a_whole_run(bucket):
  names = bucket.below("finished").blobs()
  assert f"checkpoints/{LENGTH}/manifest.json" in names
  assert {"config.json", "metrics.jsonl", "report.html", "lock"} & set(
    names
  ) == {"config.json", "metrics.jsonl", "report.html"}


def test_loading(bucket, image_folder):
  (path, *_) = sorted(images(image_folder).glob("*.jpg"))
  recognizer = jamsface_jax.load(RUN)
  assert recognizer(str(path)).shape == (32,)


def test_embeddings_are_those_of_a_disk(
  bucket, image_folder, tmp_path, monkeypatch
):
  words = [f"--workdir={RUN}", f"--images={images(image_folder)}"]
  for place in (str(tmp_path / "e"), f"{OUT}/same"):
    call(monkeypatch, "jamsface_jax.embed", *words, f"--output={place}")
  there = bucket.below("out/same")
  for name in ("embeddings.npy", "labels.npy", "paths.txt"):
    assert there.read(name) == (tmp_path / "e" / name).read_bytes()
  assert there.list_files() == sorted(os.listdir(tmp_path / "e"))
  meta = json.loads(there.read("meta.json"))
  assert meta["workdir"] == RUN


# Of other stores. What is needed besides, for flags to be read.
NEEDS = {
  "jamsface_jax.embed": ["--workdir=W", "--images=I", "--output=O"],
  "jamsface_jax.evaluate": ["--workdir=W", "--data=D", "--output=O"],
  "jamsface_jax.export": ["--workdir=W", "--format=numpy", "--output=O"],
  "jamsface_jax.import_weights": ["--input=I", "--workdir=W"],
  "jamsface_jax.search": [
    "--workdir=W",
    "--gallery=G",
    "--images=I",
    "--threshold=0.5",
    "--output=O",
  ],
  "jamsface_jax.report": ["W", "--output=O"],
  "jamsface_jax.model_card": ["W", "--output=O"],
  "data_prep.align": ["--input=I", "--output=O"],
  "data_prep.clean": ["--embeddings=E", "--output=O"],
  "data_prep.inspect": ["D", "--output=O"],
  "data_prep.synthesize": ["--output=O"],
}
# Their flags are absl's, which one process reads once.
IN_PROCESSES = {
  "jamsface_jax.main": ["--config=configs/demo.py:tiny", "--workdir=W"],
  "jamsface_jax.ablate": ["--config=configs/ablation.py", "--output=O"],
  "jamsface_jax.compile_check": [
    "--config=configs/demo.py:tiny",
    "--topology=v5e:1x1",
    "--classes=9",
    "--images=99",
    "--output=O",
  ],
}
ELSEWHERE = {  # tests/data_prep/upload_test.py, doctor_test.py
  *(f"data_prep.{n}" for n in ("from_bin", "from_folder", "from_ijb")),
  *(f"data_prep.{n}" for n in ("from_list", "from_pairs", "from_recordio")),
  *(f"data_prep.{n}" for n in ("from_search", "from_tfds")),
  "jamsface_jax.doctor",
}


def test_the_tables_have_every_command():
  found = set()
  for name in (*commands("jamsface_jax"), *commands("data_prep")):
    spec = importlib.util.find_spec(name)
    with open(spec.origin, encoding="utf-8") as file:
      text = file.read()
    shared = "conversion_flags.make_parser" in text
    if shared or re.search(r'"(--)?(workdirs?|output)"', text):
      found.add(name)
  assert found == {*NEEDS, *IN_PROCESSES, *ELSEWHERE}


PLACES = [
  (name, number)
  for name, flags in NEEDS.items()
  for number, flag in enumerate(flags)
  if flag[-1] in "WO" and flag[-2:] in ("W", "=W", "=O")
]


@pytest.mark.parametrize(("name", "number"), PLACES)
@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_other_stores_are_refused(
  name, number, scheme, untrained, dataset, image_folder, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  np.save("embeddings.npy", np.eye(3, dtype=np.float32))
  np.save("labels.npy", np.arange(3))
  (tmp_path / "paths.txt").write_text("a\nb\nc\n")
  known = {
    "W": untrained,
    "D": dataset,
    "E": str(tmp_path),
    "I": str(images(image_folder)),
    "G": str(images(image_folder)),
    "O": str(tmp_path / "out"),
  }
  flags = [
    re.sub("(?<==)[A-Z]$|^[A-Z]$", lambda m: known[m[0]], flag)
    for flag in NEEDS[name]
  ]
  address = f"{scheme}://bucket/r"
  flags[number] = re.sub("[A-Z]$", address, NEEDS[name][number])
  with pytest.raises(InputError, match="is an address and not a path") as error:
    call(monkeypatch, name, *flags)
  assert address in str(error.value)
  assert ("google/orbax#2739" in str(error.value)) == (scheme == "s3")
  assert not (tmp_path / f"{scheme}:").exists()
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", IN_PROCESSES)
def test_other_stores_are_refused_to_a_process(name, run):
  flags = [re.sub("(?<==)[WO]$", "s3://b/r", one) for one in IN_PROCESSES[name]]
  done = run(name, *flags)
  assert done.returncode == 2, done.stderr
  assert "is an address and not a path" in done.stderr
  assert "Traceback" not in done.stderr and not os.path.exists("s3:")
