"""Images a second of the input pipeline, against what it could be.

  python benchmarks/input_pipeline.py --data=DATASET --images=FOLDER

Everything reads the same images in a random order, decodes them, flips half of
them and makes batches, but for the bare decoder, which decodes JPEG bytes that
lie in memory and throws the pixels away: no pipeline can be faster. The
contestants alternate, so that what else the machine does hits all of them;
ratios are taken within a round. The column of PyTorch needs torch and Pillow,
and --images, the folder that the data set was made from.
"""

import argparse
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import grain.python as grain
import numpy as np
import simplejpeg
from array_record.python import array_record_data_source

from jamsface_jax.data import decoding, records
from jamsface_jax.data.folders import walk
from jamsface_jax.data.pipeline import batches
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError, run_command

BARE = "bare decoder, 2 threads"
TORCH = "PyTorch DataLoader, Pillow, 2 workers"
WARM_UP = 16  # Batches before the clock starts: workers are up, queues level.


def main() -> int:
  """Reads the flags, measures, prints the table."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/input_pipeline.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--data", required=True, help="a data set of JPEG images of one size")
  add("--images", help="the folder it was made from, for PyTorch's column")
  add("--batch_size", type=int, default=128, help="images in a batch")
  add("--batches", type=int, default=100, help="timed batches a round")
  add("--rounds", type=int, default=7, help="times that each one runs")
  add("--threads", default="1,2,3", help="of our pipeline, by commas")
  arguments = parser.parse_args()

  contestants = {
    "bare decoder, 1 thread": bare_decoder(arguments, 1),
    BARE: bare_decoder(arguments, 2),
  }
  for threads in map(int, arguments.threads.split(",")):
    name = f"this pipeline, {threads} thread{'s' * (threads > 1)}"
    contestants[name] = this_pipeline(arguments, threads)
  contestants["Grain, an element an image, 2 threads"] = grain_by_image(
    arguments
  )
  if arguments.images and all(map(importlib.util.find_spec, ("torch", "PIL"))):
    contestants[TORCH] = torch_loader(arguments)

  seconds = {name: [] for name in contestants}
  for _ in range(arguments.rounds):
    for name, measure in contestants.items():
      seconds[name].append(measure())
  images = arguments.batches * arguments.batch_size
  print_table({name: images / np.array(s) for name, s in seconds.items()})
  return 0


def print_table(rates: dict[str, np.ndarray]) -> None:
  """Prints medians, extremes and ratios within rounds.

  Args:
    rates: images a second in each round, by contestant.
  """
  width = max(map(len, rates))
  print(
    f"{'images a second':{width}}  median     min     max   of bare  x PyTorch"
  )
  for name, rate in rates.items():
    of_bare = np.median(rate / rates[BARE])
    line = f"{name:{width}} {np.median(rate):7,.0f} {min(rate):7,.0f}"
    line += f" {max(rate):7,.0f}   {of_bare:7.2f}"
    if TORCH in rates:
      line += f"    {np.median(rate / rates[TORCH]):7.2f}"
    print(line)


def time_batches(
  stream: Iterator, count: int, flip: Callable | None = None
) -> float:
  """Returns the seconds that `count` batches take once the stream is warm."""
  for _ in itertools.islice(stream, WARM_UP):
    pass
  begin = time.perf_counter()
  for batch in itertools.islice(stream, count):
    if flip is not None:
      flip(batch)
  return time.perf_counter() - begin


def bare_decoder(
  arguments: argparse.Namespace, threads: int
) -> Callable[[], float]:
  """Each thread decodes its share of the images, one after the other."""
  count = arguments.batches * arguments.batch_size
  reader = records.RecordReader(arguments.data)
  ids = np.random.default_rng(0).integers(len(reader), size=count)
  images = [record.image for record in reader.read(ids.tolist())]
  if not all(simplejpeg.is_jpeg(image) for image in images):
    raise InputError(f"--data={arguments.data!r} holds other images than JPEG.")

  def decode(share: list[bytes]) -> None:
    for image in share:
      simplejpeg.decode_jpeg(image, "RGB")

  def measure() -> float:
    with ThreadPoolExecutor(threads) as pool:
      begin = time.perf_counter()
      list(pool.map(decode, [images[k::threads] for k in range(threads)]))
      return time.perf_counter() - begin

  return measure


def this_pipeline(
  arguments: argparse.Namespace, threads: int
) -> Callable[[], float]:
  """`pipeline.batches`; the flip, else the accelerator's, is on the host."""
  source = RecordSource(arguments.data, image_size(arguments.data))
  rng = np.random.default_rng(0)

  def flip(batch: dict[str, np.ndarray]) -> None:
    for row in np.flatnonzero(rng.random(arguments.batch_size) < 0.5):
      cv2.flip(batch["images"][row], 1, dst=batch["images"][row])

  def measure() -> float:
    stream = batches(
      source,
      seed=int(rng.integers(1000)),
      sampling="uniform",
      batch_size=arguments.batch_size,
      rows=np.arange(arguments.batch_size),
      start=0,
      total_steps=WARM_UP + arguments.batches,
      threads=threads,
    )
    return time_batches(stream, arguments.batches, flip)

  return measure


def grain_by_image(arguments: argparse.Namespace) -> Callable[[], float]:
  """Grain as it is mostly used: a Python call an image, then `batch`."""
  index = records.read_index(arguments.data)
  source = array_record_data_source.ArrayRecordDataSource(
    [os.path.join(arguments.data, shard.file) for shard in index.shards]
  )
  rng = np.random.default_rng(0)

  def decode(data: bytes, rng: np.random.Generator) -> dict[str, Any]:
    record = records.decode_record(data)
    pixels = decoding.decode_image(record.image)
    if rng.random() < 0.5:
      pixels = cv2.flip(pixels, 1)
    return {"images": pixels, "labels": record.label}

  def measure() -> float:
    # ty: ignore[invalid-argument-type] Grain has two names for a source.
    elements = grain.MapDataset.source(source).seed(int(rng.integers(1000)))
    elements = elements.shuffle().repeat().random_map(decode)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=256)
    stream = elements.batch(arguments.batch_size).to_iter_dataset(options)
    return time_batches(iter(stream), arguments.batches)

  return measure


def torch_loader(arguments: argparse.Namespace) -> Callable[[], float]:
  """`torch.utils.data.DataLoader` over the image files."""
  import torch  # ty: ignore[import-not-found] only this benchmark asks for it.
  from PIL import Image, ImageOps

  paths = [
    os.path.join(arguments.images, path)
    for path in walk(arguments.images).images
    if path.lower().endswith((".jpg", ".jpeg"))
  ]

  class Files(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return (WARM_UP + arguments.batches) * arguments.batch_size

    def __getitem__(self, index: int) -> torch.Tensor:
      with Image.open(paths[index % len(paths)]) as image:
        image = image.convert("RGB")
      if torch.rand(()) < 0.5:
        image = ImageOps.mirror(image)
      return torch.from_numpy(np.array(image))

  def measure() -> float:
    loader = torch.utils.data.DataLoader(
      Files(), batch_size=arguments.batch_size, shuffle=True, num_workers=2
    )
    return time_batches(iter(loader), arguments.batches)

  return measure


def image_size(directory: str) -> int:
  """Returns the one size of the images, so that nothing is scaled."""
  size = records.read_index(directory).image_size
  if size is None or size[0] != size[1]:
    raise InputError(
      f"--data={directory!r} holds images of several sizes: give one of square"
      " images of one size, so that every contestant does the same."
    )
  return size[0]


if __name__ == "__main__":
  run_command(main)
