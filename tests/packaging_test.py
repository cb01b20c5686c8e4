"""What is built from the repository is what is in it, and runs elsewhere."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import fresh_shell
import pytest

import jamsface_jax
from jamsface_jax.settings import recipe_flags

ROOT = pathlib.Path(__file__).parent.parent
# Folders of the repository, by the package that they are installed as.
FOLDERS = {"jamsface_jax": "jamsface_jax", "data_prep": "data_prep"} | {
  "jamsface_jax/configs": "configs"
}
NOT_INSTALLED = {"data_prep/README.md"}
NOT_COPIED = {".git", ".venv", "build", "dist", "data", "runs"}


def tree():
  """What a wheel must hold: every file of the packages, by its name there."""
  return {
    f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
    for package, folder in FOLDERS.items()
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  } - NOT_INSTALLED


def test_every_package_is_named():
  settings = configparser.ConfigParser()
  settings.read(ROOT / "setup.cfg")
  named = set(settings["options"]["packages"].split())
  folders = {
    os.path.dirname(name).replace("/", ".")
    for name in tree()
    if name.endswith("/__init__.py")
  }
  assert named == folders and len(named) == 27


def test_the_version_is_semantic_and_in_the_changelog():
  version = jamsface_jax.__version__
  assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version)
  changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  newest = re.search(r"^## \[(.+?)\](.*)$", changes, re.M)
  assert newest and version in (newest[1], *newest[2].split())
  kinds = set(re.findall(r"^### (.+)$", changes, re.M))
  assert kinds <= {
    "Added",
    "Changed",
    "Deprecated",
    "Removed",
    "Fixed",
    "Security",
  }


def test_a_recipe_at_hand_goes_before_that_of_the_package(
  tmp_path, monkeypatch, capsys
):
  argv = ["x", "--config=configs/demo.py:tiny", "--config", "configs/none.py"]
  monkeypatch.chdir(tmp_path)
  ours = ROOT / "configs" / "demo.py"
  found = recipe_flags._with_shipped_recipe(argv)
  assert found == ["x", f"--config={ours}:tiny", *argv[2:]]
  assert capsys.readouterr().err == f"recipe: {ours}\n"
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "demo.py").touch()
  assert recipe_flags._with_shipped_recipe(argv) == argv
  assert not capsys.readouterr().err
  # Only recipes: another flag may name a file that is to be made.
  assert recipe_flags._with_shipped_recipe(
    ["x", "--output", "configs/lfw_cpu.py", "--config", "configs/lfw_cpu.py"]
  )[2:] == [
    "configs/lfw_cpu.py",
    "--config",
    str(ROOT / "configs" / "lfw_cpu.py"),
  ]


def build_wheel(folder):
  """The path of the wheel that is built, in `folder`, from a copy."""
  source, built = folder / "source", folder / "built"
  shutil.copytree(
    ROOT,
    source,
    ignore=lambda folder, names: (
      [n for n in names if n in NOT_COPIED or n.endswith(".egg-info")]
      if pathlib.Path(folder) == ROOT
      else ["__pycache__"]
    ),
  )
  run("-m", "build", "--no-isolation", f"--outdir={built}", cwd=source)
  (wheel,) = built.glob("*.whl")
  return wheel


def install(wheel, environment):
  """Makes a virtual environment with the wheel; returns its packages' folder.

  What the wheel asks for is that of the tests' own environment, whose link to
  the repository is in a .pth file, which does not count in another one's.
  """
  run("-m", "venv", "--without-pip", environment, cwd=environment.parent)
  base = {"base": str(environment), "platbase": str(environment)}
  packages = pathlib.Path(sysconfig.get_path("purelib", "venv", base))
  (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
  run(
    "-m",
    "pip",
    "install",
    "--quiet",
    "--no-deps",
    "--no-index",
    f"--target={packages}",
    wheel,
    cwd=environment.parent,
  )
  return packages


def run(*words, cwd):
  done = subprocess.run(
    [sys.executable, *words], cwd=cwd, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_runs_outside_the_repository(tmp_path):
  """Source distribution, the wheel from it, the commands from that."""
  wheel = build_wheel(tmp_path)
  with zipfile.ZipFile(wheel) as archive:
    names = {n for n in archive.namelist() if ".dist-info/" not in n}
  assert names == tree()
  here = tmp_path / "here"
  here.mkdir()
  installed = install(wheel, here / ".venv")

  def type_in(line):
    done = fresh_shell.type_in(line, here, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done

  type_in(
    "python -m data_prep.synthesize --output=data --images=20 --pairs=40"
    " --identities=4 --test_identities=20 --size=56"
  )
  assert (here / "data" / "test" / "dataset.json").exists()
  done = type_in(
    "python -m jamsface_jax.main --config=configs/demo.py:tiny --workdir=w"
  )
  recipe = installed / "jamsface_jax" / "configs" / "demo.py"
  assert f"recipe: {recipe}" in done.stderr.splitlines()
  assert "finished 5 steps" in done.stdout
  page = (here / "w" / "report.html").read_text(encoding="utf-8")
  for name in ("report.css", "report.js"):
    kept = (ROOT / "jamsface_jax" / "reports" / name).read_text(
      encoding="utf-8"
    )
    assert kept.splitlines()[-1] in page
  rows = type_in("python -m jamsface_jax.config configs/demo.py:tiny").stdout
  assert "schedule.length" in rows
