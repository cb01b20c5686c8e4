"""The parameters of the JAMsFace head, and what is fixed about it.

Every class j has weights and two margins a_j, c_j, learned or frozen. Classes
are split over the `model` axis; `forward` makes a loss of them.

Shapes: D embedding size, C padded classes, N real classes, K sub-centers.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Float64, Int, Key

from jamsface_jax.devices.sharding import CLASSES, REPLICATED
from jamsface_jax.errors import InputError
from jamsface_jax.head.layout import mesh_for, place, varying
from jamsface_jax.head.losses import Loss

# Rows of the weights that are drawn together.
_ROWS_AT_ONCE = 4096

WEIGHTS = "weights"
LOG_SCALE = "log_scale"
ANGULAR = "angular_margins"
COSINE = "cosine_margins"
CLASS_SIZES = "class_sizes"  # Images, if a setting of the head counts them.
BIAS = "bias"  # Of losses that count other classes one by one.

HeadParams = dict[str, jax.Array]
Leaf = TypeVar("Leaf")


@dataclasses.dataclass(frozen=True)
class Margin:
  """How one of the two margins of every class behaves.

  Attributes:
    initial: its first value (radians for the angular one), of the smallest
      class if `power` is not 0, in the mean if `slope` is not or there is a
      `curve`; its last one too if it is not learned; and the mean that rule
      "mean" holds.
    power: first values fall as (n_min / n_j)^power with the images n_j of a
      class; 1/4 with a cosine margin is LDAM (https://arxiv.org/abs/1906.07413),
      its constant chosen by the largest margin as in its public code.
    slope: first values rise by this share of `initial` with each doubling of
      n_j (ours), inside the bounds and with the mean of `Head.held`.
    curve: first values at some sizes, as pairs (n, value) with n rising:
      straight lines in log n between them, level beyond (ours); bounds and mean
      likewise. () for none.
    learned: whether the gradient moves it.
    rule: of learned margins "mean" or "lambda": "mean" projects them, after
      each step, on those with mean `initial` (ours); "lambda" subtracts
      `strength` times their mean from the loss (the published kind). Others
      stay, unless it is "concentration": then they are made anew after each
      pass over the data, see `concentration`.
    lower: margins stay in [lower, upper] if they are learned, or made anew
      with their mean held.
    upper: likewise.
    bounds: how they stay there: "box" cuts them off; "sigmoid" moves r of
      lower + (upper - lower) / (1 + exp(-r)), which slows down near the bounds.
    strength: lambda of rule "lambda".
    rewarded: whose mean rule "lambda" rewards: all "classes", each once, or
      those of the "batch", each as often as it has images there.
    start: steps before which they rest.
  """

  initial: float
  power: float
  slope: float
  curve: tuple[tuple[float, float], ...]
  learned: bool
  rule: str
  lower: float
  upper: float
  bounds: str
  strength: float
  rewarded: str
  start: int

  @property
  def made_anew(self) -> bool:
    """Whether it follows from what a pass over the data has seen."""
    return self.rule == "concentration" and self.initial > 0

  def first(
    self, class_sizes: Int[np.ndarray, " n"] | None, held: str
  ) -> float | Float32[np.ndarray, " n"]:
    """First margins: one number for all, or float32 [N].

    Args:
      class_sizes: images of each class, at least 1; None: nobody knows, and
        margins that change with them are NaN.
      held: `Head.held`, whose mean is `initial`.
    """
    if not (self.power or self.slope or self.curve):
      return self.initial
    if class_sizes is None:  # Shapes can be had, but no values.
      return math.nan
    sizes = np.asarray(class_sizes, np.float64)
    if self.power:
      return (self.initial * (sizes.min() / sizes) ** self.power).astype("f4")
    if self.curve:
      at, values = np.transpose(self.curve)
      shape = np.interp(np.log(sizes), np.log(at), values)
    else:
      shape = self.initial * (1 + self.slope * np.log2(sizes))
    counts = sizes if held == "images" else np.ones_like(sizes)
    return self._with_mean(shape, counts).astype("f4")

  def _with_mean(
    self, shape: Float64[np.ndarray, " n"], counts: Float64[np.ndarray, " n"]
  ) -> Float64[np.ndarray, " n"]:
    """The shape raised or lowered inside the bounds until its mean is right."""

    def raised(t: float) -> np.ndarray:
      return np.clip(shape + t, self.lower, self.upper)

    low, high = self.lower - shape.max(), self.upper - shape.min()
    for _ in range(60):
      t = (low + high) / 2
      below = np.average(raised(t), weights=counts) < self.initial
      low, high = (t, high) if below else (low, t)
    return raised(high)


@dataclasses.dataclass(frozen=True)
class Head:
  """What is fixed about a head.

  Attributes:
    num_classes: N.
    padded_classes: C, a multiple of N's padding and of the `model` axis.
    embedding_size: D.
    sub_centers: K, weight rows of a class; the nearest one counts, as in
      Sub-center ArcFace (Deng et al., ECCV 2020).
    scale: s; its first value if it is learned.
    learn_scale: whether the gradient moves it.
    loss: what it makes of cosines and margins.
    angular: the margin a.
    cosine: the margin c.
    count_power: in the means of margins, those that are held and those that are
      rewarded, a class counts as its images to this power (ours); 0: all alike.
    held: whose mean the rules "mean" and "concentration" hold: that of
      "classes", as `count_power` counts them; of "images", where only the mean
      that is held counts images and what a class gives for it is as before; or
      of the classes of each size, "sizes", so that no margin can follow from
      size alone (all ours). "none": rule "concentration" as published.
    gradient_power: the gradient of a class's margins is divided by its images
      over their mean, to this power (ours); 0: each image counts.
    concentration_temperature: T of rule "concentration": how much the margins
      differ with the concentration of their class.
    concentration_share: gamma of it: the share of concentration in a margin;
      the rest is of class size.
    logit_adjustment: tau; every logit has tau log(images of its class) more in
      training (the loss of Menon et al., https://arxiv.org/abs/2007.07314).
    ignore_above: other classes of a larger cosine do not count; 1: all do.
    sample_rate: share of the other classes that a step walks, in (0, 1].
    weigh_sample: whether a drawn class stands for those that were not.
    chunk_classes: at most so many classes are walked at once.
    keep_bytes: room on each device for cosines that the second walk of the
      classes would otherwise compute again.
    skip_below: a block of smaller probabilities adds nothing to gradients; 0:
      every block does.
    product_dtype: dtype of the big product's operands; sums are float32.
  """

  num_classes: int
  padded_classes: int
  embedding_size: int
  sub_centers: int
  scale: float
  learn_scale: bool
  loss: Loss
  angular: Margin
  cosine: Margin
  count_power: float
  held: str
  gradient_power: float
  concentration_temperature: float
  concentration_share: float
  logit_adjustment: float
  ignore_above: float
  sample_rate: float
  weigh_sample: bool
  chunk_classes: int
  keep_bytes: int
  skip_below: float
  product_dtype: str

  @property
  def product_precision(self) -> lax.Precision | None:
    """Precision of the big product."""
    # Accelerators would round float32 operands to 10 bits or fewer.
    exact = self.product_dtype == "float32"
    return lax.Precision.HIGHEST if exact else None

  @property
  def counts_images(self) -> bool:
    """Whether it must know the images of each class."""
    learned = self.angular.learned or self.cosine.learned
    of_margins = (
      self.count_power or self.gradient_power or self.held != "classes"
    )
    return bool(
      self.logit_adjustment or (of_margins and learned) or self.makes_anew
    )

  @property
  def makes_anew(self) -> bool:
    """Whether margins follow from what a pass over the data has seen."""
    return self.angular.made_anew or self.cosine.made_anew

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


def init(
  key: Key[Array, ""],
  head: Head,
  mesh: Mesh | None = None,
  class_sizes: Int[np.ndarray, " n"] | None = None,
) -> HeadParams:
  """Makes the parameters: weights N(0, 0.01), margins at their initial value.

  Args:
    key: for the weights; every row has its own below it, so that the values
      are the same on every mesh.
    head: what is fixed about the head.
    mesh: the (data, model) mesh; None: one device.
    class_sizes: images of each class, [N], at least 1; needed by margins that
      change with it and where `Head.counts_images`.

  Returns:
    `weights` float32 [C K, D], the K rows of a class in a row;
    `angular_margins` and `cosine_margins` float32 [C]; `class_sizes` likewise,
    if the head counts images; and float32 scalars: `log_scale` if the scale is
    learned, `bias` if the loss has one. Padded rows are zero, and the first
    axis is split by class.
  """
  mesh = mesh_for(key, mesh)

  def of_classes(values: float | np.ndarray) -> jax.Array:
    value_n = jnp.asarray(values, jnp.float32)
    value_n = jnp.broadcast_to(value_n, head.num_classes)
    value_c = jnp.pad(value_n, (0, head.padded_classes - head.num_classes))
    return place(value_c, mesh, CLASSES)

  params = {
    WEIGHTS: jax.shard_map(
      partial(_draw_weights, head=head),
      mesh=mesh,
      in_specs=REPLICATED,
      out_specs=CLASSES,
    )(key),
    ANGULAR: of_classes(head.angular.first(class_sizes, head.held)),
    COSINE: of_classes(head.cosine.first(class_sizes, head.held)),
  }
  if head.counts_images:
    # Without them shapes can be had, but no values.
    sizes = np.nan if class_sizes is None else class_sizes
    params[CLASS_SIZES] = of_classes(sizes)
  if head.learn_scale:
    params[LOG_SCALE] = jnp.log(jnp.float32(head.scale))
  if head.loss.one_by_one:
    params[BIAS] = jnp.float32(head.loss.first_bias(head.num_classes))
  return params


def _draw_weights(key: Key[Array, ""], head: Head) -> Float32[Array, "rk d"]:
  """The first weights of one shard, drawn some rows at a time.

  All at once would take three times their memory: random bits, the uniform
  numbers made of these, and the normal ones made of those.
  """
  rows = head.padded_classes * head.sub_centers // lax.axis_size("model")
  first = lax.axis_index("model") * rows
  size = min(rows, _ROWS_AT_ONCE)

  def draw(row: jax.Array) -> jax.Array:
    numbers = jax.random.normal(
      jax.random.fold_in(key, row), (head.embedding_size,)
    )
    real = row < head.num_classes * head.sub_centers
    return jnp.where(real, 0.01 * numbers, 0.0)

  def step(k: jax.Array, w_rd: jax.Array) -> jax.Array:
    start = jnp.minimum(k * size, rows - size)
    new = jax.vmap(draw)(first + start + jnp.arange(size))
    return lax.dynamic_update_slice_in_dim(w_rd, new, start, 0)

  w_rd = varying(jnp.zeros((rows, head.embedding_size)), "model")
  return lax.fori_loop(0, math.ceil(rows / size), step, w_rd)


def margins_and_scalars(params: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """The parameters of a head, or what stands for them, but its weights."""
  return {name: value for name, value in params.items() if name != WEIGHTS}


def logit_offsets(
  params: HeadParams, head: Head
) -> Float32[Array, " c"] | None:
  """What is added to the logits of classes, float32 [C]; None if nothing is.

  That of a class depends on no other, so that a shard may ask for its own part.
  """
  if not head.logit_adjustment:
    return None
  # Padded classes have no image.
  return head.logit_adjustment * jnp.log(jnp.maximum(params[CLASS_SIZES], 1.0))


def is_real(head: Head) -> Bool[Array, " c"]:
  """Which classes are not padding."""
  return jnp.arange(head.padded_classes) < head.num_classes


def real_mean(m_c: Float32[Array, " c"], head: Head) -> Float32[Array, ""]:
  """The mean over classes that are not padding."""
  return jnp.sum(jnp.where(is_real(head), m_c, 0.0)) / head.num_classes
