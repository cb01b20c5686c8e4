"""Exact search of `jamsface_jax.search` beside scikit-learn's and FAISS's.

  python benchmarks/search.py
  python benchmarks/search.py --gallery=100000 --probes=1000

Each contestant has a process of its own, which maps the gallery from a file,
does what it does once (FAISS copies the rows), and searches all probes at once.
Seconds are those of the search, the best of some rounds; memory
is the peak of the process beside what Python and its libraries take, pages of
the mapped file included, which the system can take back. All must find the
same. FAISS is left out where it is not installed (faiss-cpu).
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from jamsface_jax.errors import RunError, run_command
from jamsface_jax.metrics.nearest import nearest

Search = Callable[[np.ndarray, int], np.ndarray]


def ours(gallery: np.ndarray) -> Search:
  """The search of this package, each row a person."""
  owners = np.arange(len(gallery))
  return lambda probes, k: nearest(probes, gallery, owners, k).owner


def scikit_learn(gallery: np.ndarray) -> Search:
  """Euclidean distances, which it has a fast way for: the same order."""
  from sklearn.neighbors import NearestNeighbors

  fitted = NearestNeighbors(algorithm="brute").fit(gallery)
  return lambda probes, k: fitted.kneighbors(
    probes, n_neighbors=k, return_distance=False
  )


def faiss_flat(gallery: np.ndarray) -> Search:
  """IndexFlatIP."""
  import faiss

  index = faiss.IndexFlatIP(gallery.shape[1])
  index.add(gallery)
  return lambda probes, k: index.search(probes, k)[1]


CONTESTANTS = {
  "jamsface_jax": ours,
  "scikit-learn": scikit_learn,
  "faiss": faiss_flat,
}


def main() -> int:
  """Reads the flags, measures, prints the table."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/search.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--gallery", type=int, default=1_000_000, help="embeddings")
  add("--size", type=int, default=512, help="numbers of an embedding")
  add("--probes", type=int, default=1000, help="searched at once")
  add("--most", type=int, default=5, help="found of each probe")
  add("--rounds", type=int, default=3, help="times that each one searches")
  add("--one", choices=CONTESTANTS, help="of this process, with --folder")
  add("--folder", help="where the arrays are")
  arguments = parser.parse_args()
  if arguments.one:
    contest(arguments)
    return 0
  with tempfile.TemporaryDirectory() as folder:
    write_arrays(arguments, folder)
    compare(arguments, folder)
  return 0


def write_arrays(arguments: argparse.Namespace, folder: str) -> None:
  """Random directions; the probes are rows of the gallery, disturbed."""
  rng = np.random.default_rng(0)
  shape = (arguments.gallery, arguments.size)
  path = os.path.join(folder, "gallery.npy")
  gallery = np.lib.format.open_memmap(path, "w+", np.float32, shape)
  for start in range(0, len(gallery), 10_000):
    part = gallery[start : start + 10_000]
    part[:] = rng.normal(size=part.shape)
    part /= np.linalg.norm(part, axis=1, keepdims=True)
  chosen = rng.choice(len(gallery), arguments.probes)
  probes = gallery[chosen] + rng.normal(
    0, 0.5 / arguments.size**0.5, (arguments.probes, arguments.size)
  )
  probes /= np.linalg.norm(probes, axis=1, keepdims=True)
  np.save(os.path.join(folder, "probes.npy"), probes.astype(np.float32))


def contest(arguments: argparse.Namespace) -> None:
  """Searches, and prints seconds, memory and what was found first."""
  path = os.path.join(arguments.folder, "gallery.npy")
  gallery = np.load(path, mmap_mode="r")
  probes = np.load(os.path.join(arguments.folder, "probes.npy"))
  CONTESTANTS[arguments.one](np.eye(8, dtype=np.float32))(
    np.eye(8, dtype=np.float32), 2
  )
  before = peak_mib()
  begin = time.perf_counter()
  search = CONTESTANTS[arguments.one](gallery)
  ready = time.perf_counter() - begin
  seconds = []
  for _ in range(arguments.rounds):
    begin = time.perf_counter()
    found = search(probes, arguments.most)
    seconds.append(time.perf_counter() - begin)
  print(
    json.dumps(
      {
        "ready": ready,
        "seconds": min(seconds),
        "mib": peak_mib() - before,
        "found": np.asarray(found).tolist(),
      }
    )
  )


def peak_mib() -> float:
  """The most memory that this program had so far (Linux)."""
  with open("/proc/self/status", encoding="utf-8") as file:
    found = re.search(r"VmHWM:\s+(\d+) kB", file.read())
  assert found is not None
  return int(found[1]) / 1024


def compare(arguments: argparse.Namespace, folder: str) -> None:
  """Runs each contestant and prints a line for each.

  Raises:
    RunError: one failed, or found something else.
  """
  print(
    f"{arguments.probes:,} probes in {arguments.gallery:,} embeddings of"
    f" {arguments.size} numbers, {arguments.most} nearest, {os.cpu_count()}"
    " cores"
  )
  print(f"{'':14} {'ready s':>9} {'search s':>9} {'MiB':>8}")
  first = None
  for name in CONTESTANTS:
    if name == "faiss" and not importlib.util.find_spec("faiss"):
      print(f"{name:14} is not installed")
      continue
    flags = [f"--one={name}", f"--folder={folder}"]
    flags += [f"--{k}={getattr(arguments, k)}" for k in ("most", "rounds")]
    done = subprocess.run(
      [sys.executable, __file__, *flags], capture_output=True, text=True
    )
    if done.returncode:
      raise RunError(f"{name} failed: {done.stderr.strip()}")
    one = json.loads(done.stdout)
    print(
      f"{name:14} {one['ready']:9.2f} {one['seconds']:9.2f} {one['mib']:8,.0f}",
      flush=True,
    )
    found = np.array(one["found"])
    first = found if first is None else first
    agree = np.mean(found[:, 0] == first[:, 0])
    if agree < 0.999:
      raise RunError(f"{name} finds {1 - agree:.1%} of the probes otherwise.")


if __name__ == "__main__":
  run_command(main)
