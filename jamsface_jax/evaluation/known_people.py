"""New images of the people trained on: who is told apart, by class size.

Verification asks for people never seen. Here the question is where a loss that
favours classes with few images should show it: is the nearest class of a new
image its own, and does that depend on how many images the class has?

Classes are also asked with log(images) / scale taken off their cosines, which
takes out what the softmax has learned of how often they come: logit adjustment
after training, as https://arxiv.org/abs/2007.07314 names it beside that of the
loss.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jamsface_jax.data.records import read_classes
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.devices.sharding import CLASSES, REPLICATED
from jamsface_jax.errors import InputError
from jamsface_jax.head.chunks import count_chunks
from jamsface_jax.head.logits import product, unit
from jamsface_jax.head.parameters import Head
from jamsface_jax.protocols.test_set import Evaluation

PARTS = 10  # Of the classes, by size.
_SHOWN = 1000  # Classes whose centres are compared with all.
_BY_CLASS = P(None, *CLASSES)  # Of arrays whose second axis is that of classes.


class KnownSet:
  """Images of classes trained on, not trained on themselves.

  Args:
    source: the images.
    labels: class trained on of each image, int [N].
    class_sizes: training images of each class, int [C].
  """

  def __init__(
    self, source: RecordSource, labels: np.ndarray, class_sizes: np.ndarray
  ):
    self.source = source
    self.labels = labels
    self._sizes = class_sizes
    self._part_of_class = part_by_size(class_sizes)

  @property
  def name(self) -> str:
    """Prefix of its metrics."""
    return self.source.name

  def rising_metrics(self) -> list[str]:
    """Names of the metrics that are better when larger."""
    return [
      f"{self.name}/{kind}{half}"
      for kind in ("accuracy", "adjusted_accuracy")
      for half in ("", "_poor_half", "_rich_half")
    ]

  def judge(
    self,
    true_cosine: np.ndarray,
    hardest_cosine: np.ndarray,
    adjusted_right: np.ndarray,
  ) -> Evaluation:
    """Sums up what `nearest_classes` found.

    Args:
      true_cosine: of each image to its class, float [N].
      hardest_cosine: to the nearest other class, float [N].
      adjusted_right: whether its class is the nearest once each is lowered by
        its `prior`, bool [N].
    """
    right = true_cosine > hardest_cosine
    part = self._part_of_class[self.labels]
    parts = int(self._part_of_class.max()) + 1
    poor = part < parts / 2
    table = []
    for number in range(parts):
      of_part = part == number
      sizes = self._sizes[self._part_of_class == number]
      table.append(
        {
          "classes": len(sizes),
          "smallest": int(sizes.min()),
          "largest": int(sizes.max()),
          "images": int(of_part.sum()),
          "accuracy": _mean(right[of_part]),
          "adjusted_accuracy": _mean(adjusted_right[of_part]),
          "true_cosine": _mean(true_cosine[of_part]),
          "hardest_cosine": _mean(hardest_cosine[of_part]),
        }
      )
    metrics = {
      "accuracy": _mean(right),
      "accuracy_poor_half": _mean(right[poor]),
      "accuracy_rich_half": _mean(right[~poor]),
      "adjusted_accuracy": _mean(adjusted_right),
      "adjusted_accuracy_poor_half": _mean(adjusted_right[poor]),
      "adjusted_accuracy_rich_half": _mean(adjusted_right[~poor]),
      "true_cosine": _mean(true_cosine),
      "hardest_cosine": _mean(hardest_cosine),
    }
    return Evaluation(
      name=self.name,
      headline=f"nearest class right for {metrics['accuracy']:.2%} of"
      f" {len(right):,} new images, {metrics['accuracy_poor_half']:.2%} in the"
      " poorer half of the classes",
      metrics={f"{self.name}/{name}": v for name, v in metrics.items()},
      intervals={},
      facts={"images": len(right), "by_class_size": table},
    )


def open_known(
  data: str, training: str, image_size: int, class_sizes: np.ndarray
) -> list[KnownSet]:
  """Opens data sets of new images of classes trained on.

  Args:
    data: directories with a comma between; "" for none. Classes are found by
      name.
    training: `data.directory`, the training data.
    image_size: height and width that the network sees.
    class_sizes: images of each class of the training data, int [C].

  Raises:
    InputError: not a data set, or one with a class that is not trained on.
  """
  if data and not training:
    raise InputError(
      f"evaluation.known={data!r} needs the classes of data.directory, which is"
      " '': train on a data set, or leave evaluation.known empty."
    )
  directories = [*filter(None, data.split(","))]
  numbers = {}
  if directories:
    trained = (read_classes(one) for one in training.split(","))
    numbers = {
      name: number
      for number, name in enumerate(itertools.chain.from_iterable(trained))
    }
  known = []
  for directory in directories:
    source = RecordSource(directory, image_size)
    names = read_classes(directory)
    strangers = [name for name in names if name not in numbers]
    if strangers:
      raise InputError(
        f"evaluation.known={directory!r} has the class {strangers[0]!r}, which"
        f" {training!r} does not have ({len(strangers)} of {len(names)}): give"
        " new images of classes that are trained on."
      )
    class_of = np.array([numbers[name] for name in names])
    known.append(KnownSet(source, class_of[source.labels()], class_sizes))
  return known


def part_by_size(class_sizes: np.ndarray) -> np.ndarray:
  """Cuts the classes into ten parts alike in number, the poorest first.

  Returns:
    The part of each class, int64 [C], 0 to 9; fewer parts if there are fewer
    classes. Classes of one size are told apart by their number.
  """
  order = np.argsort(class_sizes, kind="stable")
  parts = min(PARTS, len(order))
  part = np.empty(len(order), np.int64)
  part[order] = np.arange(len(order)) * parts // len(order)
  return part


def priors(class_sizes: np.ndarray, *, head: Head, mesh: Mesh) -> jax.Array:
  """Nothing, and what a softmax of the head's scale owes to a class's images.

  Args:
    class_sizes: images of each class, int [N], at least 1.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.

  Returns:
    Zeros and log(images) / scale, in cosines: float32 [2, C], the second axis
    split by class; 0 if padded.
  """
  cosines = np.zeros((2, head.padded_classes), np.float32)
  cosines[1, : head.num_classes] = np.log(class_sizes) / head.scale
  return jax.make_array_from_callback(
    cosines.shape, NamedSharding(mesh, _BY_CLASS), lambda index: cosines[index]
  )


def nearest_classes(
  weights: jax.Array,
  embeddings: jax.Array,
  labels: jax.Array,
  lower: jax.Array,
  *,
  head: Head,
  mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
  """Cosines to the true class and to the nearest other one.

  Classes are walked once, in chunks of `head.chunk_classes`, each device its
  shard, whatever number of ways there are to lower their cosines.

  Args:
    weights: of the head, float32 [C K, D], sharding CLASSES.
    embeddings: float [B, D], any length, replicated.
    labels: int [B], in [0, N), replicated.
    lower: what is taken off the cosines to each class, in V ways; float32
      [V, C], the second axis split by class.
    head: what is fixed about the head.
    mesh: the (data, model) mesh.

  Returns:
    Two float32 [V, B], replicated. With sub-centers the nearest of a class
    counts.
  """

  def local(w_rk, x_bd, y_b, lower_vr):
    x_bd = unit(x_bd.astype(jnp.float32))
    classes = len(w_rk) // head.sub_centers
    first = lax.axis_index("model") * classes
    chunks, size = count_chunks(classes, head)

    def step(k, carry):
      true_vb, other_vb = carry
      start = jnp.minimum(k * size, classes - size)
      w_nk = unit(
        lax.dynamic_slice_in_dim(
          w_rk, start * head.sub_centers, size * head.sub_centers
        )
      )
      cosine_nb = product(w_nk, x_bd, (1, 1), head)
      cosine_nb = cosine_nb.reshape(size, head.sub_centers, -1).max(axis=1)
      lower_vn = lax.dynamic_slice_in_dim(lower_vr, start, size, axis=1)
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

    nothing_vb = jnp.full((len(lower_vr), len(y_b)), -jnp.inf)
    nothing_vb = lax.pcast(nothing_vb, "model", to="varying")
    found = lax.fori_loop(0, chunks, step, (nothing_vb, nothing_vb))
    return lax.pmax(found, "model")

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(CLASSES, REPLICATED, REPLICATED, _BY_CLASS),
    out_specs=(REPLICATED, REPLICATED),
  )(weights, embeddings, labels, lower)


def centre_angles(weights: jax.Array, *, head: Head, mesh: Mesh) -> jax.Array:
  """Angles from class weights to the nearest of another class, degrees.

  Args:
    weights: of the head, float32 [C K, D], sharding CLASSES.
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


def _mean(values: Sequence) -> float:
  return float(np.mean(values)) if len(values) else float("nan")
