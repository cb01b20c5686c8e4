"""Writes the embeddings of images as NumPy files.

  python -m jamsface_jax.embed --workdir=W --images=DIR|DATASET --output=E

E/embeddings.npy  float32 [N, D], rows of length 1 unless --raw
E/labels.npy      int64 [N]: the class of a data set, or the number of the
                  image's folder in the order of names
E/paths.txt       a line an image
E/meta.json       what made them

Rows follow the order of a data set, or the sorted paths of a folder.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from tqdm import tqdm

from jamsface_jax import inference, sharding
from jamsface_jax.config import read_config
from jamsface_jax.data import decoding, records
from jamsface_jax.errors import InputError, run_command

EMBEDDINGS_FILE = "embeddings.npy"
BROKEN_FILE = "broken.txt"


def main() -> int:
  """Reads the flags and embeds."""
  parser = argparse.ArgumentParser(
    prog="python -m jamsface_jax.embed",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, help="of a training run")
  add("--images", required=True, help="a folder of images, or a data set")
  add("--output", required=True, help="directory of the embeddings")
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add("--raw", action="store_true", help="do not scale rows to length 1")
  add(
    "--no_flip",
    action="store_true",
    help="embed the image alone, without adding its mirror image",
  )
  add(
    "--skip_bad",
    action="store_true",
    help=f"leave out unreadable images and list them in {BROKEN_FILE}",
  )
  add("--batch_size", type=int, help="global; default: the run's")
  arguments = parser.parse_args()
  embed(
    arguments.workdir,
    arguments.images,
    arguments.output,
    step=arguments.step,
    raw=arguments.raw,
    flip=not arguments.no_flip,
    skip_bad=arguments.skip_bad,
    batch_size=arguments.batch_size,
  )
  return 0


def embed(
  workdir: str,
  images: str,
  output: str,
  *,
  step: int | None,
  raw: bool,
  flip: bool,
  skip_bad: bool,
  batch_size: int | None,
) -> None:
  """Writes the embeddings; see the flags of this command.

  Raises:
    InputError: nothing to embed, or an unreadable image.
  """
  config = read_config(workdir)
  source = open_images(images)
  embedder, variables, metadata = inference.load(
    workdir,
    step=step,
    batch_size=batch_size or config.evaluation.batch_size,
    flip=flip,
    mesh=sharding.make_mesh(-1),
  )
  size = embedder.image_size
  broken: dict[int, str] = {}

  def read(numbers: np.ndarray) -> np.ndarray:
    pixels = np.zeros((len(numbers), size, size, 3), np.uint8)
    for row, data in enumerate(source.read(numbers.tolist())):
      try:
        pixels[row] = decoding.decode_resized(data, size)
      except decoding.DecodingError as error:
        broken[int(numbers[row])] = str(error)
    return pixels

  count = len(source.paths)
  os.makedirs(output, exist_ok=True)
  path = os.path.join(output, EMBEDDINGS_FILE)
  rows = np.lib.format.open_memmap(
    path + ".partial",
    mode="w+",
    dtype=np.float32,
    shape=(count, metadata["embedding_size"]),
  )
  begin, done = time.monotonic(), 0
  with tqdm(total=count, unit="image", disable=None) as bar:
    for block in embedder.embed(
      variables, read, count, threads=config.data.threads
    ):
      if broken and not skip_bad:
        break
      rows[done : done + len(block)] = block if raw else inference.unit(block)
      done += len(block)
      bar.update(len(block))
  if broken and not skip_bad:
    os.remove(path + ".partial")
    first = min(broken)
    raise InputError(
      f"image {source.paths[first]!r} of {images!r} cannot be read"
      f" ({broken[first]}): mend it, or leave such images out with --skip_bad."
    )
  seconds = time.monotonic() - begin
  sound = np.setdiff1d(np.arange(count), np.array(list(broken), np.int64))
  _write(output, rows, sound, source, broken)
  with open(os.path.join(output, "meta.json"), "w", encoding="utf-8") as file:
    json.dump(
      {
        "images": len(sound),
        "embedding_size": metadata["embedding_size"],
        "normalized": not raw,
        "flip": flip,
        "step": metadata["step"],
        "workdir": os.path.abspath(workdir),
        "source": os.path.abspath(images),
        "color_order": metadata["color_order"],
        "image_size": metadata["image_size"],
        "data_fingerprint": metadata["data_fingerprint"],
        "versions": metadata["versions"],
      },
      file,
      indent=2,
    )
  print(
    f"{len(sound):,} embeddings of {metadata['embedding_size']} numbers in"
    f" {path} ({count / seconds:,.0f} images/s)"
    + (f"; {len(broken)} left out, see {BROKEN_FILE}" if broken else "")
  )


class Images(Protocol):
  """Encoded images to embed.

  Attributes:
    paths: a name each.
    labels: int64, a class each.
  """

  paths: list[str]
  labels: np.ndarray

  def read(self, numbers: Sequence[int]) -> list[bytes]:
    """Returns the encoded bytes of these images."""


def open_images(path: str) -> Images:
  """Opens a data set or a folder.

  Raises:
    InputError: neither, or no image in it.
  """
  if os.path.exists(os.path.join(path, records.INDEX_FILE)):
    return DatasetImages(path)
  return FolderImages(path)


class DatasetImages:
  """The images of a data set, in its order."""

  def __init__(self, directory: str):
    self._reader = records.RecordReader(directory)
    self.paths, labels = [], []
    for record in self._reader.scan():
      self.paths.append(record.name)
      labels.append(record.label)
    self.labels = np.array(labels, np.int64)

  def read(self, numbers: Sequence[int]) -> list[bytes]:
    """See `Images.read`."""
    return [record.image for record in self._reader.read(numbers)]


class FolderImages:
  """All images below a folder, sorted by path."""

  def __init__(self, directory: str):
    if not os.path.isdir(directory):
      raise InputError(
        f"--images {directory!r} is neither a folder nor a data set: give one"
        " of them."
      )
    self._directory = directory
    self.paths = sorted(
      os.path.relpath(os.path.join(folder, file), directory)
      for folder, _, files in os.walk(directory)
      for file in files
      if file.lower().endswith(decoding.EXTENSIONS) and not file.startswith(".")
    )
    if not self.paths:
      raise InputError(
        f"--images {directory!r} has no image"
        f" ({', '.join(decoding.EXTENSIONS)}): give another folder."
      )
    folders = [os.path.dirname(path) for path in self.paths]
    _, self.labels = np.unique(folders, return_inverse=True)

  def read(self, numbers: Sequence[int]) -> list[bytes]:
    """See `Images.read`; an unreadable file is empty."""
    return [self._read(self.paths[number]) for number in numbers]

  def _read(self, path: str) -> bytes:
    try:
      with open(os.path.join(self._directory, path), "rb") as file:
        return file.read()
    except OSError:
      return b""


def _write(
  output: str,
  rows: np.memmap,
  sound: np.ndarray,
  source: Images,
  broken: dict[int, str],
) -> None:
  """Gives the embeddings their name, without the rows of broken images."""
  if jax.process_index():
    return
  path = os.path.join(output, EMBEDDINGS_FILE)
  rows.flush()
  if broken:
    np.save(path + ".partial.npy", rows[sound])
    os.remove(path + ".partial")
    os.replace(path + ".partial.npy", path)
  else:
    os.replace(path + ".partial", path)
  np.save(os.path.join(output, "labels.npy"), source.labels[sound])
  with open(os.path.join(output, "paths.txt"), "w", encoding="utf-8") as file:
    file.writelines(f"{source.paths[number]}\n" for number in sound)
  broken_path = os.path.join(output, BROKEN_FILE)
  if os.path.exists(broken_path):  # Of an earlier run.
    os.remove(broken_path)
  if broken:
    with open(broken_path, "w", encoding="utf-8") as file:
      file.writelines(
        f"{source.paths[number]}\t{broken[number]}\n"
        for number in sorted(broken)
      )


if __name__ == "__main__":
  run_command(main)
