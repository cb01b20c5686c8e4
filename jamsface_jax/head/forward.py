"""The margin softmax over classes split across devices, and its first walk.

    CE_i = -log( exp(s phi_i) / (exp(s phi_i) + sum_{j != y} exp(s cos t_ij)) )

where phi_i, and what little else differs between the losses of the field, is
for `losses` to say.

No [B, C] array is needed. `loss` walks the classes once, in chunks, and has
when the walk ends the loss and the gradient of the embeddings, see
`online_softmax`. The gradient of the weights needs the normaliser of every
example and so a second walk, see `update`. That makes four matrix products of
2 B C D operations, two in each walk: the logits twice, but for those that
`head.keep_bytes` has room for.

Shapes: B examples of the global batch, D embedding size, C padded classes, N
real classes, K sub-centers of a class. Inside of `shard_map`: b examples of a
device, `_rk` the weight rows that it walks, `_nk` those of a chunk.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Key, Shaped

from jamsface_jax.devices.sharding import (
  BATCH,
  CLASSES,
  REPLICATED,
  check_divides,
)
from jamsface_jax.errors import InputError
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.layout import (
  COSINES,
  EXAMPLES,
  mesh_for,
  place,
  spec_of,
  varying,
)
from jamsface_jax.head.logits import (
  MASKED,
  Examples,
  one_hot_of_largest,
  unit,
  unit_and_length,
)
from jamsface_jax.head.losses import LossInputs, LossState
from jamsface_jax.head.online_softmax import (
  Others,
  Sums,
  sum_others,
  sum_over_shards,
)
from jamsface_jax.head.parameters import (
  ANGULAR,
  BIAS,
  CLASS_SIZES,
  COSINE,
  LOG_SCALE,
  WEIGHTS,
  Head,
  HeadParams,
  check_mesh,
  logit_offsets,
  margins_and_scalars,
)


class RestGradients(NamedTuple):
  """What the second walk asks of the normaliser, split over `data`.

  Attributes:
    rest: log-sum-exp over the other classes, float32 [B]; the bias if the loss
      counts them one by one.
    rest_gradient: derivative of the loss in it (in their sum), float32 [B].
    true_gradient: derivative of the loss in the true cosine, float32 [B].
  """

  rest: jax.Array
  rest_gradient: jax.Array
  true_gradient: jax.Array


class Residuals(NamedTuple):
  """What the gradient of the weights needs of the first walk.

  Attributes:
    examples: as the first walk had them.
    gradients: derivatives of the loss by example.
    loss_state: what the loss remembered when it was computed.
    kept: cosines of the first classes of each shard with all examples, so that
      the second walk need not multiply them again; None if none are kept.
    inverse_length: 1 / |w| of the rows that each shard walked, as `sum_others`
      returns it.
  """

  examples: Examples
  gradients: RestGradients
  loss_state: LossState
  kept: jax.Array | None
  inverse_length: jax.Array | None


# How the parts of `Residuals` lie on the mesh, for `shard_map`.
RESIDUAL_SPECS = {
  "examples": EXAMPLES,
  "gradients": EXAMPLES,
  "loss_state": REPLICATED,
  "kept": COSINES,
  "inverse_length": CLASSES,
}


class LossResult(NamedTuple):
  """The loss of a batch, and all gradients of its mean but one.

  Attributes:
    cross_entropy: that of every example with what the loss adds to it, float32
      [B] (nats), split over `data`.
    correct: whether the true class has the largest cosine of the classes
      walked, margins apart; bool [B], split over `data`.
    true_cosine: to the true class, float32 [B], split over `data`.
    hardest_cosine: the largest to another of the classes walked, likewise; -1
      where no other counts.
    embedding_gradient: as the embeddings, sharding BATCH.
    margins_and_scalars_gradient: gradient of each parameter but the weights,
      by name.
    loss_state: what the loss remembers after this batch, float32 scalars.
    residuals: for `weight_gradient` or `update_weights`.
    skipped: share of blocks whose gradient product was skipped, scalar.
  """

  cross_entropy: jax.Array
  correct: jax.Array
  true_cosine: jax.Array
  hardest_cosine: jax.Array
  embedding_gradient: jax.Array
  margins_and_scalars_gradient: dict[str, jax.Array]
  loss_state: LossState
  residuals: Residuals
  skipped: jax.Array


def loss(
  params: HeadParams,
  embeddings: Float[Array | np.ndarray, "b d"],
  labels: Int[Array | np.ndarray, " b"],
  *,
  head: Head,
  mesh: Mesh | None = None,
  loss_state: LossState | None = None,
  key: Key[Array, ""] | None = None,
  sample: Sample | None = None,
) -> LossResult:
  """Margin softmax cross-entropy, and the gradients of its mean.

  Args:
    params: as `head.init` returns, sharded by class.
    embeddings: float [B, D], any length, sharding BATCH.
    labels: int [B] in [0, N), sharding BATCH; one outside is an `InputError`
      where labels have values, and makes its loss NaN inside of `jit`.
    head: what is fixed about the head.
    mesh: the (data, model) mesh, whose devices divide B; None: one device.
    loss_state: of losses that remember: `making.first_state`, or an earlier
      result's.
    key: for the noise of losses that draw.
    sample: the classes to walk, all positives among them; None: all.

  Raises:
    InputError: shapes, labels, mesh, state or key do not fit the head.
  """
  mesh = mesh_for(embeddings, mesh)
  check_inputs(params, embeddings, labels, head, mesh, loss_state, key)
  (unit_bd, length_b), pull_back_unit = jax.vjp(
    lambda x_bd: unit_and_length(place(x_bd.astype("float32"), mesh, BATCH)),
    embeddings,
  )
  noise_b = jnp.zeros(len(labels))
  if head.loss.draws and key is not None:
    noise_b = jax.random.normal(key, (len(labels),))
  batch = _Batch(unit_bd, jnp.asarray(labels), length_b, noise_b)
  batch = place(batch, mesh, EXAMPLES)
  specs = {name: spec_of(value) for name, value in params.items()}
  of_examples, of_embeddings, of_params, of_batch, residuals = jax.shard_map(
    partial(_local_loss, head=head),
    mesh=mesh,
    in_specs=(specs, CLASSES, EXAMPLES, REPLICATED),
    out_specs=(
      EXAMPLES,
      (BATCH, EXAMPLES),
      margins_and_scalars(specs),
      REPLICATED,
      RESIDUAL_SPECS,
    ),
  )(params, sample, batch, loss_state or {})
  cross_entropy, correct, true_cosine, hardest_cosine = of_examples
  loss_state, skipped = of_batch
  of_unit, of_length = of_embeddings
  of_length = place(of_length, mesh, BATCH)
  return LossResult(
    cross_entropy=cross_entropy,
    correct=correct,
    true_cosine=true_cosine,
    hardest_cosine=hardest_cosine,
    embedding_gradient=pull_back_unit((of_unit, of_length))[0],
    margins_and_scalars_gradient=of_params,
    loss_state=loss_state,
    residuals=Residuals(**residuals),
    skipped=skipped,
  )


def check_inputs(
  params: HeadParams,
  embeddings: Float[Array | np.ndarray, "b d"],
  labels: Shaped[Array | np.ndarray, " n"],
  head: Head,
  mesh: Mesh,
  loss_state: LossState | None,
  key: Key[Array, ""] | None,
) -> None:
  """Refuses what no loss can be made of; see `loss` for the arguments.

  Labels are looked at where they have values: outside of `jit`.

  Raises:
    InputError: in one sentence.
  """
  size = head.embedding_size
  if embeddings.ndim != 2 or embeddings.shape[1] != size:
    raise InputError(
      f"embeddings have the shape {embeddings.shape}, but the head was made for"
      f" {size} numbers each: give [batch, {size}], or make the head for them."
    )
  if labels.shape != embeddings.shape[:1]:
    raise InputError(
      f"labels have the shape {labels.shape}, but there are {len(embeddings)}"
      f" embeddings: give one label each, [{len(embeddings)}]."
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise InputError(
      f"labels are {labels.dtype}, but classes are whole numbers: give int32."
    )
  rows = head.padded_classes * head.sub_centers
  if params[WEIGHTS].shape != (rows, size):
    raise InputError(
      f"the class weights have the shape {params[WEIGHTS].shape}, but the head"
      f" has {rows} rows of {size} numbers: take the parameters that head.init"
      " made for it."
    )
  check_divides("the batch", len(labels), mesh)
  check_mesh(head, mesh)
  if head.loss.remembers and not loss_state:
    raise InputError(
      f"the loss {type(head.loss).__name__} remembers numbers from step to"
      " step: give loss_state, head.first_state(head) at first."
    )
  if key is None and (head.loss.draws or head.sample_rate < 1):
    raise InputError(
      "this head draws random numbers in each step: give key, another one each"
      " step."
    )
  if not isinstance(labels, Tracer) and getattr(
    labels, "is_fully_addressable", True
  ):
    values = np.asarray(labels)
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high >= head.num_classes:
      raise InputError(
        f"labels go from {low} to {high}, but the head has"
        f" {head.num_classes} classes: give labels from 0 to"
        f" {head.num_classes - 1}."
      )


class _Batch(NamedTuple):
  """What the head is given of each example, split over `data`.

  Attributes:
    unit_bd: embeddings scaled to length 1.
    label_b: their classes.
    length_b: the lengths that embeddings had.
    noise_b: standard normal numbers, or zeros.
  """

  unit_bd: jax.Array
  label_b: jax.Array
  length_b: jax.Array
  noise_b: jax.Array


# What a device returns, in groups that lie alike on the mesh: of examples;
# gradients of unit embeddings and of lengths; those of margins and scalars; of
# the batch; residuals by name.
_Groups = tuple[
  tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  tuple[jax.Array, jax.Array],
  dict[str, jax.Array],
  tuple[LossState, jax.Array],
  dict[str, Any],
]


def _local_loss(
  params: HeadParams,
  sample: Sample | None,
  batch: _Batch,
  loss_state: LossState,
  *,
  head: Head,
) -> _Groups:
  """One device's part: examples of its `data` row, classes of its shard."""
  # What the loss sees, and what multiplies its cosines.
  true = _find_true_classes(params, batch, head)
  inputs, whole_batch = _observe(true, batch, loss_state, head)
  scale, bias = _scale_and_bias(params, head)
  examples = _scaled_examples(batch, inputs, scale, head)

  # The walk, and the loss that it ends with.
  sums = sum_others(params, sample, examples, inputs.state, bias, head)
  others = sum_over_shards(sums, bias, head)
  gradient, loss_b = _differentiate(inputs, true, others, scale, bias, head)
  # A label that is no class would have a plausible loss otherwise.
  is_class_b = (batch.label_b >= 0) & (batch.label_b < head.num_classes)
  loss_b = jnp.where(is_class_b, loss_b, jnp.nan)
  correct_b = examples.scale * inputs.cosine > others.best_b
  hardest_b = jnp.where(
    others.best_b > MASKED, others.best_b / examples.scale, -1.0
  )

  # From derivatives by example to gradients.
  unit_gradient_bd = _unit_gradient(
    gradient, sums, others, examples, true, head
  )
  of_params = _margins_and_scalars_gradient(params, gradient, true, scale)
  new_state = inputs.state
  if whole_batch is not None:
    new_state = head.loss.update_after(
      whole_batch._replace(state=inputs.state), _of_whole_batch(others.rest_b)
    )
  unit_gradient_bd = lax.psum_scatter(unit_gradient_bd, "model", tiled=True)
  residuals = Residuals(
    examples=examples,
    gradients=RestGradients(
      others.counted_from_b, gradient.rest_b, gradient.cosine_b
    ),
    loss_state=inputs.state,
    kept=sums.kept,
    inverse_length=sums.inverse_length_r,
  )
  return (
    (loss_b, correct_b, inputs.cosine, hardest_b),
    (unit_gradient_bd, gradient.length_b),
    of_params,
    (new_state, lax.pmean(sums.skipped, ("data", "model"))),
    residuals._asdict(),
  )


class _TrueClasses(NamedTuple):
  """The true class of each example.

  Attributes:
    row_b: which class of this shard it is; 0 if it is of another.
    is_mine_b: whether it is of this shard.
    weight_bd: its nearest sub-center as the loss takes it, if it is mine.
    cosine_b: cosine to it, in float32 from its own weights.
    angular_b: its margin a.
    cosine_margin_b: its margin c.
    offset_b: what is added to its logit; 0.0 if nothing is.
  """

  row_b: jax.Array
  is_mine_b: jax.Array
  weight_bd: jax.Array
  cosine_b: jax.Array
  angular_b: jax.Array
  cosine_margin_b: jax.Array
  offset_b: jax.Array | float


def _find_true_classes(
  params: HeadParams, batch: _Batch, head: Head
) -> _TrueClasses:
  """Takes the true classes from the shard that has them to all."""
  classes = len(params[ANGULAR])
  row_b = batch.label_b - lax.axis_index("model") * classes
  is_mine_b = (row_b >= 0) & (row_b < classes)
  row_b = jnp.where(is_mine_b, row_b, 0)
  weight_bkd = params[WEIGHTS].reshape(classes, head.sub_centers, -1)[row_b]
  if head.loss.unit_weights:
    weight_bkd = unit(weight_bkd)
  cosine_bk = jnp.sum(batch.unit_bd[:, None] * weight_bkd, axis=2)
  nearest_bk = one_hot_of_largest(cosine_bk, axis=1)
  weight_bd = jnp.sum(weight_bkd * nearest_bk[..., None], axis=1)
  offset_c = logit_offsets(params, head)
  terms = [params[ANGULAR][row_b], params[COSINE][row_b]]
  terms += [] if offset_c is None else [offset_c[row_b]]
  terms = jnp.stack([cosine_bk.max(axis=1), *terms])
  cosine_b, angular_b, cosine_margin_b, *offset_b = lax.psum(
    jnp.where(is_mine_b, terms, 0), "model"
  )
  return _TrueClasses(
    row_b=row_b,
    is_mine_b=is_mine_b,
    weight_bd=weight_bd,
    cosine_b=cosine_b,
    angular_b=angular_b,
    cosine_margin_b=cosine_margin_b,
    offset_b=offset_b[0] if offset_b else 0.0,
  )


def _observe(
  true: _TrueClasses, batch: _Batch, loss_state: LossState, head: Head
) -> tuple[LossInputs, LossInputs | None]:
  """Shows the loss its examples.

  Returns:
    Its inputs for this device's examples, with what it remembers now; and those
    of the whole batch with what it remembered, None if it remembers nothing.
  """
  inputs = LossInputs(
    cosine=true.cosine_b,
    angular=true.angular_b,
    cosine_margin=true.cosine_margin_b,
    length=batch.length_b,
    noise=batch.noise_b,
    state=loss_state,
  )
  if not head.loss.remembers:
    return inputs, None
  whole_batch = LossInputs(*map(_of_whole_batch, inputs[:-1]), loss_state)
  loss_state = head.loss.update_before(whole_batch)
  return inputs._replace(state=loss_state), whole_batch


def _scale_and_bias(
  params: HeadParams, head: Head
) -> tuple[jax.Array, jax.Array]:
  """The head's scale, and its bias (0 if the loss has none), scalars."""
  scale = jnp.float32(head.scale)
  if LOG_SCALE in params:
    scale = jnp.exp(params[LOG_SCALE])
  return scale, params.get(BIAS, jnp.float32(0.0))


def _scaled_examples(
  batch: _Batch, inputs: LossInputs, scale: jax.Array, head: Head
) -> Examples:
  """The examples, with what the loss makes of each before the walk."""
  threshold_b = None
  scale_b = head.loss.scale(inputs, scale)
  if head.loss.reweights_others:
    threshold_b = head.loss.threshold(inputs)
  return Examples(batch.unit_bd, batch.label_b, scale_b, threshold_b)


def _of_whole_batch(values_b: Float32[Array, " b"]) -> Float32[Array, " batch"]:
  """The values of the whole batch, on every device."""
  size = len(values_b) * lax.axis_size("data")
  start = lax.axis_index("data") * len(values_b)
  mine = lax.dynamic_update_slice_in_dim(
    varying(jnp.zeros(size), "data"), values_b, start, 0
  )
  return lax.psum(mine, "data")


class _Variables(NamedTuple):
  """What the loss of the examples is differentiated in.

  Attributes:
    cosine_b: cosine to the true class.
    rest_b: what the other classes come to.
    angular_b: margin a of the true class.
    cosine_margin_b: its margin c.
    length_b: length of the embedding.
    scale: scale of the head, a scalar.
    bias: threshold of losses that count other classes one by one, a scalar.
  """

  cosine_b: jax.Array
  rest_b: jax.Array
  angular_b: jax.Array
  cosine_margin_b: jax.Array
  length_b: jax.Array
  scale: jax.Array
  bias: jax.Array


def _differentiate(
  inputs: LossInputs,
  true: _TrueClasses,
  others: Others,
  scale: jax.Array,
  bias: jax.Array,
  head: Head,
) -> tuple[_Variables, jax.Array]:
  """Gradients of the mean loss by what it depends on, and the loss [B]."""
  variables = _Variables(
    cosine_b=inputs.cosine,
    rest_b=others.rest_b,
    angular_b=inputs.angular,
    cosine_margin_b=inputs.cosine_margin,
    length_b=inputs.length,
    scale=scale,
    bias=bias,
  )
  return jax.grad(_mean_loss, has_aux=True)(
    variables, inputs, true.offset_b, others, head
  )


def _mean_loss(
  variables: _Variables,
  inputs: LossInputs,
  offset_b: jax.Array | float,
  others: Others,
  head: Head,
) -> tuple[jax.Array, jax.Array]:
  """This device's part of the mean loss, and the loss of each example."""
  cosine_b, rest_b, angular_b, cosine_margin_b, length_b, scale, bias = (
    variables
  )
  inputs = inputs._replace(
    cosine=cosine_b,
    angular=angular_b,
    cosine_margin=cosine_margin_b,
    length=length_b,
  )
  scale_b = head.loss.scale(inputs, scale)
  phi_b = head.loss.similarity(inputs)
  # The sum over other classes is made already; what it owes to the scale and
  # to the bias is added here, with value 0.
  if others.cosine_sum_b is not None:
    gradient_b = others.cosine_sum_b
    if not head.loss.one_by_one:
      gradient_b = gradient_b / others.sum_b
    rest_b += gradient_b * (scale_b - lax.stop_gradient(scale_b))
  if others.share_sum_b is not None:  # Classes count one by one.
    rest_b -= others.share_sum_b * (bias - lax.stop_gradient(bias))
    loss_b = jax.nn.softplus(bias - scale_b * phi_b)
    loss_b += head.loss.others_weight() * rest_b
  else:
    loss_b = jax.nn.softplus(rest_b - scale_b * phi_b - offset_b)
  loss_b += head.loss.penalty(inputs)
  return loss_b.sum() / (len(cosine_b) * lax.axis_size("data")), loss_b


def _unit_gradient(
  gradient: _Variables,
  sums: Sums,
  others: Others,
  examples: Examples,
  true: _TrueClasses,
  head: Head,
) -> Float32[Array, "b d"]:
  """What this shard's classes add to the gradient of the unit embeddings."""
  weight_b = examples.scale * gradient.rest_b
  if not head.loss.one_by_one:
    weight_b *= jnp.exp(sums.top_b - others.rest_b)
  of_true_b = jnp.where(true.is_mine_b, gradient.cosine_b, 0.0)
  gradient_bd = weight_b[:, None] * sums.weighted_bd
  return gradient_bd + of_true_b[:, None] * true.weight_bd


def _margins_and_scalars_gradient(
  params: HeadParams,
  gradient: _Variables,
  true: _TrueClasses,
  scale: jax.Array,
) -> dict[str, jax.Array]:
  """The gradient of each parameter of the head but its weights, by name."""
  classes = len(params[ANGULAR])
  margins_b2 = jnp.stack([gradient.angular_b, gradient.cosine_margin_b], axis=1)
  margins_c2 = jnp.zeros((classes, 2)).at[true.row_b]
  margins_c2 = lax.psum(
    margins_c2.add(jnp.where(true.is_mine_b[:, None], margins_b2, 0.0)), "data"
  )
  gradients = {ANGULAR: margins_c2[:, 0], COSINE: margins_c2[:, 1]}
  # The same on every device: their gradients come summed over `data`.
  if LOG_SCALE in params:
    gradients[LOG_SCALE] = scale * gradient.scale
  if BIAS in params:
    gradients[BIAS] = gradient.bias
  if CLASS_SIZES in params:
    gradients[CLASS_SIZES] = jnp.zeros(classes)
  return gradients
