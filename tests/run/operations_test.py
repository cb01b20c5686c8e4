"""Operations that are counted in a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jamsface_jax.run.operations import count_operations


def counted(function, *arrays):
  return count_operations(jax.make_jaxpr(function)(*arrays).jaxpr)


def by_xla(function, *arrays):
  """XLA's count for a CPU, which knows what it compiles for."""
  return jax.jit(function).lower(*arrays).cost_analysis()["flops"]


def convolve(groups, stride):
  return lambda x, w: lax.conv_general_dilated(
    x,
    w,
    (stride, stride),
    "VALID",  # XLA leaves out what a border has no numbers for.
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(groups, stride):
  arrays = np.ones((2, 9, 7, 6)), np.ones((3, 2, 6 // groups, 12))
  function = convolve(groups, stride)
  assert counted(function, *arrays) == by_xla(function, *arrays)


def test_products_of_batches():
  arrays = np.ones((2, 5, 3, 7)), np.ones((2, 3, 7, 4))

  def attend(q, k):
    return jnp.einsum("bqhd,bhdk->bhqk", q, k)

  assert counted(attend, *arrays) == by_xla(attend, *arrays) == 2 * 840


def test_what_runs_in_others():
  """Loops count as often as they run, of two branches the larger one."""
  square = np.ones((4, 4))

  def looped(x):
    return lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]

  def chosen(x):
    return lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

  def compiled(x):
    return jax.checkpoint(jax.jit(jnp.matmul))(x, x)

  assert counted(looped, square) == 5 * 128
  assert counted(chosen, square) == 2 * 128
  assert counted(compiled, square) == 128
