"""The classes of a device, walked in chunks.

A device walks the classes of its shard, or those of them that are sampled, a
chunk at a time, so that no array has an entry for each class and each example.

Shapes: R classes walked by one device, n classes of a chunk, K sub-centers
(weight rows) of a class; `_rk` and `_nk` have a row for each weight row.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int, Shaped

from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.parameters import Head

Carry = TypeVar("Carry")


class ChunkClasses(NamedTuple):
  """Which classes are in a chunk.

  Attributes:
    class_n: their numbers, int32 [n]; -1 for those that do not count.
    offset_n: what is added to their logits, float32 [n].
  """

  class_n: jax.Array
  offset_n: jax.Array


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Where one chunk lies among the classes that a device walks.

  Attributes:
    index: which chunk, from 0.
    is_kept: whether its cosines are kept from the first walk to the second.
    start: its first class, counted in the classes walked.
    size: its number of classes, n.
    stale: how many of its first classes an earlier chunk has had: the last
      chunk ends with the last class and overlaps the one before.
    sub_centers: weight rows of a class, K.
  """

  index: Int[Array, ""]
  is_kept: bool
  start: Int[Array, ""]
  size: int
  stale: Int[Array, ""] | int
  sub_centers: int

  def cut(self, array_rk: Shaped[Array, "rk ..."]) -> Shaped[Array, "nk ..."]:
    """Its rows of an array that has one for each weight row."""
    k = self.sub_centers
    return lax.dynamic_slice_in_dim(array_rk, self.start * k, self.size * k)

  def put(
    self, array_rk: Shaped[Array, "rk ..."], new_nk: Shaped[Array, "nk ..."]
  ) -> Shaped[Array, "rk ..."]:
    """The array with these rows in the place of its own."""
    return lax.dynamic_update_slice_in_dim(
      array_rk, new_nk, self.start * self.sub_centers, 0
    )

  def keep(
    self, kept: Float32[Array, "kept b"], cosine_kb: Float32[Array, "nk b"]
  ) -> Float32[Array, "kept b"]:
    """The kept cosines of all chunks with its own among them."""
    start = self.index * len(cosine_kb)
    return lax.dynamic_update_slice_in_dim(kept, cosine_kb, start, 0)

  def kept(self, kept: Float32[Array, "kept b"]) -> Float32[Array, "nk b"]:
    """Its own cosines, as an earlier walk kept them."""
    size = self.size * self.sub_centers
    return lax.dynamic_slice_in_dim(kept, self.index * size, size)

  def unless_stale(
    self, old_nk: Float32[Array, "nk d"], new_nk: Float32[Array, "nk d"]
  ) -> Float32[Array, "nk d"]:
    """The new rows, but the old ones where an earlier chunk has been."""
    is_fresh = jnp.arange(len(new_nk)) >= self.stale * self.sub_centers
    return jnp.where(is_fresh[:, None], new_nk, old_nk)

  def classes(
    self,
    sample: Sample | None,
    offset_r: Float32[Array, " r"] | None,
    head: Head,
  ) -> ChunkClasses:
    """Which classes it has.

    Args:
      sample: this device's slots of the sampled classes; None: all classes of
        its shard are walked.
      offset_r: what is added to the logits of the classes walked, or None.
      head: what is fixed about the head.
    """
    if sample is None:
      shards = lax.axis_size("model")
      first = lax.axis_index("model") * (head.padded_classes // shards)
      class_n = first + self.start + jnp.arange(self.size)
      class_n = jnp.where(class_n < head.num_classes, class_n, -1)
      offset_n = jnp.zeros(self.size)
    else:
      class_n, offset_n = (
        lax.dynamic_slice_in_dim(array, self.start, self.size)
        for array in (sample.classes, sample.log_weights)
      )
    if offset_r is not None:
      offset_n += lax.dynamic_slice_in_dim(offset_r, self.start, self.size)
    is_fresh_n = jnp.arange(self.size) >= self.stale
    return ChunkClasses(jnp.where(is_fresh_n, class_n, -1), offset_n)


def walk(
  weight_rows: int,
  examples: int,
  head: Head,
  step: Callable[[Chunk, Carry], Carry],
  carry: Carry,
) -> Carry:
  """Calls `carry = step(chunk, carry)` for one chunk after the other.

  Args:
    weight_rows: rows of the weights that this device walks, R K.
    examples: examples that it walks them with: they say how many chunks fit
      into what `head.keep_bytes` allows.
    head: what is fixed about the head.
    step: is traced twice if some chunks are kept and some are not.
    carry: what the first chunk gets, varying over both axes of the mesh where
      the steps make it so.
  """
  classes = weight_rows // head.sub_centers
  chunks, size = count_chunks(classes, head)
  kept = count_kept(chunks, size, examples, head)

  def body(is_kept: bool, k: Int[Array, ""], carry: Carry) -> Carry:
    start = jnp.minimum(k * size, classes - size)
    chunk = Chunk(
      index=k,
      is_kept=is_kept,
      start=start,
      size=size,
      stale=k * size - start,
      sub_centers=head.sub_centers,
    )
    return step(chunk, carry)

  for first, end, is_kept in ((0, kept, True), (kept, chunks, False)):
    if first < end:
      carry = lax.fori_loop(first, end, partial(body, is_kept), carry)
  return carry


def chunk_classes(platform: str) -> int:
  """Classes at once that suit a platform, such as "cpu".

  On a CPU their logits should stay in its cache: steps of a head took 0.85 s
  with 1,024 at once and 1.27 s with 8,192 (100,000 classes, batch 256). A GPU
  wants large products: on an H100 30.1 ms with 8,192, 24.6 with 65,536, 23.0
  with 262,144, for 0.1, 0.4 and 1.7 GiB (a million classes, batch 1,024,
  bfloat16). TPUs were not measured; by their compiler's cycles, at 248f91c,
  8,192 was best for 29 million classes on 16 devices: 104 ms on v5e, 120 with
  2,048, 143 with 32,768; 69, 80 and 71 on v6e.
  """
  return {"cpu": 1024, "gpu": 65_536}.get(platform, 8192)


def count_chunks(classes: int, head: Head) -> tuple[int, int]:
  """Number and size of chunks: equal, and the fewest that are small enough."""
  chunks = math.ceil(classes / head.chunk_classes)
  return chunks, math.ceil(classes / chunks)


def count_kept(chunks: int, size: int, examples: int, head: Head) -> int:
  """Chunks whose cosines fit into `head.keep_bytes`."""
  return min(
    chunks, head.keep_bytes // (4 * size * head.sub_centers * examples)
  )


def take_classes(
  array_rk: Shaped[Array, "rk ..."], row_s: Int[Array, " s"], head: Head
) -> Shaped[Array, "sk ..."]:
  """The weight rows of some classes of a shard.

  Args:
    array_rk: a row for each weight row of the shard.
    row_s: the classes, counted in the shard; those beyond its end (unused
      slots) repeat its last.
    head: what is fixed about the head.
  """
  by_class = array_rk.reshape(len(array_rk) // head.sub_centers, -1)
  taken = jnp.take(by_class, row_s, axis=0, mode="clip")
  return taken.reshape(-1, *array_rk.shape[1:])


def put_classes(
  array_rk: Shaped[Array, "rk ..."],
  row_s: Int[Array, " s"],
  new_sk: Shaped[Array, "sk ..."],
  head: Head,
) -> Shaped[Array, "rk ..."]:
  """The array with what `take_classes` took replaced; unused slots are lost."""
  by_class = array_rk.reshape(len(array_rk) // head.sub_centers, -1)
  new = new_sk.reshape(len(row_s), -1)
  by_class = by_class.at[row_s].set(new, mode="drop", unique_indices=True)
  return by_class.reshape(array_rk.shape)


def take_offsets(
  offset_c: Float32[Array, " c"] | None, sample: Sample
) -> Float32[Array, " r"] | None:
  """What is added to the logits of the sampled classes; None stays None."""
  if offset_c is None:
    return None
  return jnp.take(offset_c, sample.rows, mode="clip")


def map_classes(function: Callable[..., jax.Array], *trees: Any) -> Any:
  """Maps over the leaves that are split by class.

  Scalars, such as a count of steps, are those of the last tree.
  """
  return jax.tree.map(
    lambda *leaves: function(*leaves) if leaves[-1].ndim else leaves[-1], *trees
  )
