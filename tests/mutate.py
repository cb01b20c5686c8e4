"""Breaks the code in one line at a time, and sees whether a test notices.

  make mutants
  python tests/mutate.py --only=head/           # those of some files
  python tests/mutate.py --only=head/ --jobs=1

`mutants.toml` lists the changes: a file, what stands there once, what takes its
place, and the tests that must then fail, the fast ones first. Each is tried in
a copy of the repository; a table says which command kills it. Exit code 1 if
one survived.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
LIST = pathlib.Path(__file__).with_name("mutants.toml")
NOT_COPIED = (".git", ".venv", "build", "dist", "data", "runs", "__pycache__")
MINUTES = 15


def read_mutants(only: str = "") -> list[dict[str, str]]:
  """The changes of `mutants.toml` whose file has `only` in its path."""
  with open(LIST, "rb") as file:
    mutants = tomllib.load(file)["mutant"]
  return [one for one in mutants if only in one["file"]]


def apply(mutant: dict[str, str], root: pathlib.Path) -> None:
  """Makes a change below a copy of the repository."""
  path = root / mutant["file"]
  text = path.read_text(encoding="utf-8")
  assert text.count(mutant["old"]) == 1, f"{mutant['file']}: {mutant['old']!r}"
  path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")


def _left_out(folder: str, names: list[str]) -> list[str]:
  """What a copy goes without: only at the top is `data` not code."""
  if pathlib.Path(folder) == ROOT:
    return [name for name in names if name in NOT_COPIED]
  return [name for name in names if name == "__pycache__"]


def killer(mutant: dict[str, str]) -> str:
  """Which command notices a change: "test", "test-all", or none ("")."""
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / "copy"
    shutil.copytree(ROOT, copy, ignore=_left_out)
    apply(mutant, copy)
    if _fails(copy, mutant, "not slow"):
      return "test"
    return "test-all" if _fails(copy, mutant, "slow") else ""


def _fails(copy: pathlib.Path, mutant: dict[str, str], marked: str) -> bool:
  """Whether those tests of a change that are marked so fail."""
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "pytest",
      "-x",
      "-q",
      "-p",
      "no:cacheprovider",
      "-m",
      f"{marked} and not pods and not cuda",
      *mutant["tests"].split(),
    ],
    cwd=copy,
    env=os.environ | {"PYTHONPATH": str(copy)},
    capture_output=True,
    text=True,
    timeout=60 * MINUTES,
  )
  # 0: all pass; 1: tests failed; 5: none is marked so. All else, such as a test
  # that is not there, is a mistake of the list.
  if done.returncode not in (0, 1, 5):
    sys.exit(f"{mutant}:\n{done.stdout}{done.stderr}")
  return done.returncode == 1


def main() -> int:
  """Tries the mutants and prints what became of each."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", default="", help="part of the files' paths")
  parser.add_argument("--jobs", type=int, default=2, help="tried at once")
  arguments = parser.parse_args()
  mutants, found = read_mutants(arguments.only), collections.Counter()
  begin = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
    for number, (mutant, command) in enumerate(
      zip(mutants, pool.map(killer, mutants), strict=True), start=1
    ):
      found[command] += 1
      new = " ".join(mutant["new"].split()) or "(nothing)"
      print(
        f"{number:3}/{len(mutants)} {command or 'SURVIVED':9}"
        f"{mutant['file']}: {new}",
        flush=True,
      )
  print(
    f"{found['test']} killed by make test, {found['test-all']} by make test-all"
    f" alone, {found['']} survived, in {time.monotonic() - begin:.0f} s"
  )
  return int(found[""] > 0)


if __name__ == "__main__":
  sys.exit(main())
