"""A run that has diverged: how it is known, and what helps."""

import contextlib
from collections.abc import Generator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jamsface_jax.errors import NotFiniteError
from jamsface_jax.run.state import TrainState
from jamsface_jax.storage.run_directory import RunDirectory

# Beyond it float32, with its 7 digits, takes no step of size 1 any more; sound
# weights are some nine orders of magnitude below.
LARGEST_WEIGHT = 1e8


@jax.jit
def largest_weight(state: TrainState) -> Float[Array, ""]:
  """The largest absolute value among all parameters; infinite if one is NaN.

  XLA:CPU's maximum passes over NaN, or does not, as it pleases.
  """
  largest = [
    jnp.max(
      jnp.where(jnp.isnan(leaf), jnp.inf, jnp.abs(leaf.astype(jnp.float32))),
      initial=0.0,
    )
    for leaf in jax.tree.leaves(state.params)
  ]
  return jnp.max(jnp.stack(largest))


def check_bounded(state: TrainState, step: int) -> None:
  """Refuses to go on with, or save, weights that grew without bound.

  Losses are of directions, and stay finite long after weights mean nothing. All
  processes must call it.

  Args:
    state: after a step.
    step: finished steps.

  Raises:
    NotFiniteError: it has diverged.
  """
  largest = float(largest_weight(state))
  if not largest <= LARGEST_WEIGHT:
    raise NotFiniteError(
      f"after step {step} the largest weight is {largest:.1e}: training has"
      " diverged.",
      step,
    )


@contextlib.contextmanager
def saying_what_helps(run: RunDirectory) -> Generator[None]:
  """A context that adds to a `NotFiniteError` what to do about it.

  It names the newest checkpoint before: whoever saves them closes them within
  this context, as one that is being written when the run ends counts too.

  Args:
    run: directory of the run.
  """
  try:
    yield
  except NotFiniteError as error:
    seen = str(error).removesuffix(".")
    raise NotFiniteError(
      f"{seen}; {_remedy(run, error.step)}.", error.step
    ) from error


def _remedy(run: RunDirectory, step: int) -> str:
  before = [one for one in run.checkpoints.steps() if one < step]
  place = run.checkpoints.place(before[-1]) if before else ""
  start = f"that of {place!r}" if before else "the start, as there is none"
  return (
    f"the newest checkpoint before it is {start}: the same command goes on from"
    f" there, with --config.data.skip_steps={step}:{step} past these examples,"
    " or with more --config.optimizer.reject_in_a_row; else begin again in"
    " another --workdir with a lower optimizer.learning_rate or more"
    " schedule.warmup"
  )
