"""Every benchmark runs, with the flags of the documentation, in seconds.

A command of the documentation or of a benchmark's own text is run as it stands,
with flags behind it that make it small: of a flag that is given twice, the last
counts.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import cv2
import docs_test
import numpy as np
import pytest
from conftest import convert

from data_prep.synthetic.photos import draw_identity
from jamsface_jax.data.decoding import decode_image
from jamsface_jax.detection.alignment import TEMPLATE
from jamsface_jax.protocols import results
from jamsface_jax.protocols.all_pairs import AllPairs
from jamsface_jax.protocols.test_set import JudgingSettings
from jamsface_jax.settings.variants import PUBLISHED
from jamsface_jax.storage.run_directory import RunDirectory

BENCHMARKS = docs_test.ROOT / "benchmarks"
NETWORK = json.dumps(
  {
    "model.name": "iresnet",
    "model.stages": [1, 1],
    "model.width": 0.125,
    "data.image_size": 32,
    "model.batch_norm_group": 0,
  }
)

# What makes each small, and gives it what a page leaves to the reader.
SMALL = {
  "checkpoint": ["--every=4", "--rounds=2", "--batch_size=8", "--classes=40"],
  "embed": ["--workdir=RUN", "--images=IMAGES", "--bare=20", "--rounds=1"],
  # What these left is there.
  "equal_strength": ["--collect=", "--others=", "--plot=plot.png"],
  "evaluation": ["--rounds=1", "--scale=0.01"],
  "first_step": ["--recipes=configs/demo.py:tiny", "--rounds=1"],
  "forward": ["--models=mbf", "--batch=2", "--rounds=1", "--steps=1"],
  "head": [
    "--classes=1000",
    "--batch=16",
    "--size=32",
    "--rounds=2",
    "--steps=1",
    "--only=products,fused,differentiable,written",
    "--partial_fc=",
  ],
  "head_program": [
    "--topologies=cpu:2",
    "--classes=100",
    "--batch=16",
    "--size=32",
  ],
  "input_pipeline": [
    "--data=DATA",
    "--images=",
    "--batch_size=8",
    "--batches=2",
    "--rounds=1",
    "--threads=1",
  ],
  "other_people": ["--cfp=CFP", "--lfw=LFW", "--output=OUTPUT"],
  "peers": [
    "--peers=PEERS",
    "--losses=jamsface,cosface",
    "--classes=40",
    "--batch=9",
    "--size=16",
    "--steps=1",
  ],
  "pods": [
    "--topologies=cpu:2",
    "--classes=100",
    "--cache=",
    f"--set={NETWORK}",
  ],
  "public_evaluator": ["--insightface=INSIGHTFACE"],
  "restores": ["--layouts=1x1", "--stop=2", "--end=4", "--nudges=1"],
  "search": ["--gallery=3000", "--size=16", "--probes=40", "--rounds=1"],
  "soak": ["--images=64", "--commands=from_folder"],
  "step": [
    "--models=iresnet18",
    "--classes=100",
    "--batch=4",
    "--size=32",
    "--rounds=1",
    "--steps=1",
  ],
}
# Run, made small, by a test of its own.
ELSEWHERE = {"chaos": "chaos_test"}
# What a flag of a page becomes where the last one would not do.
SMALLER = {
  "--all_pairs=30000": "--all_pairs=300",
  "--changes=v5e:4x4": "--changes=cpu:2",
  # Without a bucket: bucket_test has one.
  "--workdir=gs://BUCKET/NAME": "--workdir=",
  "--scaling=v5e:4x4,v5e:16x16": "--scaling=cpu:2",
}


def benchmark(line: str) -> str:
  """The name of the benchmark that a command runs, or nothing."""
  words = shlex.split(line)
  path = pathlib.PurePath(words[1]) if len(words) > 1 else pathlib.PurePath()
  return path.stem if path.parent.name == "benchmarks" else ""


def small(line: str) -> tuple[str, ...]:
  """A command's words, made small; of each flag the last."""
  flags = {}
  words = shlex.split(line.replace("[", "").replace("]", ""))[2:]
  for word in [*words, *SMALL[benchmark(line)]]:
    changed = SMALLER.get(word, word)
    flags[changed.partition("=")[0]] = changed
  return (benchmark(line), *sorted(flags.values()))


def commands() -> dict[str, tuple[str, ...]]:
  """Small forms of the commands in pages and benchmarks, each form once."""
  lines = [command.line for command in docs_test.find_commands()]
  for path in sorted(BENCHMARKS.glob("*.py")):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    indented = [line for line in text.splitlines() if line.startswith("  ")]
    lines += docs_test.split_commands("\n".join(indented))
  forms = {
    small(line): line
    for line in reversed(lines)
    if benchmark(line) and benchmark(line) not in ELSEWHERE
  }
  return {line: form for form, line in forms.items()}


def test_each_has_a_small_form():
  names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
  assert sorted([*SMALL, *ELSEWHERE]) == names
  for test in ELSEWHERE.values():
    assert pathlib.Path(__file__).with_name(f"{test}.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_runs(line, untrained, image_folder, dataset, tmp_path):
  name, *flags = commands()[line]
  places = {
    "RUN": untrained,
    "IMAGES": str(image_folder / "images"),
    "DATA": dataset,
    "INSIGHTFACE": os.environ.get("INSIGHTFACE", ""),
    "PEERS": os.environ.get("PEERS", ""),
    **dict.fromkeys(("CFP", "LFW", "OUTPUT"), str(tmp_path / "OUTPUT")),
  }
  if name == "other_people":
    places |= write_people(tmp_path)
  if name == "public_evaluator" and not places["INSIGHTFACE"]:
    pytest.skip("the variable INSIGHTFACE names no checkout of insightface")
  for word, place in places.items():
    flags = [flag.replace(f"={word}", f"={place}") for flag in flags]
  done = subprocess.run(
    [sys.executable, BENCHMARKS / f"{name}.py", *flags],
    cwd=tmp_path,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  # So few images say nothing of growth, which ends the soak with 1.
  assert done.returncode in ((0, 1) if name == "soak" else (0,)), done.stderr
  assert "Traceback" not in done.stderr
  assert "nan" not in done.stdout.lower()
  assert done.stdout.strip()


def write_people(folder):
  """CFP and LFW of drawn faces; one of CFP's three people is LFW's too."""
  for number, name in enumerate(("Ann Ä. Bee", "Cid O'Dee", "Eva"), start=1):
    for image in (1, 2):
      (data,) = draw_identity(0, 4 * number, [image], 224)
      face = decode_image(data)[:, :, ::-1]
      lfw = folder / "LFW" / ("Ann_A_Bee" if number == 1 else f"Nn_{number}")
      lfw.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(lfw / f"{image}.jpg"), cv2.resize(face, (112, 112)))
      place = f"{number:03}/frontal/{image:02}"
      photograph = folder / "CFP/Data/Images/train" / f"{place}.jpg"
      photograph.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(photograph), face[30:, 10:])
      points = np.zeros((30, 2))
      points[12:18], points[21], points[25] = (
        2 * TEMPLATE[index] + 0.5 - (10, 30) for index in (0, 2, 3)
      )
      fiducials = folder / "CFP/Data/Fiducials" / f"{place}.txt"
      fiducials.parent.mkdir(parents=True, exist_ok=True)
      np.savetxt(fiducials, points, delimiter=",")
    with (folder / "CFP/Data/list_name.txt").open(
      "a", encoding="utf-8"
    ) as file:
      file.write(f"{name}\n")
  return {"CFP": str(folder / "CFP"), "LFW": str(folder / "LFW")}


class Finds:
  """A detector that knows where the landmarks are."""

  def __init__(self, landmarks):
    self.landmarks = landmarks

  def detect(self, pixels):
    return np.zeros((1, 4)), self.landmarks[None]


def test_other_people_lie_where_lfw_does():
  """Colours of a photograph are its coordinates; its border is continued."""
  script = runpy.run_path(str(BENCHMARKS / "other_people.py"))
  target = TEMPLATE + (-6.4, 1.7)
  # A face of LFW's, turned and 1.5 times as large, at the edge of 200 x 200.
  turned = 1.5 * (target - target.mean(axis=0)) @ [[0.8, 0.6], [-0.6, 0.8]]
  landmarks = turned + (100, 60)
  y, x = np.mgrid[:200, :200].astype(np.uint8)
  photograph = np.stack([x, y, np.full_like(x, 50)], axis=2)
  fiducials = np.zeros((30, 2))
  fiducials[12:18], fiducials[21], fiducials[25] = landmarks[[0, 2, 3]]
  finds = Finds(landmarks)
  face = script["cut_out"](photograph, fiducials, target, finds)
  assert face.shape == (112, 112, 3)
  for place, colour in zip(target, landmarks, strict=True):
    for axis in (0, 1):
      plane = face[..., axis].astype(np.float32)
      there = cv2.getRectSubPix(plane, (1, 1), place)
      assert there[0, 0] == pytest.approx(colour[axis], abs=1)
  assert (face[..., 2] == 50).all()
  # Of another face in the photograph.
  assert script["cut_out"](photograph, fiducials + 60, target, finds) is None
  nobody = Finds(np.zeros((0, 5, 2)))
  nobody.detect = lambda pixels: (np.zeros((0, 4)), np.zeros((0, 5, 2)))
  assert script["cut_out"](photograph, fiducials, target, nobody) is None


def test_other_people_are_not_in_lfw(tmp_path):
  places = write_people(tmp_path)
  script = runpy.run_path(str(BENCHMARKS / "other_people.py"))
  names = tmp_path / "CFP/Data/list_name.txt"
  names.write_text(names.read_text() + "Someone\n" * 17, encoding="utf-8")
  found = script["others"](names, pathlib.Path(places["LFW"]))
  assert found == {*range(2, 21)} - {13, 14}


def a_run(row, fold, seed, tars):
  return {
    "row": row,
    "fold": fold,
    "seed": seed,
    "metrics": {"lfw_people/people_tar@1e-3": float(np.mean(tars))},
    "people": {"label": list(range(len(tars))), "tar@1e-3": list(tars)},
  }


def compared(runs, tmp_path):
  """The cells that benchmarks/equal_strength.py prints of each row."""
  path = tmp_path / "runs.json"
  path.write_text(json.dumps(runs))
  done = subprocess.run(
    [sys.executable, BENCHMARKS / "equal_strength.py", f"--runs={path}"],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
  rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
  return {row[0]: row[1:] for row in rows}


def test_equal_strength_compares_people_fold_by_fold(tmp_path):
  """Differences of 2 and 4 points in two folds: t with one degree, by hand."""
  rng = np.random.default_rng(0)
  runs = []
  for fold, gain in ((1, 0.02), (2, 0.04)):
    for seed in (0, 1):
      theirs = rng.uniform(0.2, 0.5, 30)
      runs.append(a_run("fixed", fold, seed, theirs))
      lift = gain + (0.01 if seed else -0.01)
      runs.append(a_run("held", fold, seed, theirs + lift))
      runs.append(a_run("same", fold, seed, theirs + 1e-6 * fold))
  found = compared(runs, tmp_path)
  # Over seeds: 1.41 points apart, two of each, two folds: 1 / sqrt(2).
  # Over folds: 1 / sqrt(1) times t(1, 0.9875) = 25.45.
  assert found["held"][1:6] == [
    "+3.00", "0.13", "0.71", "[-22.45, +28.45]", "not settled",
  ]  # fmt: skip
  assert found["same"][1] == "+0.00" and found["same"][5] == "level"
  assert found["fixed"][1] == ""


def test_equal_strength_compares_losses_among_themselves(tmp_path):
  """With the reference's networks of their seeds, corrected for their number.

  Differences of 2 and 4 points in two folds, one row: t(1, 0.975) = 12.71.
  """
  rng = np.random.default_rng(0)
  runs = []
  for fold, gain in ((1, 0.02), (2, 0.04)):
    theirs = rng.uniform(0.2, 0.5, 30)
    for seed, better in ((0, 0.0), (1, 0.1)):
      runs.append(a_run("fixed", fold, seed, theirs + better))
      for row in ("held", "same"):
        runs.append(a_run(row, fold, seed, theirs + better + gain))
    runs.append(a_run("arcface", fold, 0, theirs + gain))
  found = compared(runs, tmp_path)
  assert found["arcface"][1::3][:2] == ["+3.00", "[-9.71, +15.71]"]
  assert found["held"][1::3][:2] == ["+3.00", "[-22.45, +28.45]"]


def test_equal_strength_compares_other_people_over_people(tmp_path):
  """Gains of 0, 2, 4 and 6 points, half a point more or less in two networks.

  Their mean is 3, their standard error sqrt(20 / 3 / 4) = 1.29, that over
  networks 0.5, both 1.384; two rows, one degree: t(1, 0.9875) = 25.45.
  """
  runs = []
  for fold, lift in ((1, 0.005), (2, -0.005)):
    for row, gains in (("fixed", 0), ("held", [0, 2, 4, 6]), ("same", 0)):
      tars = 0.3 + 0.1 * fold + np.multiply(gains, 0.01) * np.ones(4)
      runs.append(
        {
          "row": row,
          "fold": fold,
          "seed": 0,
          "metrics": {"tar@1e-3": 0.25, "auc": 0.9},
          "tar@1e-3": [*(tars + (lift if row == "held" else 0))],
        }
      )
  # Without a network of `fixed` beside it: not compared.
  runs.append(runs[1] | {"fold": 3})
  (tmp_path / "runs_others.json").write_text(json.dumps(runs))
  both = [a_run(row, 1, 0, [0.1, 0.3]) for row in ("fixed", "held", "same")]
  found = compared(both, tmp_path)
  assert found["held"][1:6] == [
    "+3.00", "1.29", "0.50", "[-32.24, +38.24]", "not settled",
  ]  # fmt: skip
  assert found["held"][6:] == ["25.00", "90.00", "3"]
  assert found["same"][4:6] == ["[+0.00, +0.00]", "level"]
  assert found["fixed"][:2] == ["45.00", ""]


def test_equal_strength_asks_each_network_once(untrained, tmp_path):
  """Of other people, and leaves runs as they were."""
  place = tmp_path / "A" / "lfw_small-fold3" / "fixed"
  shutil.copytree(untrained, place / "seed0")
  (place / "seed0" / "summary.txt").write_text("finished 1 steps")
  for number, pixels in enumerate(
    np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
  ):
    image = tmp_path / "images" / str(number % 12) / f"{number}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(image), pixels)
  dataset = str(tmp_path / "data")
  convert(tmp_path, dataset, pairs=None)
  before = [(path, path.stat().st_mtime_ns) for path in place.rglob("*")]
  path = tmp_path / "others.json"
  embed = runpy.run_path(str(BENCHMARKS / "equal_strength.py"))["embed_others"]
  embed(tmp_path / "A", dataset, path)
  assert before == [
    (path, path.stat().st_mtime_ns) for path in place.rglob("*")
  ]
  (run,) = json.loads(path.read_text())
  assert run.keys() == {"row", "fold", "seed", "metrics", "tar@1e-3"}
  assert (run["row"], run["fold"], run["seed"]) == ("fixed", 3, 0)
  assert len(run["tar@1e-3"]) == 12
  path.write_text(json.dumps([run | {"tar@1e-3": [0.5]}]))
  embed(tmp_path / "A", dataset, path)
  assert json.loads(path.read_text()) == [run | {"tar@1e-3": [0.5]}]


def test_equal_strength_collects_what_runs_left(tmp_path):
  """Of each row and fold, as the trainer's own files have it."""
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(30), 3)
  settings = JudgingSettings(
    fars=(1e-3,), poolings=(), flip=True, plain=True, replicates=0
  )
  want = {}
  for row, spread in (("fixed", 1.0), ("held", 0.6)):
    for fold in (3, 10):
      path = tmp_path / "A" / f"lfw_small-fold{fold}" / row / "seed0"
      run = RunDirectory(str(path))
      run.create()
      rows = np.eye(30)[labels] + spread * rng.normal(size=(90, 30)) / 3
      found = AllPairs("lfw_people", labels).judge([rows], settings, what="e")
      results.write_results(run.results, found, {"step": 5})
      (one,) = found
      run.metrics.append_line(json.dumps({"step": 4, "train/accuracy": 0.5}))
      run.metrics.append_line(json.dumps({"step": 5, **one.metrics}))
      run.summary.write_text("finished 5 steps")
      want.setdefault(row, []).append(one.metrics["lfw_people/people_tar@1e-3"])
  (tmp_path / "A" / "lfw_small-fold3" / "late" / "seed0").mkdir(parents=True)
  command = [sys.executable, BENCHMARKS / "equal_strength.py"]
  done = subprocess.run(
    [*command, f"--collect={tmp_path / 'A'}", f"--runs={tmp_path / 'R.json'}"],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.startswith("4 runs: ")
  lines = [line.split("|") for line in done.stdout.splitlines()[2:4]]
  fixed, held = (100 * np.mean(want[row]) for row in ("fixed", "held"))
  assert [line[1].strip() for line in lines] == ["fixed", "held"]
  assert float(lines[0][2]) == pytest.approx(fixed, abs=0.051)
  assert float(lines[1][2]) == pytest.approx(held, abs=0.051)
  assert float(lines[1][3]) == pytest.approx(held - fixed, abs=0.02)
  assert "2 folds, 1 seed(s), 60 people" in done.stdout


def beside_peers(*flags):
  """Lines of what benchmarks/peers.py prints, cell by cell; and all of it."""
  done = subprocess.run(
    [sys.executable, BENCHMARKS / "peers.py", *flags],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line.startswith("| `")]
  rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
  return rows, done.stdout


def test_losses_whose_authors_code_is_not_there(tmp_path):
  rows, text = beside_peers(f"--peers={tmp_path}", "--classes=40", "--steps=1")
  assert {row[0].split("`")[1] for row in rows} == set(PUBLISHED)
  here = [row for row in rows if row[1] == "written out"]
  assert {row[0] for row in here} >= {"`jamsface`", "`fixed_joint`"}
  assert {row[2] for row in rows if row not in here} == {"not there"}
  if importlib.util.find_spec("torch") is None:
    assert text.startswith("PyTorch is not there: no row can be compared.\n")
    assert {row[2] for row in here} == {"no PyTorch"}


# Rows that compare what is another's on purpose, by their notes.
DIFFERENT = {
  "Where m3 is above 0": 0.1,
  "Theirs sets weights to length 1": 0.01,
  "As it is here": 0.01,
  "Theirs cuts s phi - b": 0.01,
}


@pytest.fixture
def peers():
  if "PEERS" not in os.environ or importlib.util.find_spec("torch") is None:
    pytest.skip("the variable PEERS names no folder, or PyTorch is not there")
  return f"--peers={os.environ['PEERS']}"


@pytest.mark.slow
def test_losses_are_those_of_their_authors(peers):
  """All that is not named as different is equal within float32's rounding."""
  rows, text = beside_peers(peers)
  notes = dict(re.findall(r"^\((\d+)\) (.*)$", text, re.MULTILINE))
  assert {row[0].split("`")[1] for row in rows} == set(PUBLISHED)
  for row in rows:
    number = re.search(r"\((\d+)\)$", row[0])
    note = notes[number[1]] if number else ""
    least = [DIFFERENT[words] for words in DIFFERENT if note.startswith(words)]
    largest = float(row[5])
    assert largest > least[0] if least else largest < 2e-5, row


@pytest.mark.slow
def test_lines_have_the_gradients_of_arcface_torch(peers):
  """Each of docs/insightface.md, with filtered classes nearly."""
  rows, _ = beside_peers(peers, "--configurations")
  assert len(rows) > 5
  for row in rows:
    limit = 1e-3 if row[3] else 1e-5
    assert max(map(float, row[4:7])) < limit, row
    assert float(row[7]) < 1e-2, row
