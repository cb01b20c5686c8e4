"""Margins by how densely the embeddings of a class lie, made anew each pass.

KappaFace (Oinar et al., https://arxiv.org/abs/2201.07394), whose public code
(github.com/Leminhbinh0209/KappaFace, commit 5158b2f) is what was read. Over a
pass the unit embeddings of each class are added up; of their mean length R
follows the concentration of the class on the sphere,

    kappa = R (D - R^2) / (1 - R^2)

(the estimate of Banerjee et al., JMLR 6, 2005), and of that, standardised over
classes, and of the number n of its images its margin:

    weight = gamma sigmoid(-T (kappa - mean) / deviation)
             + (1 - gamma) (1 + cos(pi n / (1.05 n_max))) / 2
    margin = weight * initial

What differs: the embeddings are those that the network in training gives the
batch, not those of a second one or of a memory of all images; what a pass did
not show is left out, not taken as 0; and `Head.held` may shift all margins to
a mean (ours). Both margins have the same weight; theirs has the angular one.

Shapes: B examples of the global batch, D embedding size, C padded classes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int

from jamsface_jax.devices.sharding import BATCH, CLASSES, REPLICATED
from jamsface_jax.head.layout import mesh_for, place
from jamsface_jax.head.logits import unit
from jamsface_jax.head.margin_rules import hold
from jamsface_jax.head.parameters import (
  ANGULAR,
  CLASS_SIZES,
  COSINE,
  Head,
  HeadParams,
  is_real,
)

SUMS = "sums"
COUNTS = "counts"
SPREADS = "spreads"

# What a pass has seen of the classes, by name.
Seen = dict[str, jax.Array]

# A mean embedding of squared length above this one is of images that embed
# alike, whose length float32 does not tell from 1.
_ALIKE = 1 - 1e-6


def start(head: Head, mesh: Mesh | None = None) -> Seen:
  """What is known before the first pass.

  Args:
    head: what is fixed about the head.
    mesh: the (data, model) mesh; None: one device.

  Returns:
    {} for a head whose margins do not follow from it; otherwise, split by
    class, `sums` float32 [C, D] of unit embeddings and their `counts` float32
    [C], of the pass so far; and `spreads` float32 [C], sigmoid(-T ...) of the
    last pass that showed the class, one half before.
  """
  if not head.makes_anew:
    return {}
  mesh = mesh_for(np.zeros(0), mesh)
  classes = head.padded_classes
  seen = {
    SUMS: jnp.zeros((classes, head.embedding_size)),
    COUNTS: jnp.zeros(classes),
    SPREADS: jnp.full(classes, 0.5, jnp.float32),
  }
  return place(seen, mesh, CLASSES)


def add(
  seen: Seen,
  embeddings: Float[Array, "b d"],
  labels: Int[Array, " b"],
  *,
  head: Head,
  mesh: Mesh | None = None,
  accept: bool | Bool[Array, ""] = True,
) -> Seen:
  """Adds a batch to what the pass has seen.

  Every device adds the examples of the whole batch that are of its classes, so
  that no sum of a class leaves it: [B, D] is moved, not [C, D].

  Args:
    seen: what `start`, `add` or `end_pass` returned.
    embeddings: float [B, D], any length and dtype, sharding BATCH.
    labels: int [B], sharding BATCH; examples whose label is no class are left
      out.
    head: what is fixed about the head.
    mesh: the (data, model) mesh; None: one device.
    accept: bool scalar; False adds nothing, embeddings that are not finite
      neither.

  Returns:
    As `seen`; nothing has a gradient.
  """
  if not seen:
    return seen
  mesh = mesh_for(embeddings, mesh)
  embeddings = lax.stop_gradient(embeddings).astype(jnp.float32)
  unit_bd = unit(place(embeddings, mesh, BATCH))

  def local(
    sums_cd: jax.Array,
    counts_c: jax.Array,
    unit_bd: jax.Array,
    label_b: jax.Array,
    accept: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    classes = len(counts_c)
    row_b = label_b - lax.axis_index("model") * classes
    is_mine_b = (row_b >= 0) & (row_b < classes)
    is_mine_b &= (label_b < head.num_classes) & accept
    row_b = jnp.where(is_mine_b, row_b, 0)
    # A choice of numbers to add, not of sums: these are changed in place.
    mine_bd = jnp.where(is_mine_b[:, None], unit_bd, 0.0)
    counts_c = counts_c.at[row_b].add(is_mine_b.astype(jnp.float32))
    return sums_cd.at[row_b].add(mine_bd), counts_c

  sums, counts = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(CLASSES, CLASSES, REPLICATED, REPLICATED, REPLICATED),
    out_specs=(CLASSES, CLASSES),
  )(
    seen[SUMS],
    seen[COUNTS],
    *place((unit_bd, jnp.asarray(labels)), mesh, REPLICATED),
    jnp.asarray(accept),
  )
  return seen | {SUMS: sums, COUNTS: counts}


def end_pass(
  params: HeadParams, seen: Seen, *, head: Head, mesh: Mesh | None = None
) -> tuple[HeadParams, Seen]:
  """Makes margins of what a pass has seen, and begins another.

  Args:
    params: as `init` returns; the weights may be missing.
    seen: what `add` returned last.
    head: what is fixed about the head.
    mesh: the (data, model) mesh; None: one device.

  Returns:
    The same parameters with other margins, and what is known before the next
    pass. A class that was not seen counts with the concentration that it had.
  """
  if not seen:
    return params, seen
  mesh = mesh_for(seen[COUNTS], mesh)
  spreads_c = _spreads(seen, head)
  weights_c = head.concentration_share * spreads_c
  weights_c += (1 - head.concentration_share) * _size_weights(params, head)
  params = dict(params)
  for name in (ANGULAR, COSINE):
    margin = head.margin(name)
    if margin.made_anew:
      m_c = jnp.where(is_real(head), margin.initial * weights_c, 0.0)
      if head.held != "none":
        m_c = hold(m_c, params, head, margin)
      params[name] = place(m_c, mesh, CLASSES)
  nothing = {name: jnp.zeros_like(seen[name]) for name in (SUMS, COUNTS)}
  return params, place(nothing | {SPREADS: spreads_c}, mesh, CLASSES)


def _spreads(seen: Seen, head: Head) -> Float32[Array, " c"]:
  """sigmoid(-T z) of the standardised concentration z, [C]."""
  counts_c = seen[COUNTS]
  is_seen_c = is_real(head) & (counts_c > 0)
  kappa_c = _concentrations(seen[SUMS], counts_c, is_seen_c)
  number = is_seen_c.sum()
  mean = jnp.where(is_seen_c, kappa_c, 0.0).sum() / jnp.maximum(number, 1)
  centred_c = jnp.where(is_seen_c, kappa_c - mean, 0.0)
  variance = (centred_c**2).sum() / jnp.maximum(number - 1, 1)
  # Where all are alike every one is as the mean.
  z_c = centred_c * jnp.where(variance > 0, lax.rsqrt(variance), 0.0)
  spreads_c = jax.nn.sigmoid(-head.concentration_temperature * z_c)
  return jnp.where(is_seen_c, spreads_c, seen[SPREADS])


def _concentrations(
  sums_cd: Float32[Array, "c d"],
  counts_c: Float32[Array, " c"],
  is_seen_c: Bool[Array, " c"],
) -> Float32[Array, " c"]:
  """The concentration kappa of each class that was seen, [C].

  Where it is infinite, as of one image, the largest of the others stands for
  it, as in the public code; there it is for rounding to say what is infinite.
  """
  squared_c = (sums_cd**2).sum(axis=1) / jnp.maximum(counts_c, 1.0) ** 2
  finite_c = is_seen_c & (counts_c > 1) & (squared_c < _ALIKE)
  squared_c = jnp.where(finite_c, squared_c, 0.0)
  size = sums_cd.shape[1]
  kappa_c = jnp.sqrt(squared_c) * (size - squared_c) / (1 - squared_c)
  return jnp.where(finite_c, kappa_c, kappa_c.max())


def _size_weights(params: HeadParams, head: Head) -> Float32[Array, " c"]:
  """(1 + cos(pi n / (1.05 n_max))) / 2, [C]."""
  sizes_c = jnp.where(is_real(head), params[CLASS_SIZES], 0.0)
  return (1 + jnp.cos(math.pi / 1.05 * sizes_c / sizes_c.max())) / 2
