"""What moves the parameters of a head: each kind at its rate, margins in place.

Learned margins follow SGD at a rate of their own, without decay and by default
without momentum, since the projection after the step would fight with both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, PyTree

from jamsface_jax.errors import InputError
from jamsface_jax.head.class_sampling import Sample
from jamsface_jax.head.forward import LossResult
from jamsface_jax.head.layout import mesh_for
from jamsface_jax.head.margin_rules import (
  constrain,
  even_gradient,
  margin_reward,
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
  Margin,
  margins_and_scalars,
)
from jamsface_jax.head.update import update_weights

Rate = float | optax.Schedule


def of_margins_and_scalars(
  head: Head,
  margin_rate: Rate,
  *,
  bias: optax.GradientTransformation,
  margin_momentum: float = 0.0,
) -> optax.GradientTransformation:
  """The optimizer of all that a head has but weights, by name.

  Args:
    head: says what is learned of it.
    margin_rate: learning rate of margins and scale, or a schedule of it.
    bias: optimizer of the bias, of losses that have one.
    margin_momentum: share of the step before in the next, of margins.
  """
  schedule = _schedule(margin_rate)
  learns = {
    ANGULAR: head.angular.learned,
    COSINE: head.cosine.learned,
    LOG_SCALE: head.learn_scale,
    BIAS: True,
    CLASS_SIZES: False,
  }

  def group(params: dict[str, PyTree]) -> dict[str, str]:
    return {name: name if learns[name] else "frozen" for name in params}

  by_name = optax.partition(
    {
      ANGULAR: _of_margin(head.angular, schedule, margin_momentum),
      COSINE: _of_margin(head.cosine, schedule, margin_momentum),
      LOG_SCALE: optax.sgd(schedule),
      BIAS: bias,
      "frozen": optax.set_to_zero(),
    },
    group,
  )
  return _evened(by_name, head) if head.gradient_power else by_name


def _evened(
  optimizer: optax.GradientTransformation, head: Head
) -> optax.GradientTransformation:
  """The same of gradients in which images count less, see `even_gradient`."""

  def update(
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
  ) -> tuple[optax.Updates, optax.OptState]:
    gradients: Any = updates
    values: Any = params
    for name in (ANGULAR, COSINE):
      if head.margin(name).learned:
        even = even_gradient(gradients[name], values[CLASS_SIZES], head)
        gradients = gradients | {name: even}
    return optimizer.update(gradients, state, params)

  return optax.GradientTransformation(optimizer.init, update)


def _schedule(rate: Rate) -> optax.Schedule:
  if isinstance(rate, int | float):
    return optax.constant_schedule(rate)
  return rate


def optimizer(
  main: optax.GradientTransformation, head: Head, *, margin_rate: Rate
) -> optax.GradientTransformation:
  """An optimizer of a whole tree of parameters, a head somewhere among them.

  What `init` of the head returned may lie at any place of the tree, or be all
  of it. Margins that are learned move at their own rate and end each step
  inside their bounds and on their mean, as the trainer's do; `main` moves
  everything else.

  Args:
    main: of the network and the class weights.
    head: what is fixed about the head.
    margin_rate: learning rate of margins and scale, or a schedule of it; the
      recipes have 0.02 of the main one.

  Returns:
    An Optax transformation, whose update needs the parameters.
  """
  of_head = of_margins_and_scalars(head, margin_rate, bias=main)

  def init(params: optax.Params) -> Any:
    rest, heads = _split(params)
    return main.init(rest), [of_head.init(one) for one in heads]

  def update(
    updates: optax.Updates, state: Any, params: optax.Params | None = None
  ) -> tuple[optax.Updates, Any]:
    if params is None:
      raise InputError(
        "head.optimizer must know the parameters that it keeps in place: call"
        " update(gradients, state, params)."
      )
    rest, heads = _split(params)
    rest_gradients, gradients = _split(updates)
    rest_updates, main_state = main.update(rest_gradients, state[0], rest)
    moves, states = [], []
    for gradient, old, one in zip(gradients, state[1], heads, strict=True):
      new, new_state = _step(of_head, gradient, old, one, head)
      moves.append({name: new[name] - one[name] for name in one})
      states.append(new_state)
    remaining = iter(moves)

    def merge(like: Any, node: Any) -> Any:
      return node | next(remaining) if _is_head(like) else node

    merged = jax.tree.map(merge, params, rest_updates, is_leaf=_is_head)
    return merged, (main_state, states)

  return optax.GradientTransformation(init, update)


def _is_head(node: Any) -> bool:
  return isinstance(node, dict) and WEIGHTS in node and ANGULAR in node


def _split(tree: PyTree) -> tuple[PyTree, list[dict[str, Any]]]:
  """The tree with the weights alone of each head; and what else these have."""
  taken = []

  def without(node: Any) -> Any:
    if not _is_head(node):
      return node
    taken.append(margins_and_scalars(node))
    return {WEIGHTS: node[WEIGHTS]}

  rest = jax.tree.map(without, tree, is_leaf=_is_head)
  if not taken:
    raise InputError(
      "head.optimizer finds no head among the parameters: put what head.init"
      " returned into them as it is."
    )
  return rest, taken


def _step(
  of_rest: optax.GradientTransformation,
  gradients: Any,
  state: Any,
  rest: HeadParams,
  head: Head,
) -> tuple[HeadParams, Any]:
  """The next margins and scalars, in their place, and the optimizer's state."""
  steps, state = of_rest.update(gradients, state, rest)
  moved: Any = optax.apply_updates(rest, steps)
  return constrain(moved, head), state


class FusedOptimizer(NamedTuple):
  """Moves a head with the weights' gradient never made as a whole.

  Attributes:
    init: from the parameters of the head to the optimizer's state.
    update: `update(result, state, params, labels, accept=True, sample=None,
      reward=1.0)` returns the next parameters and state. `result` is what
      `loss` returned, `accept` a bool scalar that leaves all as it is where it
      is False, `sample` what the loss was given, `reward` the factor on the
      reward of rule "lambda".
  """

  init: Callable[[HeadParams], dict[str, Any]]
  update: Callable[..., tuple[HeadParams, dict[str, Any]]]


def fused_optimizer(
  main: optax.GradientTransformation,
  head: Head,
  *,
  margin_rate: Rate,
  mesh: Mesh | None = None,
  clip_norm: float = 0.0,
) -> FusedOptimizer:
  """The same steps as `optimizer` makes of a head, in less memory.

  Args:
    main: of the class weights; acts on each element alone, see
      `update_weights`.
    head: what is fixed about the head.
    margin_rate: learning rate of margins and scale, or a schedule of it.
    mesh: that of the loss.
    clip_norm: largest norm of the weights' gradient; 0: any.
  """
  of_rest = of_margins_and_scalars(head, margin_rate, bias=main)

  def init(params: HeadParams) -> dict[str, Any]:
    return {
      "weights": main.init(params[WEIGHTS]),
      "rest": of_rest.init(margins_and_scalars(params)),
    }

  def update(
    result: LossResult,
    state: dict[str, Any],
    params: HeadParams,
    labels: Int[Array | np.ndarray, " b"],
    *,
    accept: bool | Bool[Array, ""] = True,
    sample: Sample | None = None,
    reward: float | Array = 1.0,
  ) -> tuple[HeadParams, dict[str, Any]]:
    accept = jnp.asarray(accept)
    old = margins_and_scalars(params)

    def rewarded(rest: dict[str, jax.Array]) -> jax.Array:
      return reward * margin_reward(rest, jnp.asarray(labels), head)

    gradients = jax.tree.map(
      jnp.subtract,
      result.margins_and_scalars_gradient,
      jax.grad(rewarded)(old),
    )
    rest, rest_state = jax.tree.map(
      lambda new, old: jnp.where(accept, new, old),
      _step(of_rest, gradients, state["rest"], old, head),
      (old, state["rest"]),
    )
    weights = update_weights(
      params,
      state["weights"],
      result.residuals,
      accept,
      head=head,
      mesh=mesh_for(result.cross_entropy, mesh),
      optimizer=main,
      clip_norm=clip_norm,
      sample=sample,
    )
    next_params = {WEIGHTS: weights.weights, **rest}
    return next_params, {"weights": weights.opt_state, "rest": rest_state}

  return FusedOptimizer(init, update)


def _of_margin(
  margin: Margin, rate: optax.Schedule, momentum: float
) -> optax.GradientTransformation:
  """The optimizer of one kind of margins; `constrain` keeps their bounds."""

  def rate_from_start(step: ArrayLike) -> Array:
    return jnp.where(jnp.less(step, margin.start), 0.0, rate(step))

  # Without momentum there is no state of it.
  sgd = optax.sgd(rate_from_start, momentum=momentum or None)
  if margin.bounds == "box":
    return sgd
  return _through_sigmoid(sgd, margin.lower, margin.upper)


def _through_sigmoid(
  optimizer: optax.GradientTransformation, lower: float, upper: float
) -> optax.GradientTransformation:
  """Moves r in the place of p = lower + (upper - lower) sigmoid(r).

  Parameters stay p: r is found from p for each step and forgotten after it.
  Only an optimizer whose state does not depend on parameters may be within.
  """
  width = upper - lower

  def free(bounded: Array) -> Array:
    # A parameter on a bound would never leave it.
    share = jnp.clip((bounded - lower) / width, 1e-4, 1 - 1e-4)
    return jnp.log(share) - jnp.log1p(-share)

  def bound(free: Array) -> Array:
    return lower + width * jax.nn.sigmoid(free)

  def slope(free: Array) -> Array:
    return width * jax.nn.sigmoid(free) * jax.nn.sigmoid(-free)

  def update(
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
  ) -> tuple[optax.Updates, optax.OptState]:
    r = jax.tree.map(free, params)
    gradients = jax.tree.map(lambda g, r: g * slope(r), updates, r)
    steps, state = optimizer.update(gradients, state, r)
    moves = jax.tree.map(lambda r, step: bound(r + step) - bound(r), r, steps)
    return moves, state

  return optax.GradientTransformation(optimizer.init, update)
