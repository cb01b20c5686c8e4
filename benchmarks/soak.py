r"""Runs every long command over many images and looks whether anything grows.

  python benchmarks/soak.py --images=1000000 [--commands=from_folder,main]

The images are JPEG, PNG and WebP, smaller than, as large as and larger than
wanted, broken ones among them: a few files under many names, so that `clean`,
which would find copies and nothing else, has embeddings that are drawn. While a
command runs, its resident memory, open descriptors and threads are sampled, its
children's with them. A command is flat if in the last quarter of its time none
is more than 1 % above the second quarter.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

_SIZES = (60, 112, 150)  # Around the 112 of the tiny recipe's data.
_SAMPLE_SECONDS = 0.25
_GROWTH = 0.01
_CLASS = 50  # Images of a person.
_FEATURES = 512
_LEAST = 8  # Samples below which nothing is said.
# What a command reads of others.
_NEEDS = {
  "main": ["from_folder"],
  "embed": ["main"],
  "evaluate": ["main"],
}


def main() -> int:
  """Prints a table; exit code 1 if a command grows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=int, default=1_000_000)
  parser.add_argument("--commands", default="")
  arguments = parser.parse_args()
  grew = False
  with tempfile.TemporaryDirectory() as scratch:
    known = commands(scratch, arguments.images)
    wanted = arguments.commands.split(",") if arguments.commands else [*known]
    if unknown := set(wanted).difference(known):
      parser.error(f"no such command: {', '.join(sorted(unknown))}")
    needed = set(wanted)
    for name in reversed(known):
      if name in needed:
        needed.update(_NEEDS.get(name, ()))
    print("| command | seconds | MiB | more | descriptors | threads | flat |")
    print("|---|---|---|---|---|---|---|")
    write_images(pathlib.Path(scratch), arguments.images)
    if "clean" in wanted:
      write_embeddings(pathlib.Path(scratch), arguments.images)
    for name in known:
      if name in needed:
        grew |= run(name, known[name], quiet=name not in wanted)
  return int(grew)


def write_images(folder: pathlib.Path, count: int) -> None:
  """Many names of a few files in folders of people, landmarks and pairs."""
  rng = np.random.default_rng(0)
  kinds = folder / "kinds"
  kinds.mkdir()
  files = []
  for size in _SIZES:
    pixels = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (size, size))
    for end in (".jpg", ".png", ".webp"):
      data = cv2.imencode(end, pixels)[1].tobytes()
      for kind, part in (("whole", data), ("broken", data[: len(data) // 2])):
        files.append(kinds / f"{size}_{kind}{end}")
        files[-1].write_bytes(part)
  points = "38 52 74 52 56 72 42 92 71 92"  # ArcFace's, about.

  def name(number: int) -> str:
    end = files[number % len(files)].suffix
    return f"{number // _CLASS:06d}/{number:08d}{end}"

  with (
    open(folder / "landmarks.txt", "w", encoding="utf-8") as landmarks,
    open(folder / "pairs.txt", "w", encoding="utf-8") as pairs,
  ):
    for number in range(count):
      image = folder / "images" / name(number)
      if number % _CLASS == 0:
        image.parent.mkdir(parents=True)
      image.symlink_to(files[number % len(files)])
      landmarks.write(f"{name(number)} {points}\n")
      # Of one person and of two: of sound images, and some of broken ones.
      if number % 4 == 0:
        for other in (number ^ 2, (number + _CLASS) % count):
          same = number // _CLASS == other // _CLASS
          pairs.write(f"{name(number)}\t{name(other)}\t{same:d}\n")


def write_embeddings(folder: pathlib.Path, count: int) -> None:
  """What `embed` would write of people who differ, and some wrong labels.

  Two images of a person have a cosine of 0.5 on average; of a hundred images
  one has another's label and one is a copy of the image before.
  """
  rng = np.random.default_rng(0)
  output = folder / "embeddings"
  output.mkdir()
  labels = np.arange(count) // _CLASS
  people = rng.standard_normal((labels[-1] + 1, _FEATURES), np.float32)
  rows = np.lib.format.open_memmap(
    output / "embeddings.npy", "w+", np.float32, (count, _FEATURES)
  )
  for start in range(0, count, 10 * _CLASS):
    mine = labels[start : start + 10 * _CLASS]
    drawn = rng.standard_normal((len(mine), _FEATURES), np.float32)
    drawn += people[mine]
    drawn[1::100] = drawn[:-1:100]
    rows[start : start + len(mine)] = drawn
  rows.flush()
  labels[50::100] = rng.permutation(labels[50::100])
  np.save(output / "labels.npy", labels)
  with open(output / "paths.txt", "w", encoding="utf-8") as paths:
    paths.writelines(f"{number:08d}.jpg\n" for number in range(count))


def commands(scratch: str, images: int) -> dict[str, list[str]]:
  """The commands, in an order in which each finds what it needs."""
  python = [sys.executable, "-m"]
  data, work, faces = (f"{scratch}/{n}" for n in ("data", "work", "faces"))
  steps = max(1, images // 64)
  return {
    "from_folder": [
      *python, "data_prep.from_folder", f"--input={scratch}/images",
      f"--output={data}", f"--pairs={scratch}/pairs.txt", "--skip_bad",
      "--threads=2",
    ],
    "align": [
      *python, "data_prep.align", f"--input={scratch}/images",
      f"--output={faces}", f"--landmarks={scratch}/landmarks.txt",
      "--skip_bad", "--threads=2",
    ],
    "main": [
      *python, "jamsface_jax.main", "--config=configs/demo.py:tiny",
      f"--workdir={work}", f"--config.data.directory={data}",
      "--config.data.batch_size=64", f"--config.schedule.length={steps}",
      "--config.schedule.unit=steps",
    ],
    "embed": [
      *python, "jamsface_jax.embed", f"--workdir={work}",
      f"--images={scratch}/images", f"--output={scratch}/embedded",
    ],
    "evaluate": [
      *python, "jamsface_jax.evaluate", f"--workdir={work}",
      f"--data={data}", f"--output={scratch}/judged",
    ],
    "clean": [
      *python, "data_prep.clean", f"--embeddings={scratch}/embeddings",
      f"--output={scratch}/findings.txt",
    ],
  }  # fmt: skip


def run(name: str, command: list[str], *, quiet: bool) -> bool:
  """Runs a command; returns whether it grew."""
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  with tempfile.TemporaryFile() as said:
    begin = time.monotonic()
    process = subprocess.Popen(
      command, env=environment, stdout=said, stderr=said
    )
    samples = []
    while process.poll() is None:
      samples.append(sample(process.pid))
      time.sleep(_SAMPLE_SECONDS)
    seconds = time.monotonic() - begin
    if process.returncode:
      said.seek(0)
      print(said.read().decode(errors="replace")[-2000:], file=sys.stderr)
      raise SystemExit(f"{name} ended with {process.returncode}")
  if quiet or len(samples) < _LEAST:
    return False
  quarter = len(samples) // 4
  before = [
    statistics.median(x)
    for x in zip(*samples[quarter : 2 * quarter], strict=True)
  ]
  after = [statistics.median(x) for x in zip(*samples[-quarter:], strict=True)]
  flat = all(b <= a * (1 + _GROWTH) for a, b in zip(before, after, strict=True))
  print(
    f"| {name} | {seconds:.0f} | {after[0] / 2**20:.0f} |"
    f" {(after[0] / before[0] - 1):+.1%} | {after[1]:.0f} | {after[2]:.0f} |"
    f" {'yes' if flat else 'no'} |",
    flush=True,
  )
  return not flat


def sample(pid: int) -> tuple[int, int, int]:
  """Resident bytes, descriptors and threads of a process and its children."""
  total = np.zeros(3, np.int64)
  rest = [pid]
  while rest:
    place = pathlib.Path(f"/proc/{rest.pop()}")
    try:
      pages = int((place / "statm").read_text().split()[1])
      threads = list((place / "task").iterdir())
      files = len(list((place / "fd").iterdir()))
      total += (pages * os.sysconf("SC_PAGE_SIZE"), files, len(threads))
      for thread in threads:
        rest += map(int, (thread / "children").read_text().split())
    except OSError:
      pass  # It has ended.
  resident, files, threads = total.tolist()
  return resident, files, threads


if __name__ == "__main__":
  sys.exit(main())
