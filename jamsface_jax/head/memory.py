"""What a head will cost each device, known before anything is allocated."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jamsface_jax.errors import InputError
from jamsface_jax.head import class_sampling
from jamsface_jax.head.chunks import count_chunks, count_kept
from jamsface_jax.head.parameters import Head

_FLOAT = 4  # Bytes.


@dataclasses.dataclass(frozen=True)
class HeadCost:
  """Bytes that a device holds for the head, and what it computes in a step.

  Attributes:
    weights: class weights.
    optimizer: state of their optimizer: momentum, or two moments.
    gradient: the gradient of the weights; 0 if the update is fused.
    sample: copies of the sampled classes' weights and optimizer state.
    seen: sums of embeddings that margins follow from; 0 if none does.
    kept: cosines kept from walk to walk.
    walk: the chunk at hand and the examples.
    examples: number of examples that a device walks its classes with.
    operations: floating-point operations of a step's matrix products.
  """

  weights: int
  optimizer: int
  gradient: int
  sample: int
  seen: int
  kept: int
  walk: int
  examples: int
  operations: int

  @property
  def parts(self) -> dict[str, int]:
    """Bytes by what they hold, in words."""
    return {
      "weights": self.weights,
      "optimizer": self.optimizer,
      "gradient": self.gradient,
      "sample": self.sample,
      "class sums": self.seen,
      "kept cosines": self.kept,
      "chunk": self.walk,
    }

  @property
  def total(self) -> int:
    """Bytes in all."""
    return sum(self.parts.values())


def estimate(
  head: Head,
  batch: int,
  mesh: Mesh,
  *,
  optimizer: optax.GradientTransformation,
  fused_update: bool,
) -> HeadCost:
  """Estimates what each device of a mesh holds and does for a head.

  Args:
    head: what is fixed about it.
    batch: number of examples of the global batch.
    mesh: the (data, model) mesh.
    optimizer: the one that the class weights have.
    fused_update: whether the update is fused.
  """
  model = mesh.shape["model"]
  examples = batch // mesh.shape["data"]
  classes = head.padded_classes // model
  row = head.sub_centers * head.embedding_size * _FLOAT
  of_one = jax.eval_shape(optimizer.init, jnp.zeros((1, 1)))
  moments = sum(leaf.ndim > 0 for leaf in jax.tree.leaves(of_one))
  walked, sample = classes, 0
  if head.sample_rate < 1:
    walked = class_sampling.count_slots(head, batch, model)
    sample = (1 + moments) * walked * row
  chunks, chunk = count_chunks(walked, head)
  kept = count_kept(chunks, chunk, examples, head)
  # A chunk of weights, moments, gradient and update; of cosines and gradients,
  # once more for the choice of sub-centers; embeddings, their gradient and its
  # part of this shard; lengths of all weights walked.
  walk = (3 + moments) * chunk * row
  copies = 3 if head.sub_centers > 1 else 2
  walk += copies * examples * chunk * head.sub_centers * _FLOAT
  walk += 4 * examples * head.embedding_size * _FLOAT
  walk += walked * head.sub_centers * _FLOAT
  if head.makes_anew:  # All examples, to be added up, on every device.
    walk += 2 * batch * head.embedding_size * _FLOAT
  return HeadCost(
    weights=classes * row,
    optimizer=moments * classes * row,
    gradient=0 if fused_update else classes * row,
    sample=sample,
    seen=classes * head.embedding_size * _FLOAT if head.makes_anew else 0,
    kept=kept * chunk * examples * head.sub_centers * _FLOAT,
    walk=walk,
    examples=examples,
    operations=(4 * chunks - kept) * 2 * examples * chunk * row // _FLOAT,
  )


def check_fits(cost: HeadCost, head: Head, mesh: Mesh, memory: int) -> None:
  """Refuses a head that no device could hold.

  Args:
    cost: what `estimate` returned.
    head: what is fixed about it.
    mesh: the (data, model) mesh.
    memory: bytes that a device may hold.

  Raises:
    InputError: names the bytes, and ways out with theirs.
  """
  if cost.total <= memory:
    return
  ways = []
  if mesh.shape["data"] > 1:
    ways.append(
      f"mesh.model=-1 (the classes on all {mesh.size} devices instead of"
      f" {mesh.shape['model']})"
    )
  state = cost.weights + cost.optimizer + cost.seen
  needed = -(-state * mesh.shape["model"] // max(memory - cost.walk, 1))
  ways.append(f"at least {needed} devices on the model axis")
  if cost.gradient:
    ways.append(
      f"head.fused_update=True ({to_text(cost.gradient)} less on each device)"
    )
  if head.sub_centers > 1:
    ways.append(f"head.sub_centers=1 (1 / {head.sub_centers} of it)")
  ways.append("a smaller model.embedding_size (half of it, half of the memory)")
  ways.append("a smaller head.chunk_classes or data.batch_size")
  raise InputError(
    f"head: {head.num_classes:,} classes need {to_text(cost.total)} on each"
    f" device ({_by_part(cost)}), which has {to_text(memory)}: use"
    f" {'; or '.join(ways[:3])}."
  )


def describe(cost: HeadCost, memory: int, rate: float) -> str:
  """One line: bytes of a device by part, and the products' time."""
  seconds = cost.operations / rate
  return (
    f"{to_text(cost.total)} of {to_text(memory)} on each device"
    f" ({_by_part(cost)}); its products take about {seconds:.2g} s of a step"
  )


def _by_part(cost: HeadCost) -> str:
  return ", ".join(
    f"{name} {to_text(n)}" for name, n in cost.parts.items() if n
  )


def to_text(count: int) -> str:
  """A number of bytes, for people."""
  if count < 2**30:
    return f"{count / 2**20:.3g} MiB"
  return f"{count / 2**30:.3g} GiB"
