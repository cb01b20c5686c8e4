import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jamsface_jax import sharding
from jamsface_jax.data import augmentation

NOTHING = {"flip": False, "shift": 0, "brightness": 0.0, "contrast": 0.0}


def images(batch=64, size=6):
  rng = np.random.default_rng(0)
  return rng.uniform(-0.4, 0.4, (batch, size, size, 3)).astype(np.float32)


def augment(x, seed=0, **changes):
  return np.asarray(
    augmentation.augment(jax.random.key(seed), x, **(NOTHING | changes))
  )


def test_normalize():
  got = augmentation.normalize(np.array([0, 51, 255], np.uint8))
  np.testing.assert_allclose(got, [-1, -0.6, 1], atol=1e-7)


def test_nothing_asked_nothing_done():
  np.testing.assert_array_equal(augment(images()), images())


def test_flip_mirrors_about_half():
  x = images(400)
  got = augment(x, flip=True)
  mirrored = np.all(got == x[:, :, ::-1], axis=(1, 2, 3))
  same = np.all(got == x, axis=(1, 2, 3))
  assert np.all(mirrored ^ same)
  assert 160 < mirrored.sum() < 240  # Four standard deviations.


def test_shift_moves_and_repeats_the_edge():
  x = images()
  got = augment(x, shift=2)
  seen = set()
  for image, result in zip(x, got, strict=True):
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    found = [
      (i, j)
      for i in range(5)
      for j in range(5)
      if np.array_equal(padded[i : i + 6, j : j + 6], result)
    ]
    assert len(found) == 1
    seen.update(found)
  assert len(seen) > 15


def test_contrast_and_brightness_stay_in_bounds():
  x = images()
  scaled = augment(x, contrast=0.3)
  factors = (scaled / x).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(
    scaled, x * factors[:, None, None, None], atol=1e-5
  )
  assert factors.min() >= 0.7 - 1e-5 and factors.max() <= 1.3 + 1e-5
  assert factors.std() > 0.1
  added = (augment(x, brightness=0.3) - x).mean(axis=(1, 2, 3))
  assert np.abs(added).max() <= 0.3 + 1e-5 and added.std() > 0.1
  assert augment(x, brightness=5.0).max() <= 1


def test_does_not_depend_on_the_mesh(mesh):
  changes = {"flip": True, "shift": 1, "brightness": 0.1, "contrast": 0.1}
  x = jax.device_put(images(), NamedSharding(mesh, sharding.BATCH))
  got = jax.jit(lambda x: augmentation.augment(jax.random.key(3), x, **changes))
  np.testing.assert_allclose(
    got(x), augment(jnp.asarray(images()), 3, **changes), atol=1e-6
  )
