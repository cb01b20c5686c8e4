"""How fast a device multiplies matrices."""

import time

import jax
import jax.numpy as jnp
from jax import lax

# Sides of the matrices: large enough that starting a product does not count.
_SIDE_ON_CPU, _SIDE = 1024, 4096
_PRODUCTS = 10  # At once, but for CPUs, where one takes long enough.


def measure_rate(dtype: str, precision: lax.Precision | None = None) -> float:
  """Measures the rate of large matrix products on one device.

  Args:
    dtype: "float32" or "bfloat16", of what is multiplied; sums are float32.
    precision: that of `jax.lax.dot_general`; None: the device's own, which
      rounds float32 on accelerators.

  Returns:
    Floating-point operations a second.
  """
  on_cpu = jax.default_backend() == "cpu"
  side, count = (_SIDE_ON_CPU, 1) if on_cpu else (_SIDE, _PRODUCTS)
  # Not of ones or zeros, which take less power and so less time on a GPU.
  matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)

  @jax.jit
  def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(
      left, right, precision=precision, preferred_element_type=jnp.float32
    )

  jax.block_until_ready(multiply(matrix, matrix))
  begin = time.perf_counter()
  jax.block_until_ready([multiply(matrix, matrix) for _ in range(count)])
  return 2 * count * side**3 / (time.perf_counter() - begin)
