"""Images a second of `jamsface_jax.embed`, against its model and its decoder.

  python benchmarks/embed.py --workdir=W --images=FOLDER

The bare decoder takes JPEG bytes from memory to pixels of the network's size,
with as many threads as there are cores; the bare model embeds pixels from
memory, with no decoder beside it. Both use all cores, so that one image costs
at least the sum of both times where the model runs on the same cores as the
decoder: the floor. The command is run as users run it, on an empty output, and
its own figure is taken. The contestants alternate, so that what else the
machine does hits all of them; ratios are taken within a round.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from jamsface_jax.data import decoding
from jamsface_jax.data.images import open_images
from jamsface_jax.devices.sharding import make_mesh
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.errors import RunError, run_command
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

COMMAND = "jamsface_jax.embed"
DECODER = "bare decoder"
MODEL = "bare model"
FLOOR = "floor: decoder and model, one after the other, all cores"


def main() -> int:
  """Reads the flags, measures, prints the table."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/embed.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, help="of a training run")
  add("--images", required=True, help="a folder of images")
  add("--bare", type=int, default=4096, help="images of the bare contestants")
  add("--rounds", type=int, default=5, help="times that each one runs")
  add("--threads", type=int, help="of the command; default: the run's")
  arguments = parser.parse_args()

  config = read_settings(RunDirectory(arguments.workdir))
  size = config.data.image_size
  source = open_images(arguments.images, size, root=None, color_order=None)
  contestants = {
    DECODER: bare_decoder(arguments, source.read(0, arguments.bare).names),
    MODEL: bare_model(arguments, config.evaluation.batch_size),
    COMMAND: command(arguments),
  }
  rates = {name: [] for name in contestants}
  for _ in range(arguments.rounds):
    for name, measure in contestants.items():
      rates[name].append(measure())
  table = {name: np.array(rate) for name, rate in rates.items()}
  table[FLOOR] = 1 / (1 / table[DECODER] + 1 / table[MODEL])
  print_table(table)
  return 0


def print_table(rates: dict[str, np.ndarray]) -> None:
  """Prints medians, extremes and ratios within rounds.

  Args:
    rates: images a second in each round, by contestant.
  """
  width = max(map(len, rates))
  print(f"{'images a second':{width}}  median     min     max  of floor")
  for name, rate in rates.items():
    print(
      f"{name:{width}} {np.median(rate):7,.0f} {min(rate):7,.0f}"
      f" {max(rate):7,.0f}   {np.median(rate / rates[FLOOR]):7.2f}"
    )


def bare_decoder(arguments, names: list[str]) -> Callable[[], float]:
  """Each thread decodes and scales its share, and throws the pixels away."""
  size = read_settings(RunDirectory(arguments.workdir)).data.image_size
  threads = os.cpu_count() or 1
  images = []
  for name in names:
    with open(os.path.join(arguments.images, name), "rb") as file:
      images.append(file.read())

  def decode(share: list[bytes]) -> None:
    pixels = np.empty((size, size, 3), np.uint8)
    for image in share:
      decoding.decode_into(image, pixels)

  def measure() -> float:
    with ThreadPoolExecutor(threads) as pool:
      begin = time.perf_counter()
      list(pool.map(decode, [images[k::threads] for k in range(threads)]))
      return len(images) / (time.perf_counter() - begin)

  return measure


def bare_model(arguments, batch_size: int) -> Callable[[], float]:
  """The network of the work directory, with the mirror image, on noise."""
  embedder, variables, _ = open_embedder(
    RunDirectory(arguments.workdir),
    step=None,
    batch_size=batch_size,
    flip=True,
    mesh=make_mesh(-1, jax.local_devices()),
  )
  shape = (batch_size, embedder.image_size, embedder.image_size, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  embedder.start(variables, images).block_until_ready()  # Compiles.
  batches = -(-arguments.bare // batch_size)

  def measure() -> float:
    begin = time.perf_counter()
    for _ in embedder.run(variables, ((k, images) for k in range(batches))):
      pass
    return batches * batch_size / (time.perf_counter() - begin)

  return measure


def command(arguments) -> Callable[[], float]:
  """The command, in a process of its own; the figure that it prints."""
  flags = [f"--workdir={arguments.workdir}", f"--images={arguments.images}"]
  if arguments.threads:
    flags.append(f"--threads={arguments.threads}")

  def measure() -> float:
    with tempfile.TemporaryDirectory() as output:
      done = subprocess.run(
        [sys.executable, "-m", COMMAND, *flags, f"--output={output}"],
        capture_output=True,
        text=True,
      )
    found = re.search(r"\(([0-9,]+) images/s\)", done.stdout)
    if done.returncode or not found:
      raise RunError(f"{COMMAND} failed: {done.stderr.strip()}")
    return float(found[1].replace(",", ""))

  return measure


if __name__ == "__main__":
  run_command(main)
