"""Comparing losses over seeds."""

import importlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import assert_one_sentence, check_builds
from ml_collections import ConfigDict
from scipy import stats
from tiny_runs import environment, wait_for_step

from jamsface_jax.ablation import statistics, tables
from jamsface_jax.ablation.comparison import make_comparison, strengths
from jamsface_jax.ablation.directory import ComparisonDirectory
from jamsface_jax.ablation.trials import plan_trials, plan_tuning
from jamsface_jax.errors import InputError
from jamsface_jax.storage.bucket import Bucket

ROOT = pathlib.Path(__file__).parents[2]
ABLATE = "jamsface_jax.ablate"
OUT = ComparisonDirectory.at("out")
CONFIG = """
from ml_collections import ConfigDict

def get_config():
  config = ConfigDict()
  config.recipes = ("configs/demo.py",)
  config.seeds = (0, 1)
  config.metrics = ({metrics},)
  config.reference = "cosface"
  config.rows = ConfigDict({{
    "cosface": ("tiny,cosface",),
    "jamsface": ("tiny,jamsface", "head.margin_rate=0.5"),
  }})
  return config
"""


def test_differences_are_those_of_a_paired_t_test():
  rng = np.random.default_rng(0)
  theirs, ours = rng.normal(0.8, 0.05, 6), rng.normal(0.83, 0.05, 6)
  found = {seed: {"a": value} for seed, value in enumerate(ours)}
  # One seed more on this side, one of another number on that.
  reference = {seed: {"a": value} for seed, value in enumerate(theirs[:5])}
  reference[99] = {"a": 0.1}
  cell = statistics.compare(found, reference, "a")
  assert cell.mean == pytest.approx(ours.mean())
  difference = ours[:5] - theirs[:5]
  assert cell.difference == pytest.approx(difference.mean())
  error = difference.std(ddof=1) / np.sqrt(5)
  half = stats.t.ppf(0.975, 4) * error
  np.testing.assert_allclose(
    cell.difference_interval,
    [difference.mean() - half, difference.mean() + half],
  )
  assert cell.p == pytest.approx(
    2 * stats.t.sf(abs(difference.mean() / error), 4)
  )
  # The interval of the mean against resampling by hand.
  means = rng.choice(ours, (20_000, 6)).mean(axis=1)
  np.testing.assert_allclose(
    cell.interval, np.quantile(means, [0.025, 0.975]), atol=2e-3
  )


def test_one_seed_has_no_interval_and_no_row_no_mean():
  one = statistics.compare({0: {"a": 0.5}}, {0: {"a": 0.25}}, "a")
  assert one.mean == 0.5 and one.difference == 0.25
  assert one.interval is one.difference_interval is one.p is None
  assert statistics.compare({}, {0: {"a": 0.25}}, "a").mean is None


@pytest.mark.slow
def test_runs_what_is_missing_and_tells_of_what_failed(run, tmp_path):
  config, output = tmp_path / "compare.py", tmp_path / "a"
  config.write_text(CONFIG.format(metrics='"train/loss"'))
  command = (ABLATE, f"--config={config}", f"--output={output}", "--jobs=2")
  done = run(*command)
  assert done.returncode == 0, done.stderr
  table = (output / "table.md").read_text()
  assert table in done.stdout and "| jamsface | 2 |" in table
  assert (output / "ablation.png").stat().st_size > 10_000
  cells = json.loads((output / "results.json").read_text())["cells"]
  losses = {c["row"]: c for c in cells if c["metric"] == "train/loss"}
  for row, cell in losses.items():
    for seed, value in cell["values"].items():
      lines = (
        (output / "demo" / row / f"seed{seed}" / "metrics.jsonl")
        .read_text()
        .splitlines()
      )
      last = [json.loads(x) for x in lines if "train/loss" in x][-1]
      assert value == last["train/loss"] and last["step"] == 5
  assert len({*losses["cosface"]["values"].values()}) == 2  # Seeds differ.
  assert losses["jamsface"]["difference"] is not None

  # Again: nothing is run, so that work directories stay as they are.
  before = {p: p.stat().st_mtime_ns for p in output.rglob("metrics.jsonl")}
  assert run(*command).returncode == 0
  assert before == {
    p: p.stat().st_mtime_ns for p in output.rglob("metrics.jsonl")
  }

  config.write_text(CONFIG.format(metrics='"lfw/accuracy"'))
  assert_one_sentence(run(*command), "'lfw/accuracy'", "train/loss")
  text = CONFIG.format(metrics='"train/loss"')
  config.write_text(text.replace("margin_rate=0.5", "margin_rate=0.6"))
  assert_one_sentence(run(*command), "seed0", "another name")

  config.write_text(text.replace("jamsface", "new", 1).replace("0.5", "-1"))
  done = run(*command)
  assert done.returncode == 1
  assert "2 of 4 runs failed" in done.stderr and "margin_rate" in done.stderr
  assert "| cosface | 2 |" in done.stdout  # What there is.


@pytest.mark.slow
@pytest.mark.usefixtures("gcs")
def test_a_comparison_in_a_bucket(run, tmp_path):
  """Every run lies there, and the table; the second time nothing is run."""
  config = tmp_path / "compare.py"
  text = CONFIG.format(metrics='"train/loss"')
  config.write_text(text.replace("(0, 1)", "(0,)"))
  place = Bucket(f"gs://ablations/{tmp_path.name}")
  command = (ABLATE, f"--config={config}", f"--output={place.address}")
  done = run(*command)
  assert done.returncode == 0, done.stderr
  assert f"next: open {place.address}/ablation.png" in done.stdout
  assert place.read("table.md").decode() in done.stdout
  cells = json.loads(place.read("results.json"))["cells"]
  before = place.blobs()
  for cell in cells:
    if cell["metric"] == "train/loss":
      name = f"demo/{cell['row']}/seed0/metrics.jsonl"
      lines = map(json.loads, place.read(name).splitlines())
      last = [line for line in lines if "train/loss" in line][-1]
      assert cell["values"] == {"0": last["train/loss"]}
      assert f"demo/{cell['row']}/seed0/checkpoints/5/manifest.json" in before
  assert not [name for name in before if name.endswith("lock")]
  assert run(*command).returncode == 0
  after = place.blobs()
  assert {n: b for n, b in after.items() if n.startswith("demo/")} == {
    n: b for n, b in before.items() if n.startswith("demo/")
  }


def compared(config):
  return make_comparison(config.to_dict())


def test_what_cannot_be_compared():
  config = ConfigDict({"recipes": ("a.py",), "seeds": (0,), "metrics": ("m",)})
  with pytest.raises(InputError, match="rows is missing"):
    compared(config)
  config.rows, config.reference = ConfigDict({"a": ("a",)}), "b"
  with pytest.raises(InputError, match="'b' is not a row: use one of a"):
    compared(config)
  config.reference, config.tuning = "a", ConfigDict({"seeds": (7,)})
  with pytest.raises(InputError, match="tuning.metric is missing"):
    compared(config)
  config.tuning = tuning(choices={"a": (("x=1",),)})
  with pytest.raises(InputError, match="'a' has 1 choices and .* 3: a compar"):
    compared(config)


def test_many_rows_are_tested_as_many():
  # The example worked out by hand: 4, 3 and 2 times, then not below it.
  got = statistics.corrected([0.03, None, 0.005, 0.04, 0.01])
  assert got == pytest.approx([0.06, None, 0.02, 0.06, 0.03])
  assert statistics.corrected([0.7, 0.6]) == [1.0, 1.0]
  assert statistics.corrected([None]) == [None]


def test_the_table_has_the_corrected_p(tmp_path):
  config = ConfigDict({"recipes": ("r.py",), "metrics": ("m",)})
  config.seeds, config.reference = (0, 1, 2), "a"
  config.rows = ConfigDict({name: ("x",) for name in "abc"})
  comparison = compared(config)
  values = {"a": (1, 2, 3), "b": (2, 4, 3.5), "c": (1, 3, 3.2)}
  results = {
    run: {"m": values[run.row][run.seed]}
    for run in plan_trials(comparison, OUT, {})
  }
  text = tables.write(
    ComparisonDirectory.at(str(tmp_path)), comparison, results, []
  )
  cells = json.loads((tmp_path / "results.json").read_text())["cells"]
  p = {cell["row"]: (cell["p"], cell["p_holm"]) for cell in cells}
  assert p["a"] == (None, None)
  assert next(c for c in cells if c["row"] == "a")["difference"] is None
  assert p["b"][1] == pytest.approx(2 * p["b"][0]) and p["b"][0] < p["c"][0]
  for row in "bc":
    line = next(x for x in text.splitlines() if x.startswith(f"| {row} "))
    assert line.endswith(f"p {p[row][1]:.2g}) |")


def tuning(choices):
  return ConfigDict(
    {"seeds": (7, 8), "metric": "v/tar", "settings": ("evaluation.data=V",)}
    | {"factors": (0.1, 0.2, 1.0), "choices": choices}
  )


def test_the_best_choice_of_a_row_goes_on():
  config = ConfigDict({"recipes": ("r.py",), "seeds": (0,), "metrics": ("m",)})
  config.rows = ConfigDict({"a": ("cosface", "x=1"), "b": ("arcface",)})
  config.reference = "a"
  config.tuning = tuning(
    {
      "a": (("head.scale=8",), ("head.scale=9",), ("head.scale=10",)),
      "b": (("y=1",), ("y=2",), ("y=3",)),
    }
  )
  comparison = compared(config)
  runs = plan_tuning(comparison, OUT)
  assert len({run.directory for run in runs}) == len(runs) == 12
  values = {"a": (0.5, 0.9, 0.6), "b": (0.7, 0.2, 0.1)}
  # By their mean: one seed alone would choose otherwise.
  shift = {("a", 0, 7): 0.3, ("a", 0, 8): -0.3, ("b", 1, 8): 0.4}
  results = {
    run: {
      "v/tar": values[run.row][run.choice]
      + shift.get((run.row, run.choice, run.seed), 0)
    }
    for run in runs
  }
  chosen, curves = statistics.tune(comparison, results)
  assert chosen == {("r.py", "a"): 1, ("r.py", "b"): 0}
  # Over log10 the factors are -1, log10(0.2) and 0.
  first, last = np.log10(2), -np.log10(0.2)
  assert curves[0].area == pytest.approx(0.7 * first + 0.75 * last)
  (final, _) = plan_trials(comparison, OUT, chosen)
  assert final.settings == (
    "--config=r.py:cosface",
    "--config.x=1",
    "--config.head.scale=9",
    "--config.seed=0",
  )
  tuned = next(run for run in runs if (run.row, run.choice) == ("a", 1))
  assert "--config.evaluation.data=V" in tuned.settings
  assert tuned.directory.path == "out/r/a/choice1/tuningseed7"
  # Without settings of its own, a run that chooses may be compared too.
  config.tuning.settings = ()
  plain = plan_tuning(compared(config), OUT)
  assert plain[0].directory.path == "out/r/a/choice0/seed7"
  assert final.directory not in {run.directory for run in runs}


def test_strengths_are_middles_times_factors():
  choices = strengths({"a": {"x": 0.2, "y.z": 30.0}}, (0.5, 2))
  assert choices["a"] == (("x=0.1", "y.z=15"), ("x=0.4", "y.z=60"))


def test_one_recipe_may_tune_for_all():
  config = ConfigDict({"recipes": ("r.py", "r.py:far"), "metrics": ("m",)})
  config.seeds, config.reference = (0,), "a"
  config.rows = ConfigDict({"a": ("cosface",)})
  config.tuning = tuning({"a": (("x=1",), ("x=2",), ("x=3",))})
  config.tuning.recipe = "r.py"
  comparison = compared(config)
  runs = plan_tuning(comparison, OUT)
  assert {run.recipe for run in runs} == {"r.py"} and len(runs) == 6
  results = {run: {"v/tar": run.choice} for run in runs}
  chosen, curves = statistics.tune(comparison, results)
  assert chosen == {("r.py", "a"): 2, ("r.py:far", "a"): 2}
  assert len(curves) == 1
  near, far = plan_trials(comparison, OUT, chosen)
  assert far.directory.path == "out/r-far/a/choice2/seed0"
  assert near.directory.path == "out/r/a/choice2/seed0"
  assert far.settings[:2] == ("--config=r.py:far,cosface", "--config.x=3")


def test_each_recipe_has_its_table_of_tuning(tmp_path):
  config = ConfigDict({"recipes": ("r.py", "q.py"), "metrics": ("m",)})
  config.seeds, config.reference = (0,), "a"
  config.rows = ConfigDict({"a": ("cosface",)})
  config.tuning = tuning({"a": (("x=1",), ("x=2",), ("x=3",))})
  comparison = compared(config)
  runs = plan_tuning(comparison, OUT)
  results = {run: {"v/tar": 0.1 * run.choice} for run in runs}
  for run in runs:
    if run.recipe == "q.py":
      results[run] = {"v/tar": 0.9 - 0.2 * run.choice}
  _, curves = statistics.tune(comparison, results)
  text = tables.write(
    ComparisonDirectory.at(str(tmp_path)), comparison, {}, curves
  )
  first, second = text.split("\n\n")[:2]
  assert first.startswith("| r.py, v/tar, seeds 7, 8 |")
  assert second.startswith("| q.py, v/tar, seeds 7, 8 |")
  assert "| a | 0.0000 | 0.1000 | **0.2000** |" in first
  assert "| a | **0.9000** | 0.7000 | 0.5000 |" in second
  assert len(first.splitlines()) == len(second.splitlines()) == 3


@pytest.mark.parametrize(
  "path", sorted(ROOT.glob("configs/ablation*.py")), ids=lambda p: p.stem
)
def test_every_run_of_a_shipped_comparison_is_a_valid_recipe(path):
  config = importlib.import_module(f"configs.{path.stem}").get_config()
  comparison = compared(config)
  chosen = {}
  if "tuning" in config:
    chosen = {
      (recipe, row): 0 for recipe in config.recipes for row in config.rows
    }
  runs = plan_tuning(comparison, OUT)
  runs += plan_trials(comparison, OUT, chosen)
  assert len({run.directory for run in runs}) == len(runs)
  for settings in {run.settings for run in runs}:
    recipe, _, variant = settings[0].removeprefix("--config=").partition(":")
    name = recipe.removesuffix(".py").replace("/", ".")
    chosen_recipe = importlib.import_module(name).get_config(variant)
    for setting in settings[1:]:
      key, _, value = setting.removeprefix("--config.").partition("=")
      *parents, field = key.split(".")
      section = chosen_recipe
      for parent in parents:
        section = section[parent]
      kind = type(section[field])
      section[field] = value == "True" if kind is bool else kind(value)
    check_builds(chosen_recipe)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(tmp_path, number):
  """Told to stop, or killed, ablate leaves no run behind; it can go on."""
  config = tmp_path / "config.py"
  config.write_text(
    CONFIG.format(metrics='"train/loss"').replace(
      '"tiny,cosface",',
      '"tiny,cosface", "schedule.length=100000", "log_every=1",',
    )
  )
  output = tmp_path / "a"
  command = [sys.executable, "-m", ABLATE, f"--config={config}"]
  process = subprocess.Popen(
    [*command, f"--output={output}"],
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  workdir = output / "demo" / "cosface" / "seed0"
  wait_for_step(workdir, 1, process)
  child = int(re.search(r"process (\d+)", (workdir / "lock").read_text())[1])
  process.send_signal(number)
  _, error = process.communicate(timeout=60)
  assert process.returncode == (75 if number == signal.SIGTERM else -9), error
  deadline = time.monotonic() + 60
  while pathlib.Path(f"/proc/{child}").exists():
    assert time.monotonic() < deadline
    time.sleep(0.1)
  assert os.listdir(workdir / "checkpoints")
  # None was started after.
  assert not list(output.glob("demo/jamsface/*/lock"))


def test_data_that_are_not_there_are_said_before_any_run(
  run, tmp_path, monkeypatch
):
  """They are where `make demo` was run."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  monkeypatch.chdir(tmp_path)
  config = tmp_path / "compare.py"
  text = CONFIG.format(metrics='"train/loss"')
  config.write_text(text.replace("tiny,", ""))
  done = run(ABLATE, f"--config={config}", f"--output={tmp_path / 'a'}")
  assert_one_sentence(done, "recipe 'configs/demo.py'", "build/demo/data/train")
  assert not (tmp_path / "a").exists()
