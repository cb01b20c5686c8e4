"""Writes the embeddings of images as NumPy files.

  python -m jamsface_jax.embed --workdir=W --images=INPUT --output=E

INPUT is a folder, a data set, a text file with a path on each line, or a .npy
array uint8 [N, H, W, 3]. Row k belongs to image k: of the sorted paths of a
folder, otherwise of the order of the input.

E/embeddings.npy  float32 [N, D] (--float16), rows of length 1 unless --raw
E/labels.npy      int64 [N]: the class of a data set, the number of the image's
                  folder in the order of names, or -1 for an array
E/paths.txt       a line an image
E/norms.npy       float32 [N], with --norms: lengths before scaling to 1
E/broken.txt      row, path and reason of each image that cannot be read, if
                  there are any; their embeddings and norms are NaN
E/meta.json       what made them; written last

The same command goes on where it was interrupted, and it runs on several
processes as jamsface_jax.main does: each writes its part of the files.
"""

import argparse
import hashlib
import os
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from jamsface_jax import distributed, inference, sharding
from jamsface_jax.compiling import cache_in
from jamsface_jax.config import read_config
from jamsface_jax.data.images import Block, Images, open_images
from jamsface_jax.data.pipeline import read_ahead
from jamsface_jax.embedding_files import (
  BROKEN_FILE,
  EMBEDDINGS_FILE,
  LABELS_FILE,
  NORMS_FILE,
  PLACES,
  EmbeddingFiles,
)
from jamsface_jax.errors import InputError, RunError, run_command

_LINE_SECONDS = 30.0  # Between lines of progress where there is no terminal.


def main() -> int:
  """Reads the flags and embeds."""
  parser = argparse.ArgumentParser(
    prog="python -m jamsface_jax.embed",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, help="of a training run")
  add("--images", required=True, help="folder, data set, list or .npy array")
  add("--output", required=True, help="directory of the embeddings")
  add("--root", help="what a list's paths are relative to; default: its folder")
  add("--color_order", choices=("RGB", "BGR"), help="of an array's pixels")
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add("--raw", action="store_true", help="do not scale rows to length 1")
  add("--norms", action="store_true", help="write norms.npy too")
  add("--float16", action="store_true", help="store half precision")
  add(
    "--no_flip",
    action="store_true",
    help="embed the image alone, without adding its mirror image",
  )
  add(
    "--batch_size",
    type=int,
    help="images at once, a process; default: the run's evaluation.batch_size",
  )
  add("--threads", type=int, help="batches read at once; default: the run's")
  distributed.add_flags(parser)
  arguments = parser.parse_args()
  cache_in(arguments.workdir)
  with distributed.joined(arguments):
    embed(
      arguments.workdir,
      arguments.images,
      arguments.output,
      root=arguments.root,
      color_order=arguments.color_order,
      step=arguments.step,
      raw=arguments.raw,
      norms=arguments.norms,
      float16=arguments.float16,
      flip=not arguments.no_flip,
      batch_size=arguments.batch_size,
      threads=arguments.threads,
    )
  return 0


def embed(
  workdir: str,
  images: str,
  output: str,
  *,
  root: str | None,
  color_order: str | None,
  step: int | None,
  raw: bool,
  norms: bool,
  float16: bool,
  flip: bool,
  batch_size: int | None,
  threads: int | None,
) -> None:
  """Writes the embeddings; see the flags of this command.

  Raises:
    InputError: nothing to embed, or an output that belongs to something else.
    RunError: an embedding that is not finite.
  """
  config = read_config(workdir)
  mesh = inference.local_mesh()
  for name, value in (("--batch_size", batch_size), ("--threads", threads)):
    if value is not None and value < 1:
      raise InputError(f"{name}={value} must be above 0.")
  if batch_size is not None:
    sharding.check_divides("--batch_size", batch_size, mesh)
  source = open_images(
    images, config.data.image_size, root=root, color_order=color_order
  )
  embedder, variables, metadata = inference.load(
    workdir,
    step=step,
    batch_size=batch_size or config.evaluation.batch_size,
    flip=flip,
    mesh=mesh,
  )
  plan = {
    "images": len(source),
    "embedding_size": metadata["embedding_size"],
    "dtype": "float16" if float16 else "float32",
    "normalized": not raw,
    "norms": norms,
    "flip": flip,
    "block": embedder.batch_size,
    "step": metadata["step"],
    "network": _fingerprint(variables),
    "workdir": os.path.abspath(workdir),
    "source": os.path.abspath(images),
    "source_fingerprint": source.fingerprint,
    "color_order": metadata["color_order"],
    "image_size": metadata["image_size"],
    "data_fingerprint": metadata["data_fingerprint"],
    "versions": metadata["versions"],
  }
  files = EmbeddingFiles(output, plan)
  done = _begin_together(files, plan)
  first = jax.process_index() == 0
  before, left = (
    sum(stop - start for start, stop in map(files.rows, np.flatnonzero(some)))
    for some in (done, ~done)
  )
  if first and before:
    print(f"{before:,} of {len(source):,} images were embedded before")
  numbers = np.array_split(np.flatnonzero(~done), jax.process_count())
  numbers = numbers[jax.process_index()]
  if len(numbers):
    _compile(embedder, variables)
  begin = time.monotonic()
  if len(numbers):
    _embed_blocks(
      files,
      source,
      embedder,
      variables,
      numbers,
      scale=not raw,
      dtype=plan["dtype"],
      threads=threads or config.data.threads,
    )
  multihost_utils.sync_global_devices("embedded")
  seconds = time.monotonic() - begin
  if first:
    broken = files.finish()
    print(
      f"{len(source):,} embeddings of {metadata['embedding_size']} numbers in"
      f" {os.path.join(output, EMBEDDINGS_FILE)}"
      + (f" ({left / seconds:,.0f} images/s)" if left else "")
      + (f"; {broken:,} are NaN, see {BROKEN_FILE}" if broken else "")
    )
  multihost_utils.sync_global_devices("finished")


def _begin_together(files: EmbeddingFiles, plan: dict[str, Any]) -> np.ndarray:
  """Process 0 makes or finds the files; all learn which blocks are done."""
  if jax.process_count() == 1:
    return files.begin()
  same = {name: plan[name] for name in plan if name not in PLACES}
  distributed.check_same(same, "--images, --workdir")
  done = np.zeros(files.blocks, bool)
  if jax.process_index() == 0:
    done = files.begin()
  return np.asarray(multihost_utils.broadcast_one_to_all(done))


def _compile(embedder: inference.Embedder, variables: dict) -> None:
  """Embeds nothing, so that no clock counts the compilation."""
  size = embedder.image_size
  nothing = np.zeros((embedder.batch_size, size, size, 3), np.uint8)
  embedder.start(variables, nothing).block_until_ready()


def _embed_blocks(
  files: EmbeddingFiles,
  source: Images,
  embedder: inference.Embedder,
  variables: dict,
  numbers: np.ndarray,
  *,
  scale: bool,
  dtype: str,
  threads: int,
) -> None:
  """Embeds the blocks with these numbers and writes each as it is done."""

  def read(position: int) -> tuple[tuple[int, Block], np.ndarray]:
    number = int(numbers[position])
    block = source.read(*files.rows(number))
    pixels = block.pixels
    if len(pixels) < embedder.batch_size:  # Filled up, to keep one shape.
      missing = embedder.batch_size - len(pixels)
      pixels = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return (number, block), pixels

  batches = read_ahead(read, start=0, stop=len(numbers), threads=threads)
  files.open(jax.process_index())
  total = sum(stop - start for start, stop in map(files.rows, numbers))
  with _Progress(total) as progress:
    for (number, block), embeddings in embedder.run(variables, batches):
      count = len(block.names)
      rows = _rows(embeddings[:count], block, scale=scale, dtype=dtype)
      files.write(number, rows, block.names, block.broken)
      progress.add(count)
  files.close()


def _rows(
  raw: np.ndarray, block: Block, *, scale: bool, dtype: str
) -> dict[str, np.ndarray]:
  """Returns what each file gets of a block, by the name of the file."""
  broken = list(block.broken)
  with np.errstate(over="ignore"):  # Found out below.
    embeddings = (inference.unit(raw) if scale else raw).astype(dtype)
  norms = np.linalg.norm(raw, axis=1)
  is_sound = np.isfinite(embeddings).all(axis=1)
  is_sound[broken] = True
  if not is_sound.all():
    raise RunError(
      f"the embedding of image {block.names[int(np.argmin(is_sound))]!r} is not"
      f" a finite {dtype}: the checkpoint has diverged, or --raw numbers need"
      " float32."
    )
  embeddings[broken] = np.nan
  norms[broken] = np.nan
  return {
    EMBEDDINGS_FILE: embeddings,
    LABELS_FILE: block.labels,
    NORMS_FILE: norms,
  }


def _fingerprint(variables: dict) -> str:
  """A short hash of a network: another one if a number has changed."""
  digest = hashlib.sha256()
  for path, array in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(array).tobytes())
  return digest.hexdigest()[:16]


class _Progress:
  """Images done, speed and time left: a bar on a terminal, lines elsewhere.

  With several processes the first speaks, of its own share.
  """

  def __init__(self, total: int):
    self._total, self._done = total, 0
    self._quiet = jax.process_index() > 0
    share = f"1 of {jax.process_count()} processes"
    self._bar = tqdm(
      total=total,
      unit=" images",
      disable=self._quiet or not sys.stderr.isatty(),
      dynamic_ncols=True,
      desc=share if jax.process_count() > 1 else None,
    )
    self._begin = self._said = time.monotonic()

  def __enter__(self) -> "_Progress":
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  def add(self, images: int) -> None:
    """Counts images."""
    self._done += images
    self._bar.update(images)
    now = time.monotonic()
    if self._bar.disable and not self._quiet:
      if now - self._said < _LINE_SECONDS:
        return
      self._said = now
      rate = self._done / (now - self._begin)
      left = tqdm.format_interval((self._total - self._done) / rate)
      print(
        f"{self._done:,} of {self._total:,} images, {rate:,.0f} images/s,"
        f" {left} left",
        flush=True,
      )


if __name__ == "__main__":
  run_command(main)
