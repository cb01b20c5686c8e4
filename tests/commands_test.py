"""The commands explain themselves."""

import configparser
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import assert_one_sentence

from jamsface_jax.commands import commands, find, refuse_what_is_no_command
from jamsface_jax.errors import InputError
from jamsface_jax.settings.names import flatten, meanings, values
from jamsface_jax.settings.origin import source_of
from jamsface_jax.settings.sections import Settings
from jamsface_jax.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
ALL = [*commands("jamsface_jax"), *commands("data_prep")]

_ALL_HELPS = """
import contextlib, io, json, runpy, sys
from absl import flags
helps, known = {}, set(flags.FLAGS)
for name in sys.argv[1:]:
  sys.argv, output = [name, "--help"], io.StringIO()
  with contextlib.redirect_stdout(output):
    try:
      runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
      assert not end.code, (name, end.code)
  helps[name] = output.getvalue()
  for one in set(flags.FLAGS) - known:  # Others define the same again.
    delattr(flags.FLAGS, one)
json.dump(helps, sys.stdout)
"""


@pytest.fixture(scope="module")
def helps():
  """What --help of every command says, from one process."""
  done = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", _ALL_HELPS, *ALL],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_the_list_has_every_command():
  done = subprocess.run(
    [sys.executable, "-X", "importtime", "-m", "jamsface_jax"],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0
  assert "numpy" not in done.stderr and "jax._src" not in done.stderr
  runnable = [
    f"{path.parent.name}.{path.stem}"
    for package in ("jamsface_jax", "data_prep")
    for path in (ROOT / package).glob("*.py")
    if re.search(r"^if __name__ == .__main__.:", path.read_text(), re.M)
    and path.stem != "__main__"
  ]
  assert sorted(runnable) == sorted(ALL) and len(ALL) > 15
  for name in ALL:
    (line,) = [x for x in done.stdout.splitlines() if f" {name}  " in x]
    assert line.rstrip().endswith(".") and len(line) < 120


@pytest.mark.parametrize("name", ALL)
def test_help_begins_with_an_example(helps, name):
  text = helps[name]
  assert text.startswith("usage: ") and f"python -m {name}" in text
  flags = re.search(r"^(options|flags):$", text, re.M)
  assert flags, text
  example = re.search(rf"^  python -m {re.escape(name)} \S", text, re.M)
  assert example or name == "data_prep.clean", text  # It has another first.
  if example:
    assert example.start() < flags.start()
  assert max(map(len, text.splitlines())) <= 88


def test_flags_of_main_are_a_short_list(helps):
  text = helps["jamsface_jax.main"]
  assert text.count("\n") < 40
  found = re.findall(r"^  --(\w+) ", text, re.M)
  assert {"config", "workdir", "distributed", "fine_tune_from"} < set(found)
  assert "config.NAME=VALUE" in text and "absl" not in text


def test_the_list_takes_no_flags(run):
  done = run("jamsface_jax", "--completion=bash")
  assert_one_sentence(done, "'--completion=bash' is no command")


@pytest.mark.parametrize(
  ("word", "module"),
  [
    ("train", "jamsface_jax.main"),
    ("main", "jamsface_jax.main"),
    ("embed", "jamsface_jax.embed"),
    ("from-folder", "data_prep.from_folder"),
  ],
)
def test_a_word_means_a_command(word, module):
  assert find(word) == module


def test_what_a_word_without_meaning_is_like():
  with pytest.raises(InputError, match="'trian' is no command: use .*main'"):
    find("trian")
  with pytest.raises(InputError, match="is no command: use one of the list"):
    find("qqq")


SCRIPT = "import sys\nfrom jamsface_jax.__main__ import run\nsys.exit(run())\n"


def type_script(folder, *words, path=""):
  """Runs `jamsface` as pip installs it: two lines below an interpreter."""
  script = folder / "jamsface"
  script.write_text(f"#!{sys.executable}\n{SCRIPT}")
  script.chmod(0o755)
  return subprocess.run(
    [script, *words],
    capture_output=True,
    text=True,
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path},
  )


def test_the_script_is_the_commands(tmp_path):
  """It is named in what is printed, by its path where no shell finds it."""
  done = type_script(tmp_path, "inspect", ".", "--output=o")
  assert_one_sentence(done, "'.'", "'jamsface from_folder'")
  helped = type_script(tmp_path, "embed", "--help").stdout
  assert helped.startswith("usage: jamsface embed ")
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  named = setup["options.entry_points"]["console_scripts"].split(" = ")
  assert [*map(str.strip, named)] == ["jamsface", "jamsface_jax.__main__:run"]


def test_the_list_of_the_script(tmp_path):
  for words in ([], ["--help"]):
    lines = type_script(tmp_path, *words).stdout.splitlines()
    for name in ("train", "embed", "evaluate", "search", "from_folder"):
      assert [x for x in lines if x.startswith(f"  jamsface {name}  ")], name
  assert_one_sentence(type_script(tmp_path, "trian"), "'jamsface train'")


@pytest.mark.parametrize(
  ("module", "meant"),
  [
    ("jamsface_jax.train", "jamsface_jax.main'"),
    ("jamsface_jax.training", "jamsface_jax.main'"),
    ("jamsface_jax.evaluation", "jamsface_jax.evaluate'"),
    ("jamsface_jax.head.losses", "one of the list"),
    ("jamsface_jax.align", "data_prep.align'"),
    ("data_prep", "'python -m jamsface_jax'"),
    ("data_prep.embed", "jamsface_jax.embed'"),
  ],
)
def test_modules_that_are_no_commands(module, meant, capsys):
  with pytest.raises(SystemExit) as ended:
    refuse_what_is_no_command(["python", "-X", "dev", "-m", module, "--a=b"])
  error = capsys.readouterr().err
  assert ended.value.code == 2 and error.count("\n") == 1
  assert f"{module!r} is no command" in error and meant in error


@pytest.mark.parametrize(
  "module", [*ALL, "jamsface_jax", "jamsface_jax.ablation.child", "pytest", ""]
)
def test_modules_that_are_run(module):
  refuse_what_is_no_command(["python", "-m", module])


@pytest.mark.parametrize("module", ["jamsface_jax.train", "data_prep.writing"])
def test_python_runs_no_other_modules(module):
  done = subprocess.run(
    [sys.executable, "-m", module], capture_output=True, text=True, cwd=ROOT
  )
  assert_one_sentence(done, f"'{module}' is no command")


@pytest.mark.parametrize("module", [*ALL, "jamsface_jax"])
def test_every_command_says_its_version(module, run):
  done = run(module, "--version")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == f"jamsface_jax {__version__}\n"


def rows_of(text):
  return {line.split()[0]: re.split(r"  +", line) for line in text.splitlines()}


def test_config_says_value_source_and_meaning(run):
  done = run(
    "jamsface_jax.config",
    "configs/lfw_cpu.py:softmax",
    "--config.data.threads=4",
    "--noconfig.augment.flip",
  )
  assert done.returncode == 0, done.stderr
  rows = rows_of(done.stdout)
  assert rows["data.threads"][1:] == [
    "4",
    "command line (default 2)",
    "Batches read and decoded at once, per process.",
  ]
  assert rows["augment.flip"][1:3] == ["False", "command line (default True)"]
  assert rows["head.cosine_margin"][1:] == [
    "0.0",
    "recipe (default 0.2)",
    "In the cosine: first value, and mean if held.",
  ]
  assert rows["head.cosine_max"][2:] == [
    "default",
    "Learned cosine margins stay below this.",
  ]
  assert list(rows) == list(meanings())


def test_what_is_printed_is_what_is_trained():
  """The sources agree with the three configs that they are told from."""
  recipe = importlib.import_module("configs.demo").get_config()
  base = values(Settings())
  for name, value in flatten(recipe.to_dict()).items():
    source = source_of(name, value, ["--config.seed", "3"])
    if name == "seed":
      assert source == "command line"
    else:
      assert source == ("default" if value == base[name] else "recipe")


def test_variants_of_a_recipe(run, tmp_path):
  done = run("jamsface_jax.config", "configs/lfw_cpu.py:help")
  assert done.returncode == 0
  assert re.findall(r"^  :(\w+)", done.stdout, re.M)[:2] == ["full", "tiny"]
  assert re.search(r"losses, as :NAME.*: softmax, .*arcface", done.stdout)
  workdir = tmp_path / "w"
  done = run(
    "jamsface_jax.main", "--config=configs/demo.py:help", f"--workdir={workdir}"
  )
  assert done.returncode == 0 and ":tiny" in done.stdout
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    ([], ["--config is needed", "configs/demo.py"]),
    (["configs/nope.py"], ["configs/nope.py", "cannot be read"]),
    (["configs/demo.py:big"], ["'big'", "full, tiny"]),
    (["configs/demo.py", "--config.data.btch_size=1"], ["batch_size"]),
    (["configs/demo.py", "stray"], ["'stray'", "not a flag"]),
  ],
)
def test_mistakes(run, flags, parts):
  assert_one_sentence(run("jamsface_jax.config", *flags), *parts)
