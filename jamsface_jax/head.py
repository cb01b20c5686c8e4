r"""The JAMsFace head: a margin softmax over classes split across devices.

    phi_i = cos(t_iy + a_y) - c_y
    CE_i  = -log( exp(s phi_i) / (exp(s phi_i) + sum_{j != y} exp(s cos t_ij)) )

Every class j has a weight row and two margins a_j, c_j, learned or frozen. The
classes live on the `model` axis; each device walks its own in chunks and keeps
a running log-sum-exp, so that no [B, C] array exists, and the backward computes
each chunk again. All collectives of the head are in this file: embeddings and
labels are gathered along `model`, then one max and one sum of [B] floats make
the softmax whole.

Shapes: B examples, D embedding size, C padded classes, N real classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jamsface_jax import margins
from jamsface_jax.errors import InputError
from jamsface_jax.sharding import BATCH, CLASSES

# Logit of a class that must not count. Not -inf: a shard may hold padding only,
# and -inf minus -inf is NaN.
_MASKED = -1e30
_NORM_FLOOR = 1e-12  # Floor of |w|^2: padded rows are zero.

ANGULAR = "angular_margins"
COSINE = "cosine_margins"

HeadParams = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Margin:
  """How one of the two margins of every class behaves.

  Attributes:
    initial: its first value (radians for the angular one); its last one too if
      it is not learned; and the mean over classes that rule "mean" holds.
    learned: whether the gradient moves it.
    rule: "mean" projects the margins, after each step, on those with mean
      `initial` (ours); "lambda" subtracts `strength` times their mean from the
      loss (the published kind).
    upper: margins stay in [0, upper].
    strength: lambda of rule "lambda".
  """

  initial: float
  learned: bool
  rule: str
  upper: float
  strength: float


@dataclasses.dataclass(frozen=True)
class Head:
  """What is fixed about a head.

  Attributes:
    num_classes: N.
    padded_classes: C, a multiple of N's padding and of the `model` axis.
    embedding_size: D.
    scale: s.
    angular: the margin a.
    cosine: the margin c.
    smooth: continuation beyond pi - a, see `margins.joint`.
    chunk_classes: at most so many classes are walked at once.
    product_dtype: dtype of the big product's operands; sums are float32.
  """

  num_classes: int
  padded_classes: int
  embedding_size: int
  scale: float
  angular: Margin
  cosine: Margin
  smooth: bool
  chunk_classes: int
  product_dtype: str

  def margin(self, name: str) -> Margin:
    """Returns the margin kept under this parameter name."""
    return {ANGULAR: self.angular, COSINE: self.cosine}[name]


def pad_classes(num_classes: int, multiple: int) -> int:
  """Rounds a number of classes up to a multiple.

  The multiple is a setting and not the mesh, so that a checkpoint has one shape
  on every mesh.
  """
  return -(-num_classes // multiple) * multiple


def check_mesh(head: Head, mesh: Mesh) -> None:
  """Refuses a mesh whose `model` axis does not divide the padded classes."""
  model = mesh.shape["model"]
  if head.padded_classes % model:
    raise InputError(
      f"head.class_multiple pads {head.num_classes} classes to"
      f" {head.padded_classes}, which mesh.model={model} does not divide: use a"
      f" multiple of {model}."
    )


def init(key: jax.Array, head: Head) -> HeadParams:
  """Makes the parameters: weights N(0, 0.01), margins at their initial value.

  Returns:
    `weights` float32 [C, D], `angular_margins` and `cosine_margins` float32
    [C]. Padded rows are zero, and every leaf's first axis is split by class.
  """
  real_c = _is_real(head)
  shape = (head.padded_classes, head.embedding_size)
  return {
    "weights": jnp.where(
      real_c[:, None], 0.01 * jax.random.normal(key, shape), 0.0
    ),
    # A Python number would leave a weak type, and a second compilation.
    ANGULAR: jnp.where(real_c, jnp.float32(head.angular.initial), 0.0),
    COSINE: jnp.where(real_c, jnp.float32(head.cosine.initial), 0.0),
  }


def cross_entropy(
  params: HeadParams,
  embeddings: jax.Array,
  labels: jax.Array,
  *,
  head: Head,
  mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
  """Margin softmax cross-entropy of every example.

  Differentiate it from outside: the gradients of all parameters and of the
  embeddings come out with the sharding of what they belong to.

  Args:
    params: as `init` returns, sharding CLASSES.
    embeddings: float [B, D], any length, sharding BATCH.
    labels: int [B] in [0, N), sharding BATCH.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.

  Returns:
    Cross-entropy float32 [B] (nats), and whether the true class has the largest
    cosine, margins apart, bool [B]. Both are split over `data`.
  """

  def local(x_bd, y_b, w_cd, angular_c, cosine_c):
    return _local_cross_entropy(x_bd, y_b, w_cd, angular_c, cosine_c, head)

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(BATCH, BATCH, CLASSES, CLASSES, CLASSES),
    out_specs=(P("data"), P("data")),
  )(embeddings, labels, params["weights"], params[ANGULAR], params[COSINE])


def _local_cross_entropy(x_bd, y_b, w_cd, angular_c, cosine_c, head):
  """One device's part: examples of its `data` row, classes of its shard."""
  x_bd = lax.all_gather(x_bd, "model", tiled=True)
  y_b = lax.all_gather(y_b, "model", tiled=True)
  # Said once, here: inside the walk it would sum gradients over `data` at
  # every chunk.
  w_cd, angular_c, cosine_c = lax.pcast(
    (w_cd, angular_c, cosine_c), "data", to="varying"
  )
  x_bd = _unit(x_bd.astype(jnp.float32))
  first = lax.axis_index("model") * len(w_cd)

  # The true class, if it is one of mine: in float32 from its own row.
  row_b = y_b - first
  mine_b = (row_b >= 0) & (row_b < len(w_cd))
  row_b = jnp.where(mine_b, row_b, 0)
  true_b = jnp.sum(x_bd * _unit(w_cd[row_b]), axis=1)
  phi_b = margins.joint(
    true_b, angular_c[row_b], cosine_c[row_b], smooth=head.smooth
  )
  true_b, phi_b = jnp.where(mine_b[None], jnp.stack([true_b, phi_b]), 0.0)

  # All other classes of mine.
  top_b, sum_b = _walk(x_bd, y_b, w_cd, first, head)
  top_all_b = lax.pmax(lax.stop_gradient(top_b), "model")
  sum_b = sum_b * jnp.exp(top_b - top_all_b)
  sum_b, phi_b, true_b = lax.psum(jnp.stack([sum_b, phi_b, true_b]), "model")
  rest_b = top_all_b + jnp.log(sum_b)
  cross_entropy_b = jax.nn.softplus(rest_b - head.scale * phi_b)
  return cross_entropy_b, head.scale * true_b > top_all_b


def _walk(x_bd, y_b, w_cd, first, head):
  """Log-sum-exp over the classes of this shard but the true one, as a pair.

  Returns:
    `top_b`, `sum_b` with log-sum-exp = top + log(sum).
  """
  chunks = _count_chunks(len(w_cd), head.chunk_classes)
  chunk = len(w_cd) // chunks
  x_bd = x_bd.astype(head.product_dtype)

  # Recomputed in the backward: kept, the chunks would add up to [B, C].
  @jax.checkpoint
  def step(carry, inputs):
    top_b, sum_b = carry
    w_cd, start = inputs
    cos_bc = lax.dot_general(
      x_bd,
      _unit(w_cd).astype(x_bd.dtype),
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    class_c = start + jnp.arange(chunk)
    real_c = class_c < head.num_classes
    counts_bc = real_c[None] & (class_c[None] != y_b[:, None])
    logits_bc = jnp.where(counts_bc, head.scale * cos_bc, _MASKED)
    new_top_b = jnp.maximum(top_b, lax.stop_gradient(logits_bc.max(axis=1)))
    new_sum_b = jnp.exp(logits_bc - new_top_b[:, None]).sum(axis=1)
    return (new_top_b, sum_b * jnp.exp(top_b - new_top_b) + new_sum_b), None

  start = lax.pcast(
    (jnp.full(len(y_b), _MASKED), jnp.zeros(len(y_b))),
    ("data", "model"),
    to="varying",
  )
  starts = first + chunk * jnp.arange(chunks)
  w_kcd = w_cd.reshape(chunks, chunk, -1)
  (top_b, sum_b), _ = lax.scan(step, start, (w_kcd, starts))
  return top_b, sum_b


def margin_reward(params: HeadParams, head: Head) -> jax.Array:
  """What rule "lambda" subtracts from the loss: lambda times the class mean.

  The mean runs over all N classes, not over the batch: at a fixed point a class
  with n images then has 1 - p = lambda N_images / (N n s), so that the margin
  falls with n. Ours where the abstract is silent.

  Returns:
    float32 scalar; 0 for margins that are frozen or held by rule "mean".
  """
  reward = jnp.float32(0.0)
  for name in (ANGULAR, COSINE):
    margin = head.margin(name)
    if margin.learned and margin.rule == "lambda":
      reward += margin.strength * _real_mean(params[name], head)
  return reward


def constrain(params: HeadParams, head: Head) -> HeadParams:
  """Puts learned margins back into their box, and on their mean if it is held.

  Called after each step of the optimizer.
  """
  params = dict(params)
  for name in (ANGULAR, COSINE):
    margin = head.margin(name)
    if not margin.learned:
      continue
    if margin.rule == "mean":
      params[name] = hold_mean(params[name], head, margin)
    else:
      params[name] = jnp.clip(params[name], 0.0, margin.upper)
  return params


def hold_mean(m_c: jax.Array, head: Head, margin: Margin) -> jax.Array:
  """Projects margins on the box [0, upper] with mean `margin.initial`.

  The nearest point of that set is clip(m + t, 0, upper) for one shift t (the
  condition of Karush, Kuhn and Tucker with one multiplier for the mean). t is
  found by Newton's method, kept inside a bisected bracket.

  Args:
    m_c: margins, float32 [C].
    head: gives the number of real classes; padded margins stay 0.
    margin: gives the box and the mean.

  Returns:
    float32 [C].
  """
  target, upper = margin.initial, margin.upper
  real_c = _is_real(head)

  def shifted(t):
    return jnp.where(real_c, jnp.clip(m_c + t, 0.0, upper), 0.0)

  def excess(t):
    return jnp.sum(shifted(t)) / head.num_classes - target

  def unsolved(carry):
    _, _, _, e, i = carry
    return (jnp.abs(e) > 1e-6 * max(target, 1e-3)) & (i < 50)

  def improve(carry):
    low, high, t, e, i = carry
    low, high = jnp.where(e < 0, t, low), jnp.where(e < 0, high, t)
    free_c = real_c & (m_c + t > 0) & (m_c + t < upper)
    newton = t - e * head.num_classes / jnp.maximum(jnp.sum(free_c), 1)
    inside = (newton > low) & (newton < high)
    t = jnp.where(inside, newton, (low + high) / 2)
    return low, high, t, excess(t), i + 1

  low = -jnp.max(jnp.where(real_c, m_c, -jnp.inf))
  high = upper - jnp.min(jnp.where(real_c, m_c, jnp.inf))
  zero = jnp.zeros_like(low)
  *_, t, _, _ = lax.while_loop(
    unsolved, improve, (low, high, zero, excess(zero), 0)
  )
  return shifted(t)


def margin_statistics(params: HeadParams, head: Head) -> dict[str, jax.Array]:
  """Mean, minimum and maximum of both margins over real classes, scalars."""
  real_c = _is_real(head)
  statistics = {}
  for name, m_c in (
    ("margin_angular", params[ANGULAR]),
    ("margin_cosine", params[COSINE]),
  ):
    statistics[f"{name}_mean"] = _real_mean(m_c, head)
    statistics[f"{name}_min"] = jnp.min(jnp.where(real_c, m_c, jnp.inf))
    statistics[f"{name}_max"] = jnp.max(jnp.where(real_c, m_c, -jnp.inf))
  return statistics


def _is_real(head: Head) -> jax.Array:
  return jnp.arange(head.padded_classes) < head.num_classes


def _real_mean(m_c: jax.Array, head: Head) -> jax.Array:
  return jnp.sum(jnp.where(_is_real(head), m_c, 0.0)) / head.num_classes


def _unit(v_nd: jax.Array) -> jax.Array:
  """Rows scaled to length 1."""
  square_n = jnp.sum(v_nd**2, axis=1, keepdims=True)
  return v_nd * lax.rsqrt(jnp.maximum(square_n, _NORM_FLOOR))


def _count_chunks(classes: int, at_most: int) -> int:
  """The least number of equal chunks of at most so many classes each."""
  chunks = -(-classes // at_most)
  while classes % chunks:
    chunks += 1
  return chunks
