"""Templates of IJB-C's size: pooling, 1:1 scores and ROC, against NumPy.

  python benchmarks/evaluation.py
  python benchmarks/evaluation.py --all_pairs=30000

Random embeddings of 469,375 images make up 23,124 templates, of which
15,658,489 pairs in random order are compared. Two programs read the same files
and report the same figures: the functions behind jamsface_jax.evaluate, and the
obvious script, which adds up media with `np.add.reduceat`, multiplies the rows
of one batch of pairs after another, and asks scikit-learn for the curve. Each
runs in a process of its own, whose peak memory is taken; they alternate, and
ratios are taken within a round.

With --all_pairs=N every pair of N random embeddings is compared instead, which
are forgotten tile by tile: the memory is that of the embeddings and a tile.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

IMAGES, TEMPLATES, PAIRS, SIZE = 469_375, 23_124, 15_658_489, 512
POSITIVES = 19_557
PEOPLE = 3_531
FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def main() -> int:
  """Makes the data, measures, prints the table."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/evaluation.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--rounds", type=int, default=3, help="times that each one runs")
  add("--scale", type=float, default=1.0, help="share of IJB-C's size")
  add("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
  add("--all_pairs", type=int, help="number of embeddings")
  add("--folder", help="of the data; default: a temporary one")
  arguments = parser.parse_args()
  if arguments.one:
    print(json.dumps(CONTESTANTS[arguments.one](arguments.folder)))
    return 0
  if arguments.all_pairs:
    compare_all(arguments.all_pairs)
    return 0
  with tempfile.TemporaryDirectory() as folder:
    folder = arguments.folder or folder
    os.makedirs(folder, exist_ok=True)
    make_data(folder, arguments.scale)
    rounds = [
      {name: measure(name, folder) for name in CONTESTANTS}
      for _ in range(arguments.rounds)
    ]
  print_table(rounds)
  return 0


def make_data(folder: str, scale: float) -> None:
  """Writes random embeddings, templates in order as in IJB, random pairs."""
  rng = np.random.default_rng(0)
  images, templates = int(IMAGES * scale), int(TEMPLATES * scale)
  people = rng.integers(0, max(int(PEOPLE * scale), 2), templates)
  which = np.sort(
    np.r_[np.arange(templates), rng.integers(0, templates, images - templates)]
  )
  # Media of about four images; a medium belongs to one template.
  media = np.cumsum(
    (rng.random(images) < 0.25) | (np.diff(which, prepend=-1) > 0)
  )
  centres = rng.standard_normal((people.max() + 1, SIZE), np.float32)
  rows = np.lib.format.open_memmap(
    os.path.join(folder, "embeddings.npy"), "w+", np.float32, (images, SIZE)
  )
  for start in range(0, images, 2**14):
    stop = min(start + 2**14, images)
    noise = rng.standard_normal((stop - start, SIZE), np.float32)
    rows[start:stop] = centres[people[which[start:stop]]] + 9 * noise
  rows.flush()
  pairs = rng.integers(0, templates, (int(PAIRS * scale**2), 2), np.int32)
  # IJB-C's share of positive pairs: each is a template with one of its person.
  order = np.argsort(people, kind="stable")
  positives = rng.choice(len(pairs), int(POSITIVES * scale**2), replace=False)
  neighbour = np.empty(templates, np.int32)
  neighbour[order] = np.roll(order, 1)
  pairs[positives, 1] = neighbour[pairs[positives, 0]]
  same = people[pairs[:, 0]] == people[pairs[:, 1]]
  for name, array in (
    ("templates", which),
    ("media", media),
    ("scores", rng.uniform(0.5, 1, images)),
    ("pairs", pairs),
    ("same", same),
  ):
    np.save(os.path.join(folder, f"{name}.npy"), array)


def measure(name: str, folder: str) -> dict[str, float]:
  """Runs one contestant in a process of its own."""
  done = subprocess.run(
    [sys.executable, __file__, f"--one={name}", f"--folder={folder}"],
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(done.stdout)


class Clock:
  """Seconds of each part of a program, and the peak memory of all."""

  def __init__(self):
    self.result: dict[str, float] = {}
    self._last = self._begin = time.monotonic()

  def lap(self, name: str) -> None:
    """Ends a part."""
    now = time.monotonic()
    self.result[name] = now - self._last
    self._last = now

  def finish(self, tars: np.ndarray, auc: float) -> dict[str, float]:
    """Ends the program; returns what it took and what it found."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    self.result |= {
      "total": self._last - self._begin,
      "MiB": kib / 1024,
      "AUC": auc,
    }
    return self.result | {
      f"TAR@{far:g}": float(tar) for far, tar in zip(FARS, tars, strict=True)
    }


def load(folder: str, *names: str) -> list[np.ndarray]:
  """Reads arrays."""
  return [np.load(os.path.join(folder, f"{name}.npy")) for name in names]


def ours(folder: str) -> dict[str, float]:
  """The functions behind jamsface_jax.evaluate."""
  from jamsface_jax.evaluation.foreign_embeddings import blocks, open_embeddings
  from jamsface_jax.metrics.cosines import many_pair_cosines
  from jamsface_jax.metrics.roc import roc
  from jamsface_jax.protocols.pooling import Pooling, TemplatePooler

  clock = Clock()
  path = os.path.join(folder, "embeddings.npy")
  embeddings = open_embeddings(path)
  templates, media, scores = load(folder, "templates", "media", "scores")
  pooling = Pooling(detector=True, norm=True)
  pooler = TemplatePooler(
    templates, media, scores, poolings=[pooling], what=path
  )
  for block in blocks(embeddings, np.arange(len(embeddings))):
    pooler.add(block)
  units = pooler.units()[pooling]
  clock.lap("pooling")
  pairs, same = load(folder, "pairs", "same")
  cosines = many_pair_cosines(units, pairs[:, 0], pairs[:, 1])
  clock.lap("scores")
  curve = roc(cosines, same)
  tars, auc = curve.tar_at_far(FARS), curve.auc()
  clock.lap("ROC")
  return clock.finish(tars, auc)


def script(folder: str) -> dict[str, float]:
  """The obvious NumPy and scikit-learn."""
  from sklearn import metrics

  clock = Clock()
  embeddings, templates, media, scores = load(
    folder, "embeddings", "templates", "media", "scores"
  )
  embeddings *= scores[:, np.newaxis].astype(np.float32)
  starts = np.flatnonzero(np.diff(media, prepend=-1))  # Media lie in order.
  sizes = np.diff(np.append(starts, len(media)))
  means = np.add.reduceat(embeddings, starts) / sizes[:, np.newaxis]
  first = np.flatnonzero(np.diff(templates[starts], prepend=-1))
  pooled = np.add.reduceat(means, first).astype(np.float32)
  pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
  del embeddings, means
  clock.lap("pooling")
  pairs, same = load(folder, "pairs", "same")
  cosines = np.empty(len(pairs), np.float32)
  for start in range(0, len(pairs), 100_000):
    batch = pairs[start : start + 100_000]
    products = pooled[batch[:, 0]] * pooled[batch[:, 1]]
    cosines[start : start + len(batch)] = products.sum(axis=1)
  clock.lap("scores")
  far, tar, _ = metrics.roc_curve(same, cosines)
  tars = [tar[np.searchsorted(far, one, "right") - 1] for one in FARS]
  auc = float(metrics.auc(far, tar))
  clock.lap("ROC")
  return clock.finish(np.array(tars), auc)


def compare_all(count: int) -> None:
  """Compares every pair of random embeddings of five to a person."""
  from jamsface_jax.metrics.cosines import unit_rows
  from jamsface_jax.protocols.all_pairs import count_all_pairs

  rng = np.random.default_rng(0)
  people = np.arange(count) // 5
  units = rng.standard_normal((people[-1] + 1, SIZE), np.float32)[people]
  units += 1.5 * rng.standard_normal((count, SIZE), np.float32)
  units = unit_rows(units, what="embeddings")
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  clock = Clock()
  counts, _, _ = count_all_pairs(units, people)
  clock.lap("all pairs")
  found = clock.finish(counts.curve.tar_at_far(FARS), counts.curve.auc())
  print(f"pairs       {counts.num_positives + counts.curve.num_negatives:26,}")
  print(f"MiB before  {before / 1024:26.2f}")
  for name, value in found.items():
    cell = "too few pairs" if np.isnan(value) else f"{value:.6f}"
    print(f"{name:12}{cell:>26}")


CONTESTANTS: dict[str, Callable[[str], dict[str, float]]] = {
  "jamsface_jax": ours,
  "NumPy and scikit-learn": script,
}


def print_table(rounds: list[dict[str, dict[str, float]]]) -> None:
  """Prints medians over the rounds, and ratios within them."""
  first, second = CONTESTANTS
  print(f"{'':12}{first:>26}{second:>26}{'ratio':>20}")
  for row in rounds[0][first]:
    mine, theirs = (
      np.array([one[name][row] for one in rounds]) for name in (first, second)
    )
    ratios = theirs / mine
    if np.isnan(mine).any():
      print(f"{row:12}{'too few pairs':>26}")
      continue
    digits = 6 if row.startswith(("TAR", "AUC")) else 2
    print(
      f"{row:12}{np.median(mine):26.{digits}f}{np.median(theirs):26.{digits}f}"
      f"{np.median(ratios):9.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
    )


if __name__ == "__main__":
  sys.exit(main())
