import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jamsface_jax.augmentation import geometry


def test_crop_equals_interpolation_at_points():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (20, 9, 7, 3)).astype(np.float32)
  sides = rng.uniform(0.3, 1, (20, 2)).astype(np.float32)
  corners = (rng.uniform(size=(20, 2)) * (1 - sides)).astype(np.float32)
  got = geometry.crop(
    jnp.asarray(images), jnp.asarray(corners), jnp.asarray(sides)
  )
  for image, (top, left), (height, width), result in zip(
    images, corners, sides, np.asarray(got), strict=True
  ):
    rows = (top + height * (np.arange(9) + 0.5) / 9) * 9 - 0.5
    columns = (left + width * (np.arange(7) + 0.5) / 7) * 7 - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    for channel in range(3):
      want = ndimage.map_coordinates(
        image[:, :, channel], grid, order=1, mode="nearest"
      )
      np.testing.assert_allclose(result[:, :, channel], want, atol=2e-5)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_boxes_are_random_and_in_bounds(strength):
  size, batch = 64, 500
  row, column = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
  ramps = np.stack([row, column, row], axis=-1)[None] / np.float32(size)
  images = jnp.asarray(np.repeat(ramps, batch, axis=0), jnp.float32)
  got = np.asarray(geometry.random_crop(jax.random.key(0), images, strength))
  # The middle pixels of a ramp say where the box was; its edge is clipped.
  slope = got[:, 40, 40] - got[:, 24, 24]
  height, width = slope[:, 0] * size / 16, slope[:, 1] * size / 16
  area, shape = height * width, width / height
  assert area.min() > 1 - 0.5 * strength - 0.04  # Sides above 1 are cut.
  assert area.max() <= 1 + 1e-4
  assert np.abs(np.log(shape)).max() <= strength * np.log(4 / 3) + 1e-4
  middle = got[:, 31:33, 31:33, 0].mean(axis=(1, 2)) + 0.5 / size
  assert np.all(middle >= height / 2 - 1e-4)
  assert np.all(middle <= 1 - height / 2 + 1e-4)
  if strength:
    assert area.std() > 0.1 * strength
    assert np.log(shape).std() > 0.1 * strength
    assert (middle - 0.5).std() > 0.02 * strength
  else:
    np.testing.assert_allclose(got, images, atol=1e-5)
