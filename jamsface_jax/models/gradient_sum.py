"""Gradients of parameters: summed over devices in float32.

A layer that computes in bfloat16 has the gradient of its parameters in
bfloat16. Where the batch is split over devices, each has a sum over its own
examples, and the compiler adds these before it widens the total: each addition
rounds to 8 bits, and parameters that are float32 get a gradient that is not.
Here each device widens what it has, and then they are added.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jamsface_jax.devices.sharding import BATCH

Result = TypeVar("Result")


def over(mesh: Mesh) -> AbstractContextManager[object]:
  """Within it `apply` sums over this mesh in float32."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def apply(
  function: Callable[..., Result],
  x: Float[Array, "b ..."],
  *parameters: Float[Array | np.ndarray, "..."],
) -> Result:
  """`function(x, *parameters)`, all in the dtype of `x`.

  Where this is called within `over(mesh)`, gradients of the parameters are
  summed over its devices in float32; elsewhere in the dtype of `x`.

  Args:
    function: pure; treats one example as the other, each by itself. Gives an
      array, or a tree of them.
    x: split as `BATCH`, or on one device.
    *parameters: alike on all devices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  narrow = [jnp.asarray(p, x.dtype) for p in parameters]
  if mesh.empty or mesh.size == 1 or x.dtype == jnp.float32:
    return function(x, *narrow)

  @jax.custom_vjp
  def applied(x: Array, *parameters: Array) -> Result:
    return function(x, *(p.astype(x.dtype) for p in parameters))

  def forward(
    x: Array, *parameters: Array
  ) -> tuple[Result, tuple[Array, tuple[Array, ...]]]:
    return applied(x, *parameters), (x, parameters)

  def backward(
    saved: tuple[Array, tuple[Array, ...]], gradient: Result
  ) -> tuple[Array, ...]:
    x, parameters = saved
    narrow = [p.astype(x.dtype) for p in parameters]
    of_x = jax.vjp(lambda x: function(x, *narrow), x)[1](gradient)[0]

    def of_parameters(
      x: Array, gradient: Result, *narrow: Array
    ) -> list[Array]:
      pull_back = jax.vjp(lambda *p: function(x, *p), *narrow)[1]
      wide = [part.astype(jnp.float32) for part in pull_back(gradient)]
      return [lax.psum(_row_major(part), mesh.axis_names) for part in wide]

    summed = jax.shard_map(
      of_parameters,
      mesh=mesh,
      in_specs=(BATCH, BATCH, *(P() for _ in narrow)),
      out_specs=P(),
      check_vma=False,
    )
    sums = summed(x, gradient, *narrow)
    return of_x, *(
      total.astype(p.dtype) for total, p in zip(sums, parameters, strict=True)
    )

  applied.defvjp(forward, backward)
  return applied(x, *map(jnp.asarray, parameters))


def _row_major(array: Array) -> Array:
  """The array as parameters lie, on GPUs."""

  def constrained(array: Array) -> Array:
    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))

  return lax.platform_dependent(
    array, cuda=constrained, default=lambda array: array
  )
