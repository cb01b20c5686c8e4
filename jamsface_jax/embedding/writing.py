"""Embeds images by blocks into files, on one process or several."""

import hashlib
import os
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jamsface_jax.data.images import Block, Images, open_images
from jamsface_jax.data.pipeline import read_ahead
from jamsface_jax.devices import processes, sharding
from jamsface_jax.embedding import embedder as embedder_lib
from jamsface_jax.embedding.files import (
  BROKEN_FILE,
  EMBEDDINGS_FILE,
  LABELS_FILE,
  NORMS_FILE,
  PLACES,
  EmbeddingFiles,
)
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.run.progress import _Progress
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory


def embed(
  run: RunDirectory,
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
  config = read_settings(run)
  mesh = embedder_lib.local_mesh()
  for name, value in (("--batch_size", batch_size), ("--threads", threads)):
    if value is not None and value < 1:
      raise InputError(f"{name}={value} must be above 0.")
  if batch_size is not None:
    sharding.check_divides("--batch_size", batch_size, mesh)
  source = open_images(
    images, config.data.image_size, root=root, color_order=color_order
  )
  embedder, variables, metadata = embedder_lib.load(
    run,
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
    "workdir": run.absolute,
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
  processes.check_same(same, "--images, --workdir")
  done = np.zeros(files.blocks, bool)
  if jax.process_index() == 0:
    done = files.begin()
  return np.asarray(multihost_utils.broadcast_one_to_all(done))


def _compile(embedder: embedder_lib.Embedder, variables: dict) -> None:
  """Embeds nothing, so that no clock counts the compilation."""
  size = embedder.image_size
  nothing = np.zeros((embedder.batch_size, size, size, 3), np.uint8)
  embedder.start(variables, nothing).block_until_ready()


def _embed_blocks(
  files: EmbeddingFiles,
  source: Images,
  embedder: embedder_lib.Embedder,
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
    embeddings = (embedder_lib.unit(raw) if scale else raw).astype(dtype)
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
