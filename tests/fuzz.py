"""Fuzzes the readers, guided by the code that each input reaches.

  python tests/fuzz.py [--seconds=600] [READER ...]

Needs atheris (extra `fuzz`). Each reader runs in a process of its own; an input
that is a fault is left in tests/fuzzing/found/READER, where the suite tries it
from then on. Prints inputs tried, faults, and peak memory.
"""

import argparse
import importlib
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
_MOST_MIB = 2048


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("readers", nargs="*")
  parser.add_argument("--seconds", type=int, default=600)
  parser.add_argument("--one", help=argparse.SUPPRESS)
  arguments, rest = parser.parse_known_args()
  sys.path[:0] = [str(HERE), str(HERE.parent)]
  if arguments.one:
    return fuzz(arguments.one, rest + arguments.readers)  # The corpus.
  import fuzz_readers

  print("| reader | inputs | faults | peak MiB |\n|---|---|---|---|")
  faults = 0
  for name in arguments.readers or fuzz_readers.READERS:
    faults += supervise(name, fuzz_readers, arguments.seconds)
  return 1 if faults else 0


def supervise(name, readers, seconds):
  """Runs one reader; returns the number of faults, 0 or 1."""
  found = readers.FOUND / name
  found.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as corpus:
    for number, seed in enumerate(readers.seeds(name)):
      (pathlib.Path(corpus) / str(number)).write_bytes(seed)
    done = subprocess.run(
      [
        sys.executable,
        __file__,
        f"--one={name}",
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={_MOST_MIB}",
        "-timeout=20",
        "-max_len=4096",
        "-print_final_stats=1",
        f"-artifact_prefix={found}/",
        corpus,
      ],
      capture_output=True,
      text=True,
      errors="replace",
    )
  if not any(found.iterdir()):
    found.rmdir()
  stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
  # libFuzzer says so; it goes on without them too.
  assert "seed corpus: files" in done.stderr, done.stderr[-3000:]
  fault = done.returncode != 0
  runs = stats.get("number_of_executed_units", "?")
  peak = stats.get("peak_rss_mb", "?")
  print(f"| {name} | {runs} | {int(fault)} | {peak} |", flush=True)
  if fault:
    print(done.stderr[-3000:], file=sys.stderr)
  return int(fault)


def fuzz(name, rest):
  """In a process of its own: never returns."""
  atheris = importlib.import_module("atheris")
  with atheris.instrument_imports(include=["jamsface_jax", "data_prep"]):
    readers = importlib.import_module("fuzz_readers")
  atheris.Setup([sys.argv[0], *rest], lambda data: readers.read(name, data))
  atheris.Fuzz()


if __name__ == "__main__":
  sys.exit(main())
