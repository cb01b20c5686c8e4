"""Embeds images by blocks into files, on one process or several."""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float32, Int64

from jamsface_jax.data.images import Block, Images, open_images
from jamsface_jax.detection.opening import usual_detector
from jamsface_jax.detection.photographs import PhotographFaces, open_faces
from jamsface_jax.devices import processes, sharding
from jamsface_jax.embedding.embedder import Embedder, open_embedder, unit_length
from jamsface_jax.embedding.files import (
  BOXES_FILE,
  BROKEN_FILE,
  EMBEDDINGS_FILE,
  LABELS_FILE,
  LANDMARKS_FILE,
  NORMS_FILE,
  PLACES,
  EmbeddingFiles,
)
from jamsface_jax.embedding.image_blocks import embed_blocks
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.run.progress import ImageProgress
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage import lock
from jamsface_jax.storage.paths import absolute
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
  align: str | None = None,
) -> None:
  """Writes the embeddings of images; the same call goes on where it stopped.

  All processes must call it: each embeds its part of the blocks.

  Args:
    run: the directory of a training run.
    images: what holds the images, see `open_images`.
    output: the directory of the embeddings.
    root: what the paths of a list are relative to, see `open_images`.
    color_order: the colour order of an array, see `open_images`.
    step: the step of the checkpoint; None for the newest.
    raw: do not scale embeddings to length 1.
    norms: write the lengths before scaling, too.
    float16: store half precision instead of float32.
    flip: add the embedding of the mirrored image.
    batch_size: images at once, a process; None for that of the run's
      evaluation.
    threads: batches read at once; None for those of the run.
    align: find the faces first, see `PhotographFaces`; None: they are aligned.

  Raises:
    InputError: nothing to embed, or an output that belongs to something else.
    RunError: an embedding that is not finite.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:  # Of all processes, and before any work.
      stack.enter_context(lock.hold(output, "--output"))
    config = read_settings(run)
    mesh = sharding.make_mesh(-1, jax.local_devices())
    _check_flags(batch_size, threads, mesh)
    source = open_images(
      images, config.data.image_size, root=root, color_order=color_order
    )
    if source.aside and jax.process_index() == 0:
      print(f"note: left aside in {images!r}: {source.aside}", file=sys.stderr)
    if align is not None:
      source = open_faces(
        source,
        usual_detector(),
        flag="--images",
        size=config.data.image_size,
        which=align,
        numbered=False,
        threads=threads or config.data.threads,
      )
    embedder, variables, metadata = open_embedder(
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
      "align": align,
      "block": embedder.batch_size,
      "step": metadata["step"],
      "network": fingerprint(variables),
      "workdir": run.absolute,
      "source": absolute(images),
      "source_listing": source.listing,
      "source_fingerprint": source.fingerprint,
    }
    for name in ("color_order", "image_size", "data_fingerprint", "versions"):
      plan[name] = metadata[name]
    _embed(
      source,
      embedder,
      variables,
      plan,
      output,
      threads=threads or config.data.threads,
    )


def _embed(
  source: Images,
  embedder: Embedder,
  variables: dict[str, Any],
  plan: Mapping[str, Any],
  output: str,
  *,
  threads: int,
) -> None:
  """Embeds what is not there yet, with all processes, and finishes the files.

  Args:
    source: the images.
    embedder: of the network.
    variables: its parameters.
    plan: decides every row, see `EmbeddingFiles`.
    output: the directory.
    threads: batches read at once.
  """
  files = EmbeddingFiles(output, plan)
  left = _blocks_left(files, plan)
  mine = np.array_split(left, jax.process_count())[jax.process_index()]
  if len(mine):
    _compile(embedder, variables)
  begin = time.monotonic()
  if len(mine):
    _embed_blocks(
      files,
      source,
      embedder,
      variables,
      mine,
      scale=plan["normalized"],
      dtype=plan["dtype"],
      threads=threads,
    )
  multihost_utils.sync_global_devices("embedded")
  if jax.process_index() == 0:
    seconds = time.monotonic() - begin
    _finish(files, plan, output, rate=_count_images(files, left) / seconds)
  multihost_utils.sync_global_devices("finished")


def _check_flags(
  batch_size: int | None, threads: int | None, mesh: Mesh
) -> None:
  for name, value in (("--batch_size", batch_size), ("--threads", threads)):
    if value is not None and value < 1:
      raise InputError(f"{name}={value} must be above 0.")
  if batch_size is not None:
    sharding.check_divides("--batch_size", batch_size, mesh)


def _blocks_left(
  files: EmbeddingFiles, plan: Mapping[str, Any]
) -> Int64[np.ndarray, " left"]:
  """The numbers of the blocks that are not done; process 0 says how many are.

  Process 0 makes or finds the files, and all learn what it found.
  """
  first = jax.process_index() == 0
  if jax.process_count() > 1:
    # Each may have a copy of the images, which another fingerprint tells.
    apart = (*PLACES, "source_fingerprint")
    same = {name: plan[name] for name in plan if name not in apart}
    processes.check_same(same, "--images, --workdir")
  done = files.begin() if first else np.zeros(files.blocks, bool)
  if jax.process_count() > 1:
    done = np.asarray(multihost_utils.broadcast_one_to_all(done))
  before = _count_images(files, np.flatnonzero(done))
  if first and before:
    print(f"{before:,} of {plan['images']:,} images were embedded before")
  return np.flatnonzero(~done)


def _count_images(
  files: EmbeddingFiles, blocks: Int64[np.ndarray, " k"]
) -> int:
  return sum(stop - start for start, stop in map(files.rows, blocks.tolist()))


def _compile(embedder: Embedder, variables: dict[str, Any]) -> None:
  """Embeds nothing, so that no clock counts the compilation."""
  size = embedder.image_size
  nothing = np.zeros((embedder.batch_size, size, size, 3), np.uint8)
  embedder.start(variables, nothing).block_until_ready()


def _embed_blocks(
  files: EmbeddingFiles,
  source: Images,
  embedder: Embedder,
  variables: dict[str, Any],
  numbers: Int64[np.ndarray, " k"],
  *,
  scale: bool,
  dtype: str,
  threads: int,
) -> None:
  """Embeds the blocks with these numbers and writes each as it is done."""
  files.open(jax.process_index())
  several = jax.process_count() > 1
  with ImageProgress(
    _count_images(files, numbers),
    # Of several processes the first speaks, of its own share.
    title=f"1 of {jax.process_count()} processes" if several else None,
    quiet=jax.process_index() > 0,
  ) as progress:
    spans = [files.rows(number) for number in numbers.tolist()]
    for position, block, embeddings in embed_blocks(
      source, embedder, variables, spans, threads=threads
    ):
      rows = _rows(embeddings, block, scale=scale, dtype=dtype)
      if isinstance(source, PhotographFaces):
        part = slice(*spans[position])
        rows[BOXES_FILE] = source.boxes[part]
        rows[LANDMARKS_FILE] = source.landmarks[part]
      files.write(int(numbers[position]), rows, block.names, block.broken)
      progress.advance(len(block.names))
  files.close()


def _rows(
  raw: Float32[np.ndarray, "n d"], block: Block, *, scale: bool, dtype: str
) -> dict[str, np.ndarray]:
  """Returns what each file gets of a block, by the name of the file."""
  broken = list(block.broken)
  with np.errstate(over="ignore"):  # Found out below.
    embeddings = (unit_length(raw) if scale else raw).astype(dtype)
  norms = np.linalg.norm(raw, axis=1)
  is_sound = np.asarray(np.isfinite(embeddings).all(axis=1))
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


def _finish(
  files: EmbeddingFiles, plan: Mapping[str, Any], output: str, *, rate: float
) -> None:
  """Gives the files their names and says what they hold."""
  broken = files.finish()
  print(
    f"{plan['images']:,} embeddings of {plan['embedding_size']} numbers in"
    f" {os.path.join(output, EMBEDDINGS_FILE)}"
    + (f" ({rate:,.0f} images/s)" if rate else "")
    + (f"; {broken:,} are NaN, see {BROKEN_FILE}" if broken else "")
  )


def fingerprint(variables: dict[str, Any]) -> str:
  """A short hash of a network: another one if a number has changed."""
  digest = hashlib.sha256()
  for path, array in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(array).tobytes())
  return digest.hexdigest()[:16]
