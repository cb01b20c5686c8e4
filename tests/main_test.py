"""The command line as a user meets it, mistakes included."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import assert_one_sentence

from jamsface_jax.devices import processes
from jamsface_jax.errors import InputError
from jamsface_jax.run.progress import StepProgress
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.metric_writer import MetricWriter

ROOT = pathlib.Path(__file__).parent.parent
MAIN = "jamsface_jax.main"
TINY = "--config=configs/ms1m_r100.py:tiny"


@pytest.mark.parametrize(
  "devices", [pytest.param(1, marks=pytest.mark.slow), 8]
)
def test_tiny_recipe_runs(run, tmp_path, devices):
  done = run(MAIN, TINY, f"--workdir={tmp_path / 'w'}", devices=devices)
  assert done.returncode == 0, done.stderr
  assert "finished 5 steps" in done.stdout
  assert (tmp_path / "w" / "checkpoints" / "5").is_dir()
  assert (tmp_path / "w" / "summary.txt").exists()
  card = (tmp_path / "w" / "model_card.md").read_text(encoding="utf-8")
  assert "Trained for 5 steps." in card and TINY in card


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--config.data.btch_size=1"], ["data.btch_size", "'batch_size'"]),
    (["--config.data.batch_size=many"], ["data.batch_size", "many"]),
    (["--config.data.batch_size=7"], ["accumulation", "7", "multiple of 2"]),
    (["--config.mesh.model=3"], ["mesh.model=3", "2 devices"]),
    (["--config.head.scale=-1"], ["head.scale=-1.0", "above 0"]),
    (["--config.model.name=resnet"], ["model.name='resnet'", "iresnet50"]),
    (["--config.head.loss=arcface"], ["head.loss='arcface'", "joint"]),
    (["--config.data.directory=/nowhere"], ["'/nowhere'", "not a directory"]),
    (["--config.data.directory=s3://b/d"], ["'s3://b/d'", "a path on a disk"]),
    (["--config.profile_steps=5"], ["profile_steps='5'", "10:15"]),
    (["--config.data.directory=configs"], ["'configs'", "not a data set"]),
    (["--wrokdir=x"], ["wrokdir"]),
    (["stray"], ["'stray'", "not a flag"]),
    (["--coordinator=a:1"], ["--num_processes", "together"]),
  ],
)
def test_mistakes_are_one_sentence(run, tmp_path, flags, parts):
  workdir = tmp_path / "w"
  done = run(MAIN, TINY, f"--workdir={workdir}", *flags, devices=2)
  assert_one_sentence(done, *parts)
  assert not workdir.exists()  # Nothing half-made.


@pytest.mark.slow
@pytest.mark.parametrize(
  "settings",
  [
    {"name": "mobilefacenet", "stages": "(1,1,1,1)", "width": 1 / 8},
    {"name": "vit", "stages": "(2,)", "width": 1 / 16}
    | {"drop_path": 0.1, "mask_ratio": 0.2},
    {"squeeze_reduction": 4},
    # Without batch statistics, whose mean over micro-batches is nothing then.
    {"name": "edgenext", "stages": "(1,1,1,1)", "width": 1 / 2}
    | {"dtype": "bfloat16"},
  ],
  ids=["mobilefacenet", "vit", "squeeze", "edgenext"],
)
def test_backbones_train(run, tmp_path, settings):
  flags = [f"--config.model.{name}={value}" for name, value in settings.items()]
  flags.append("--config.optimizer.accumulation=2")
  done = run(MAIN, TINY, *flags, f"--workdir={tmp_path / 'w'}", devices=8)
  assert done.returncode == 0, done.stderr
  assert "finished 5 steps" in done.stdout


def test_a_work_directory_in_an_object_store_is_refused(run, tmp_path):
  done = run(MAIN, TINY, "--workdir=s3://bucket/run")
  assert_one_sentence(done, "--workdir='s3://bucket/run'", "gs://BUCKET/NAME")
  assert not (ROOT / "s3:").exists()


@pytest.mark.parametrize("setting", [[], ["--config.seed=1"]])
def test_config_that_does_not_exist(run, tmp_path, setting):
  flags = ["--config=configs/nope.py", *setting, f"--workdir={tmp_path}"]
  done = run(MAIN, *flags)
  assert_one_sentence(done, "configs/nope.py", "configs/demo.py")


def test_variant_that_does_not_exist(run, tmp_path):
  done = run(MAIN, "--config=configs/demo.py:big", f"--workdir={tmp_path}")
  assert_one_sentence(done, "'big'", "full, tiny")


def test_flags_that_are_missing(run):
  assert_one_sentence(run(MAIN), "--config is needed", "configs/demo.py")
  assert_one_sentence(run(MAIN, TINY), "--workdir is needed", "build/run")


def test_work_directory_of_another_run(run, tmp_path):
  workdir = f"--workdir={tmp_path / 'w'}"
  assert run(MAIN, TINY, workdir).returncode == 0
  done = run(MAIN, TINY, workdir, "--config.head.scale=30")
  assert_one_sentence(done, "head.scale is 64.0 there and 30.0 here")


@pytest.mark.parametrize(
  "module",
  [
    MAIN,
    "jamsface_jax.embed",
    "jamsface_jax.evaluate",
    "data_prep.from_folder",
    "data_prep.synthesize",
  ],
)
def test_help(run, module):
  done = run(module, "--help")
  assert done.returncode == 0
  assert "--workdir" in done.stdout or "--output" in done.stdout


@pytest.mark.parametrize("module", ["export", "import_weights", "ablate"])
def test_work_of_one_process_is_refused_to_several(
  module, run, tmp_path, monkeypatch
):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
  flags = ["--format=numpy", f"--output={tmp_path / 'o'}"]
  if module == "import_weights":
    flags = ["--input=backbone.pth"]
  if module == "ablate":
    flags = ["--config=configs/ablation.py", f"--output={tmp_path / 'o'}"]
  else:
    flags.append(f"--workdir={tmp_path / 'w'}")
  done = run(f"jamsface_jax.{module}", *flags)
  assert_one_sentence(done, f"{module} is the work of one process", "srun")
  assert not os.listdir(tmp_path)


def test_contradicting_flags_of_distribution():
  with pytest.raises(InputError, match="contradicts"):
    processes.initialize(
      "off", coordinator="a:1", num_processes=2, process_id=0
    )


def test_metric_writer_takes_back_later_lines(tmp_path):
  writer = MetricWriter(RunDirectory(str(tmp_path)), 0)
  for step in (1, 2, 3):
    writer.write(step, {"train/loss": step / 2, "x": float("nan")})
  writer.close()
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 2, "train/lo')  # Torn.
  writer = MetricWriter(RunDirectory(str(tmp_path)), 2)
  writer.write(3, {"train/loss": 9.0})
  writer.close()
  assert path.read_text().splitlines() == [
    '{"step": 1, "train/loss": 0.5, "x": null}',
    '{"step": 2, "train/loss": 1.0, "x": null}',
    '{"step": 3, "train/loss": 9.0}',
  ]


# Folders and files beside them, from the ground up: each imports from rows
# above it here and from itself alone.
FLOORS = [
  {"version", "shell", "interruption"},
  {"errors"},
  {"commands"},
  {"storage", "devices", "metrics"},
  {"settings"},
  {"models", "augmentation", "data", "head", "config"},
  {"protocols", "run", "detection"},
  {"embedding"},
  {"evaluation", "weights"},
  {"reports"},
  {"training", "searching"},
  {"pods", "ablation"},
]
FLOOR = {name: k for k, floor in enumerate(FLOORS) for name in floor}
COMMANDS = len(FLOORS)  # Every other file of the top folder: above all,
FLOOR["__main__"] = COMMANDS + 1  # but for the list of them.


def imports_of(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      module = node.module
      for alias in node.names:
        yield f"{module}.{alias.name}"
        yield module
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(
  "path",
  sorted((ROOT / "jamsface_jax").rglob("*.py")),
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_point_down(path):
  relative = path.relative_to(ROOT / "jamsface_jax").with_suffix("")
  place = relative.parts[0]
  if place == "__init__":
    return  # The face: `load` imports what it opens when it is called.
  floor = FLOOR.get(place, COMMANDS)
  for imported in imports_of(path):
    assert not imported.startswith(("data_prep", "configs", "tests"))
    # Below the commands nobody can change a setting, or invent one.
    if imported.startswith("ml_collections"):
      assert floor == COMMANDS or place in ("settings", "config"), path
    if not imported.startswith("jamsface_jax."):
      continue
    below = imported.split(".")[1]
    if below == place and len(relative.parts) > 1:
      continue
    assert FLOOR.get(below, COMMANDS) < floor, imported


def files_of_a_run():
  """Names of all that lies in a run's directory."""
  run = RunDirectory("w")
  values = [
    getattr(run, name)
    for name, one in vars(RunDirectory).items()
    if isinstance(one, property) and name != "absolute"
  ]
  paths = [one if isinstance(one, str) else one.path for one in values]
  # The word has other meanings too.
  return {os.path.basename(path) for path in paths} - {"evaluation", "w"} | {
    "lock"
  }


# The noun itself, which of its files a bucket keeps with which, its locks.
NAMING = {
  "storage/run_directory.py",
  "storage/mirror.py",
  "storage/lock.py",
  "storage/lease.py",
}
# What a comparison of runs has beside them, and the template of a card.
OTHER_FILES = {
  "ablation/directory.py": "results.json",
  "reports/model_card.py": "model_card.md",
}


@pytest.mark.parametrize(
  "path",
  sorted((ROOT / "jamsface_jax").rglob("*.py")),
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_of_a_run_are_named_in_one_place(path):
  relative = str(path.relative_to(ROOT / "jamsface_jax"))
  if relative in NAMING:
    return
  names = files_of_a_run() - {OTHER_FILES.get(relative)}
  assert len(names) > 12
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Constant):
      assert node.value not in names, f"line {node.lineno}: {node.value}"
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.path.join":
      joined = ast.unparse(node.args[0])
      assert not re.search(r"workdir|\brun\b", joined), f"line {node.lineno}"


def test_recipes_need_no_jax():
  code = "import sys, jamsface_jax.config; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def modules(*folders):
  """The names of all modules in these folders."""
  for folder in folders:
    for path in sorted((ROOT / folder).rglob("*.py")):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
      yield name.removesuffix(".__init__")


@pytest.mark.parametrize(
  "folder",
  [
    "jamsface_jax/data",
    "jamsface_jax/storage",
    "jamsface_jax/metrics",
    "jamsface_jax/settings",
    "data_prep",
  ],
)
def test_what_needs_no_jax_brings_none(folder):
  code = (
    "import importlib, sys\n"
    f"for name in {list(modules(folder))}:\n"
    "  importlib.import_module(name)\n"
    "  assert 'jax' not in sys.modules, name\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_converting_needs_no_matplotlib():
  code = (
    "import sys, data_prep.from_folder, data_prep.synthesize;"
    "sys.exit('matplotlib' in sys.modules)"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_time_left_counts_from_the_step_after_the_one_that_compiles(
  capsys, monkeypatch
):
  now = [100.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])
  progress = StepProgress(40, 10, quiet=False)
  for step, seconds in ((11, 300.0), (12, 2.0), (13, 4.0)):
    now[0] += seconds
    progress.advance()
    progress.show(step, {})
  first, second, third = capsys.readouterr().out.splitlines()
  assert "left" not in first
  assert second.endswith("0:00:56 left")
  assert third.endswith("0:01:21 left")


def test_progress_when_all_steps_were_rejected(capsys):
  StepProgress(9, 0, quiet=False).show(3, {"train/images_per_second": 5.0})
  assert "step 3/9: no step counted, 5 images/s" in capsys.readouterr().out
