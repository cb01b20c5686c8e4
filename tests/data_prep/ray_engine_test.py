"""The same data set from a Ray cluster, killed machines included."""

import importlib.util
import os
import secrets
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence

from data_prep import from_folder, from_list, from_recordio
from data_prep.writing import ray_engine
from jamsface_jax.data import records
from jamsface_jax.errors import InputError, RunError

# Not imported yet: Ray reads its settings, the token among them, only then.
if importlib.util.find_spec("ray") is None:
  pytest.skip(
    "the extra jamsface-jax[ray] is not installed", allow_module_level=True
  )

pytestmark = pytest.mark.slow

CLUSTER = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster():
  """A cluster with a token of its own, in another process."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with subprocess.Popen(
      [sys.executable, "-c", CLUSTER],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    ) as process:
      address = process.stdout.readline().strip()
      assert address, "the cluster did not start"
      patch.setenv("RAY_ADDRESS", address)
      yield address
      process.stdin.close()


def contents(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_same(one, other, shards):
  one, other = contents(one), contents(other)
  assert one == other
  assert sum(name.endswith(".array_record") for name in one) >= shards


@pytest.fixture(scope="module")
def damaged(image_folder, tmp_path_factory):
  """The image folder, two of its files broken and one missing from it."""
  root = tmp_path_factory.mktemp("damaged")
  for path in (image_folder / "images").glob("*/*.jpg"):
    copy = root / path.parent.name / path.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
  (root / "Person_00" / "Person_00_0001.jpg").write_bytes(b"\xff\xd8 broken")
  (root / "Person_07" / "Person_07_0003.jpg").write_bytes(b"broken")
  return root


def convert_folder(root, directory, **changes):
  excluded = root.parent / "excluded_from_folder.txt"
  excluded.write_text("path\nPerson_03/Person_03_0001.jpg\tblurred\n")
  from_folder.convert(
    str(root),
    str(directory),
    **{
      "name": "x",
      "identities": None,
      "min_images": 3,
      "pairs": None,
      "skip_bad": True,
      "exclude": str(excluded),
      "threads": 1,
      "shard_bytes": 6000,
    }
    | changes,
  )


def convert_list(root, directory, **changes):
  """Labels in no order, a path that does not exist, and both choices."""
  paths = sorted(str(path.relative_to(root)) for path in root.glob("*/*.jpg"))
  order = np.random.default_rng(0).permutation(len(paths))
  lines = [f"{paths[k]};{paths[k][7:9]}" for k in order]
  source, excluded = root.parent / "list.csv", root.parent / "excluded.txt"
  source.write_text("\n".join([*lines[:20], "no.jpg;00", *lines[20:]]) + "\n")
  excluded.write_text(f"{paths[5]}\n")
  from_list.convert(
    str(source),
    str(directory),
    **{
      "root": str(root),
      "name": "x",
      "min_images_per_class": 3,
      "skip_bad": True,
      "exclude": str(excluded),
      "check_images": True,
      "threads": 1,
      "shard_bytes": 6000,
    }
    | changes,
  )


def convert_records(root, directory, **changes):
  """With labels to remap, a limit, and a place that is no record."""
  recordio_test = pytest.importorskip("recordio_test")
  paths = sorted(root.glob("*/*.jpg"))
  rec, idx = recordio_test.im2rec(
    [2 * int(path.parent.name[-2:]) for path in paths],
    [path.read_bytes() for path in paths],
  )
  lines = idx.splitlines(keepends=True)
  lines.insert(9, f"100\t{len(rec) + 5}\n")
  (root.parent / "train.rec").write_bytes(rec)
  (root.parent / "train.idx").write_text("".join(lines))
  excluded = root.parent / "excluded_records.txt"
  excluded.write_text("6\n")
  from_recordio.convert(
    str(root.parent / "train.rec"),
    str(directory),
    **{
      "name": "x",
      "limit": 35,
      "min_images_per_class": 3,
      "remap_labels": True,
      "skip_bad": True,
      "exclude": str(excluded),
      "check_images": True,
      "threads": 1,
      "shard_bytes": 6000,
    }
    | changes,
  )


@pytest.mark.parametrize(
  ("convert", "images", "skipped"),
  [(convert_folder, 30, 4), (convert_list, 30, 5), (convert_records, 27, 5)],
)
def test_same_bytes_as_on_one_machine(
  cluster, damaged, tmp_path, convert, images, skipped
):
  """Counts by hand: 37 images, two of them broken.

  Folder: one is excluded, and its class of two left out; of the class of three
  that has a broken one two are left, so that they go too. List: likewise, and a
  path without a file. Records: likewise, the limit leaves two of the last
  class, and one line of the index points nowhere.
  """
  convert(damaged, tmp_path / "one")
  convert(damaged, tmp_path / "many", engine="ray")
  assert_same(tmp_path / "one", tmp_path / "many", shards=5)
  found = list(records.RecordReader(str(tmp_path / "many")).scan())
  lines = (tmp_path / "many" / "skipped.txt").read_text().splitlines()
  assert (len(found), len(lines)) == (images, skipped)
  names = {line.split("\t")[0] for line in lines}
  assert not names & {record.name for record in found}


KILLED = """
import os, signal, sys
from data_prep import from_folder
from data_prep.writing import writer
accept = writer.DatasetAssembler.accept
def accept_or_die(self, finished):
  if len(self.finished) == 3:
    os.kill(os.getpid(), signal.SIGKILL)
  accept(self, finished)
writer.DatasetAssembler.accept = accept_or_die
from_folder.convert(sys.argv[1], sys.argv[2], name="x", identities=None,
  min_images=1, pairs=None, skip_bad=True, exclude=None, threads=1,
  engine=sys.argv[3], shard_bytes=6000)
"""


@pytest.mark.parametrize(
  ("before", "after"), [("ray", "ray"), ("ray", "local"), ("local", "ray")]
)
def test_killed_conversion_goes_on(cluster, damaged, tmp_path, before, after):
  """Also by the other way; finished shards are kept."""
  changes = {"min_images": 1, "exclude": None}
  convert_folder(damaged, tmp_path / "whole", **changes)
  cut = tmp_path / "cut"
  done = subprocess.run(
    [sys.executable, "-c", KILLED, damaged, cut, before], capture_output=True
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not (cut / "dataset.json").exists()
  (cut / "images-00006.array_record.gone-1.partial").write_bytes(b"half")
  journal = (cut / "journal.jsonl").read_text().splitlines()
  kept = {
    path: path.stat().st_ino
    for path in cut.glob("*.array_record")
    if any(path.name in line for line in journal)
  }
  assert len(kept) == 3
  convert_folder(damaged, cut, engine=after, **changes)
  assert_same(tmp_path / "whole", cut, shards=7)
  for path, inode in kept.items():
    assert path.stat().st_ino == inode


def test_task_whose_machine_dies_is_done_again(cluster, tmp_path):
  def double(number):
    marker = tmp_path / f"tried {number}"
    if number == 3 and not marker.exists():
      marker.touch()
      os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number

  assert sorted(ray_engine.run(double, range(20), 1)) == list(range(0, 40, 2))
  assert (tmp_path / "tried 3").exists()


@pytest.mark.parametrize(
  ("error", "kind", "says"),
  [
    (InputError("image 'x' is bad: mend it."), InputError, "^image 'x' is bad"),
    (RunError("no room"), RunError, "^no room$"),
    (KeyError("k"), RunError, r"^shard seven failed .*\(KeyError: 'k'\): mend"),
    (None, RunError, r"^shard seven failed on its machine \(WorkerCrashed"),
  ],
)
def test_failing_task_is_one_sentence(cluster, error, kind, says):
  def fail(name):
    if name == "shard seven":
      if error is None:
        os.kill(os.getpid(), signal.SIGKILL)
      raise error
    return name

  with pytest.raises(kind, match=says) as raised:
    list(ray_engine.run(fail, ["shard one", "shard seven"], 1))
  assert "\n" not in str(raised.value)
  assert not sys.modules["ray"].is_initialized()


def test_few_tasks_are_in_the_hands_of_ray(cluster):
  """What is converted is not all listed at once."""
  taken = []

  def tasks():
    for number in range(30):
      taken.append(number)
      yield number

  done = 0
  for _ in ray_engine.run(lambda number: number, tasks(), 1):
    done += 1
    assert len(taken) - done <= 4  # Two cores, two tasks each.
  assert done == 30


def test_more_threads_than_cores(cluster, damaged, tmp_path):
  with pytest.raises(InputError, match=r"--threads=3 is more.*\(2 cores\)"):
    convert_folder(damaged, tmp_path / "out", engine="ray", threads=3)


def test_cluster_of_another_token(cluster, monkeypatch):
  monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      "from data_prep.writing import ray_engine\n"
      "from jamsface_jax.errors import run_command\n"
      "run_command(lambda: list(ray_engine.run(str, [1], 1)))",
    ],
    capture_output=True,
    text=True,
    env=os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "1"},
  )
  assert done.returncode == 2
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: --engine=ray cannot reach a cluster")
  assert cluster in last


def test_command_starts_a_cluster_of_its_own(run, monkeypatch, tmp_path):
  monkeypatch.setenv("RAY_AUTH_MODE", "token")
  monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
  monkeypatch.delenv("RAY_ADDRESS", raising=False)
  for name in ("a", "b"):
    cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 8, 3), np.uint8))
  source = tmp_path / "list.txt"
  flags = [
    f"--input={source}",
    f"--root={tmp_path}",
    f"--output={tmp_path / 'out'}",
    "--engine=ray",
  ]
  source.write_text("a.png 0\nb.png 1\nc.png 1\n")
  bad = run("data_prep.from_list", *flags)
  assert_one_sentence(bad, "line 3 of", "c.png", "No such file", "--skip_bad")
  assert not (tmp_path / "out").exists()
  source.write_text("a.png 0\nb.png 1\n")
  done = run("data_prep.from_list", *flags)
  assert done.returncode == 0, done.stderr
  assert "2 images of 2 identities" in done.stdout and not done.stderr
