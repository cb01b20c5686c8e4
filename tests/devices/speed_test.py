"""The rate of matrix products that is measured."""

import time

import numpy as np

from jamsface_jax.devices.speed import measure_rate


def test_rate_is_that_of_numpy_to_an_order_of_magnitude():
  matrix = np.ones((1024, 1024), np.float32)
  matrix @ matrix
  begin = time.perf_counter()
  for _ in range(3):
    matrix @ matrix
  rate = 3 * 2 * 1024**3 / (time.perf_counter() - begin)
  assert rate / 20 < measure_rate("float32") < 20 * rate
