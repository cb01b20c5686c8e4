"""Eight fake CPU devices, strict broadcasting: set before JAX starts."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from jamsface_jax import sharding  # noqa: E402


@pytest.fixture(params=[8, 4, 1], ids=["1x8", "2x4", "8x1"])
def mesh(request):
  """A (data, model) grid of the eight devices."""
  return sharding.make_mesh(request.param)
