"""What the backward of a network keeps of its forward.

A compiler makes cheap elementwise results again instead of keeping them. What
it keeps is what products and convolutions take in and give out: their inputs
are needed for the gradients of weights, their outputs for normalisations and
activations. What lies in a `jax.checkpoint` is made again, but for its inputs.
CPUs compute bfloat16 in float32, and take convolutions in groups of few
channels apart (`models.convolution`): each channel of the groups is an array of
its own.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jamsface_jax.models.convolution import is_taken_apart

_PRODUCTS = {"conv_general_dilated", "dot_general"}
_MADE_AGAIN = {"checkpoint", "remat", "remat2"}


@dataclasses.dataclass
class _Walk:
  """What was found so far: bytes by array, each counted once.

  Attributes:
    kept: bytes by the number of an array.
    largest: bytes of what is made again, or taken apart, at once.
    numbers: gives arrays their numbers.
    on_cpu: whether it is for a CPU.
  """

  kept: dict[int, int]
  largest: int
  numbers: itertools.count
  on_cpu: bool


def count_activations(
  program: ClosedJaxpr, parameters: int, *, on_cpu: bool
) -> int:
  """Bytes that the backward of a program needs at once beside parameters.

  That is what it keeps, and of the largest array two gradients: the one that
  comes and the one that goes on.

  Args:
    program: the forward, as `jax.make_jaxpr` gives it.
    parameters: how many of its first inputs are no activations.
    on_cpu: whether it is for a CPU.
  """
  walk = _Walk({}, 0, itertools.count(), on_cpu)
  inputs = program.jaxpr.invars
  known = [None] * parameters
  known += [next(walk.numbers) for _ in inputs[parameters:]]
  _follow(program.jaxpr, known, walk)
  gradients = 2 * max(walk.kept.values(), default=0)
  return sum(walk.kept.values()) + walk.largest + gradients


def _follow(
  program: Jaxpr, inputs: Sequence[int | None], walk: _Walk
) -> list[int | None]:
  """Walks a program; returns the numbers of its results.

  Args:
    program: what is walked.
    inputs: numbers of its inputs; None for parameters and constants.
    walk: learns what is kept.
  """
  known: dict[Any, int | None] = dict(zip(program.invars, inputs, strict=True))

  def number(variable: Any) -> int | None:
    return None if isinstance(variable, Literal) else known.get(variable)

  for equation in program.eqns:
    given = [number(variable) for variable in equation.invars]
    inner = _inner(equation.params)
    if equation.primitive.name == "cond":
      # Of forms for several platforms, which give the same, the last is for
      # those without one of their own.
      inner, given = equation.params["branches"][-1].jaxpr, given[1:]
    again = equation.primitive.name in _MADE_AGAIN
    if inner is None or len(inner.invars) != len(given):
      made = [
        next(walk.numbers) if any(n is not None for n in given) else None
        for _ in equation.outvars
      ]
    elif again:
      apart = _Walk({}, 0, walk.numbers, walk.on_cpu)
      made = _follow(inner, given, apart)
      inside = sum(apart.kept.values()) + apart.largest
      walk.largest = max(walk.largest, inside)
    else:
      made = _follow(inner, given, walk)
    known.update(zip(equation.outvars, made, strict=True))
    if again or equation.primitive.name in _PRODUCTS:
      variables = [*equation.invars, *([] if again else equation.outvars)]
      for variable in variables:
        place = number(variable)
        if place is not None:
          array = variable.aval
          assert isinstance(array, ShapedArray)
          walk.kept[place] = array.size * _bytes_of_each(array, walk)
    groups = equation.params.get("feature_group_count", 1)
    if walk.on_cpu and groups > 1:
      image, kernel = (variable.aval for variable in equation.invars)
      assert isinstance(image, ShapedArray) and isinstance(kernel, ShapedArray)
      channels = kernel.shape[2]
      if is_taken_apart(groups, channels):
        copies = channels * image.size * _bytes_of_each(image, walk)
        walk.largest = max(walk.largest, copies)
  return [number(variable) for variable in program.outvars]


def _bytes_of_each(array: ShapedArray, walk: _Walk) -> int:
  """Bytes of each of its numbers; CPUs have none of bfloat16."""
  return max(array.dtype.itemsize, 4) if walk.on_cpu else array.dtype.itemsize


def _inner(parameters: dict[str, Any]) -> Jaxpr | None:
  """The program that an equation calls once, if it calls one."""
  for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    found = parameters.get(name)
    if isinstance(found, ClosedJaxpr):
      return found.jaxpr
    if isinstance(found, Jaxpr):
      return found
  return None
