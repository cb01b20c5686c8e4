"""Which classes a step sees: all positives and a random set of the others.

Partial FC (https://arxiv.org/abs/2203.15565) walks the classes of the batch and
a sample of the rest. Here the rest is drawn by strata: the N classes are cut
into about `rate` N runs of neighbours, whose lengths differ by one at most, and
one of each run is drawn. None is drawn twice, shapes are static whatever the
batch holds, and no classes are sorted. The draw depends on the key and on N
alone, not on the mesh.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from jamsface_jax.devices.sharding import CLASSES, REPLICATED
from jamsface_jax.head.layout import place
from jamsface_jax.head.parameters import Head


class Sample(NamedTuple):
  """Slots for classes of each shard, [slots of all shards], sharding CLASSES.

  Attributes:
    rows: row of the class in its shard, int32; no row of it if unused.
    classes: the class, int32; -1 if unused.
    log_weights: what is added to its logit, float32.
  """

  rows: jax.Array
  classes: jax.Array
  log_weights: jax.Array


def count_slots(head: Head, batch: int, model: int) -> int:
  """Returns the slots of one shard: its share of the strata, and the batch.

  A batch may have all its classes on one shard, so that every shard keeps a
  slot for every example: no batch is ever too much for it.

  Args:
    head: gives N, C and the rate.
    batch: number of examples of the global batch.
    model: number of shards.
  """
  per_shard = head.padded_classes // model
  strata = _count_strata(head)
  crossing = per_shard // (head.num_classes // strata) + 2
  return min(strata, crossing) + batch


def draw(
  key: Key[Array, ""], labels: Int[Array, " b"], head: Head, mesh: Mesh
) -> Sample:
  """Draws the classes of one step.

  With `head.weigh_sample`, a drawn class of a run of n counts n times in the
  softmax, which makes the sum over the other classes unbiased (ours; Partial FC
  leaves them as they are).

  Args:
    key: for this step.
    labels: classes of the global batch, int [B].
    head: gives N, C, the rate and whether to weigh.
    mesh: the (data, model) mesh.
  """
  labels = place(labels, mesh, REPLICATED)
  strata = _count_strata(head)
  width, longer = divmod(head.num_classes, strata)
  # The first `longer` runs have one class more.
  stratum = jnp.arange(strata)
  first_s = stratum * width + jnp.minimum(stratum, longer)
  width_s = width + (stratum < longer)
  pick_s = first_s + jax.random.randint(key, (strata,), 0, width_s)

  return jax.shard_map(
    partial(_local_sample, head=head),
    mesh=mesh,
    in_specs=(REPLICATED, REPLICATED, REPLICATED),
    out_specs=CLASSES,
  )(pick_s, width_s, labels)


def _local_sample(
  pick_s: Int[Array, " s"],
  width_s: Int[Array, " s"],
  y_b: Int[Array, " b"],
  *,
  head: Head,
) -> Sample:
  """One shard's slots: for strata that it may have a part of, and the batch.

  Args:
    pick_s: the class drawn of each stratum.
    width_s: its number of classes.
    y_b: classes of the global batch.
    head: gives N, C, the rate and whether to weigh.
  """
  shards = lax.axis_size("model")
  per_shard = head.padded_classes // shards
  slots = count_slots(head, len(y_b), shards) - len(y_b)
  first = lax.axis_index("model") * per_shard

  def is_mine(class_r: jax.Array) -> jax.Array:
    return (class_r >= first) & (class_r < first + per_shard)

  start = jnp.minimum(_stratum_of(first, head), len(pick_s) - slots)
  pick_r = lax.dynamic_slice_in_dim(pick_s, start, slots)
  width_r = lax.dynamic_slice_in_dim(width_s, start, slots)

  # Positives of mine, each once; and what was drawn, unless it is one of them.
  y_b = jnp.sort(y_b)
  once_b = is_mine(y_b) & (jnp.diff(y_b, prepend=-1) != 0)
  is_positive = jnp.zeros(per_shard, bool)
  is_positive = is_positive.at[jnp.where(once_b, y_b - first, per_shard)].set(
    True, mode="drop"
  )
  pick_ok_r = is_mine(pick_r)
  pick_ok_r &= ~is_positive[jnp.where(pick_ok_r, pick_r - first, 0)]

  used = jnp.concatenate([pick_ok_r, once_b])
  class_r = jnp.concatenate([pick_r, y_b])
  log_weight_r = jnp.log(width_r) if head.weigh_sample else 0.0 * width_r
  # Unused slots get rows of their own beyond the end: indices stay unique.
  return Sample(
    rows=jnp.where(used, class_r - first, per_shard + jnp.arange(len(used))),
    classes=jnp.where(used, class_r, -1),
    log_weights=jnp.concatenate([log_weight_r, jnp.zeros(len(y_b))]),
  )


def _stratum_of(class_: Int[Array, ""], head: Head) -> Int[Array, ""]:
  """The stratum that holds a class."""
  width, longer = divmod(head.num_classes, _count_strata(head))
  in_longer = class_ < longer * (width + 1)
  beyond = (class_ - longer * (width + 1)) // width + longer
  return jnp.where(in_longer, class_ // (width + 1), beyond)


def _count_strata(head: Head) -> int:
  return math.ceil(head.sample_rate * head.num_classes)
