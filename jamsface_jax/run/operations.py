"""Operations of a network, counted in its program.

XLA's `cost_analysis` counts them too, but not where a backend lacks it, as that
of NVIDIA GPUs does.
"""

import math
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


def count_operations(program: Jaxpr) -> int:
  """Floating-point operations of a program's products and convolutions.

  A multiplication and an addition are two. Normalisations and activations are
  left out; what a loop does counts as often as it runs, of the branches of a
  choice the one that does most.

  Args:
    program: as `jax.make_jaxpr` gives it, without `while` of unknown length.
  """
  return sum(map(_of_equation, program.eqns))


def _of_equation(equation: JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2 * _made(equation) * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel = _shape(equation.invars[1])
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2 * _made(equation) * math.prod(kernel) // outputs
  inner = [count_operations(program) for program in jaxprs_in_params(params)]
  if name == "cond":
    return max(inner)
  return sum(inner) * params.get("length", 1)


def _made(equation: JaxprEqn) -> int:
  """Numbers that an equation makes."""
  return math.prod(_shape(equation.outvars[0]))


def _shape(variable: Any) -> tuple[int, ...]:
  array = variable.aval
  assert isinstance(array, ShapedArray)
  return array.shape
