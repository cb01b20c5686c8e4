"""Cosines to the centres of classes, which are the weights of the head.

The head is split by class over devices and may have millions of them, so each
device walks its own in chunks, as the loss does, and only what is largest
leaves it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int

from jamsface_jax.devices.sharding import CLASSES, REPLICATED
from jamsface_jax.head.chunks import count_chunks
from jamsface_jax.head.logits import product, unit
from jamsface_jax.head.parameters import Head

_SHOWN = 1000  # Classes whose centres are compared with all.
_BY_CLASS = P(None, *CLASSES)  # Of arrays whose second axis is that of classes.


def owed_cosines(
  class_sizes: Int[np.ndarray, " n"], head: Head
) -> Float32[np.ndarray, " n"]:
  """What a softmax of the head's scale owes to the images of each class.

  Args:
    class_sizes: how many images each class has, int [N], at least 1.
    head: what is fixed about the head.

  Returns:
    log(images) / scale, in cosines, float32 [N].
  """
  return (np.log(class_sizes) / head.scale).astype(np.float32)


def class_priors(
  class_sizes: Int[np.ndarray, " n"], *, head: Head, mesh: Mesh
) -> Float32[Array, "2 c"]:
  """Nothing, and what a softmax of the head's scale owes to a class's images.

  Args:
    class_sizes: how many images each class has, int [N], at least 1.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.

  Returns:
    Zeros and log(images) / scale, in cosines: float32 [2, C], the second axis
    split by class; 0 if padded.
  """
  cosines = np.zeros((2, head.padded_classes), np.float32)
  cosines[1, : head.num_classes] = owed_cosines(class_sizes, head)
  return jax.make_array_from_callback(
    cosines.shape, NamedSharding(mesh, _BY_CLASS), lambda index: cosines[index]
  )


def nearest_classes(
  weights: Float32[Array, "r d"],
  embeddings: Float[Array | np.ndarray, "b d"],
  labels: Int[Array | np.ndarray, " b"],
  lower: Float32[Array, "v c"],
  *,
  head: Head,
  mesh: Mesh,
) -> tuple[Float32[Array, "v b"], Float32[Array, "v b"]]:
  """Cosines to the true class and to the nearest other one.

  Classes are walked once, in chunks of `head.chunk_classes`, each device its
  shard, whatever number of ways there are to lower their cosines.

  Args:
    weights: class weights of the head, float32 [C K, D], sharding CLASSES.
    embeddings: float [B, D], any length, replicated.
    labels: the class of each embedding, int [B], in [0, N), replicated.
    lower: what is taken off the cosines to each class, in V ways; float32
      [V, C], the second axis split by class.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.

  Returns:
    Two float32 [V, B], replicated. With sub-centers the nearest of a class
    counts.
  """
  return jax.shard_map(
    partial(_nearest_of_all, head=head),
    mesh=mesh,
    in_specs=(CLASSES, REPLICATED, REPLICATED, _BY_CLASS),
    out_specs=(REPLICATED, REPLICATED),
  )(weights, jnp.asarray(embeddings), jnp.asarray(labels), lower)


def _nearest_of_all(
  w_rd: Float32[Array, "r d"],
  x_bd: Float[Array, "b d"],
  y_b: Int[Array, " b"],
  lower_vc: Float32[Array, "v c"],
  *,
  head: Head,
) -> tuple[Float32[Array, "v b"], Float32[Array, "v b"]]:
  """Of the classes of all devices; rows and classes are this device's own."""
  x_bd = unit(x_bd.astype(jnp.float32))
  classes = len(w_rd) // head.sub_centers
  first = lax.axis_index("model") * classes
  chunks, size = count_chunks(classes, head)

  def step(
    k: Int[Array, ""],
    found: tuple[Float32[Array, "v b"], Float32[Array, "v b"]],
  ) -> tuple[Float32[Array, "v b"], Float32[Array, "v b"]]:
    true_vb, other_vb = found
    start = jnp.minimum(k * size, classes - size)
    w_nd = unit(
      lax.dynamic_slice_in_dim(
        w_rd, start * head.sub_centers, size * head.sub_centers
      )
    )
    cosine_nb = product(w_nd, x_bd, (1, 1), head)
    cosine_nb = cosine_nb.reshape(size, head.sub_centers, -1).max(axis=1)
    lower_vn = lax.dynamic_slice_in_dim(lower_vc, start, size, axis=1)
    cosine_vnb = cosine_nb[None] - lower_vn[..., None]
    class_1n1 = (first + start + jnp.arange(size))[None, :, None]
    is_true_1nb = class_1n1 == y_b[None, None]
    is_other_1nb = ~is_true_1nb & (class_1n1 < head.num_classes)
    return (
      jnp.maximum(
        true_vb, jnp.where(is_true_1nb, cosine_vnb, -jnp.inf).max(axis=1)
      ),
      jnp.maximum(
        other_vb, jnp.where(is_other_1nb, cosine_vnb, -jnp.inf).max(axis=1)
      ),
    )

  nothing_vb = jnp.full((len(lower_vc), len(y_b)), -jnp.inf)
  nothing_vb = lax.pcast(nothing_vb, "model", to="varying")
  found = lax.fori_loop(0, chunks, step, (nothing_vb, nothing_vb))
  return lax.pmax(found, "model")


def centre_angles(
  weights: Float32[Array, "r d"], *, head: Head, mesh: Mesh
) -> Float32[Array, " s"]:
  """Angles from class weights to the nearest of another class, degrees.

  Args:
    weights: class weights of the head, float32 [C K, D], sharding CLASSES.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.

  Returns:
    float32 [n K], replicated, of at most a thousand classes, evenly spread.
  """
  shown = min(head.num_classes, _SHOWN)
  class_n = np.arange(shown) * head.num_classes // shown
  row_n = class_n[:, None] * head.sub_centers + np.arange(head.sub_centers)
  _, (cosine_n,) = nearest_classes(
    weights,
    weights[row_n.ravel()],
    jnp.asarray(np.repeat(class_n, head.sub_centers)),
    jnp.zeros((1, head.padded_classes)),
    head=head,
    mesh=mesh,
  )
  return jnp.degrees(jnp.arccos(jnp.clip(cosine_n, -1.0, 1.0)))
