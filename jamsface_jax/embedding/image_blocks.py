"""Embeds images block by block, whatever holds them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from jamsface_jax.data.images import Block, Images
from jamsface_jax.data.pipeline import read_ahead
from jamsface_jax.embedding.embedder import Embedder


def embed_blocks(
  source: Images,
  embedder: Embedder,
  variables: dict[str, Any],
  spans: Sequence[tuple[int, int]],
  *,
  threads: int,
) -> Iterator[tuple[int, Block, Float32[np.ndarray, "n d"]]]:
  """Reads images ahead, in threads, and embeds them.

  Args:
    source: the images.
    embedder: of the network.
    variables: its parameters.
    spans: first image of each block and the one after its last; none has more
      images than the batches of the embedder.
    threads: blocks read at once.

  Yields:
    The number of a span, its images, and their embeddings, float32 [n, D], not
    scaled to length 1; those of broken images mean nothing.
  """

  def read(
    number: int,
  ) -> tuple[tuple[int, Block], UInt8[np.ndarray, "b h w 3"]]:
    block = source.read(*spans[number])
    pixels = block.pixels
    if len(pixels) < embedder.batch_size:  # Filled up, to keep one shape.
      missing = embedder.batch_size - len(pixels)
      pixels = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return (number, block), pixels

  batches = read_ahead(read, start=0, stop=len(spans), threads=threads)
  for (number, block), embeddings in embedder.run(variables, batches):
    yield number, block, embeddings[: len(block.names)]
