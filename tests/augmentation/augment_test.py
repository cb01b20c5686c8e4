import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jamsface_jax.augmentation import color, degradation, geometry, occlusion
from jamsface_jax.augmentation.augment import augment, normalize
from jamsface_jax.devices import sharding
from jamsface_jax.settings.sections import Augment

NOTHING = dataclasses.asdict(Augment()) | {"flip": False}
CHANGES = (
  "cover",
  "crop",
  "color",
  "grey",
  "blur",
  "resolution",
  "jpeg",
  "erase",
)


def images(batch=64, size=6):
  rng = np.random.default_rng(0)
  return rng.uniform(-0.4, 0.4, (batch, size, size, 3)).astype(np.float32)


def augmented(x, seed=0, **changes):
  change = jax.jit(partial(augment, **(NOTHING | changes)))
  return np.asarray(change(jax.random.key(seed), jnp.asarray(x)))


def changed(got, x):
  return np.any(np.abs(got - x) > 1e-5, axis=(1, 2, 3))


def test_normalize():
  got = normalize(np.array([0, 51, 255], np.uint8))
  np.testing.assert_allclose(got, [-1, -0.6, 1], atol=1e-7)


def test_nothing_asked_nothing_done():
  np.testing.assert_array_equal(augmented(images(), strength=1.0), images())


def test_only_the_flip_is_on_unasked():
  settings = dataclasses.asdict(Augment())
  assert settings.pop("flip") and settings.pop("strength")
  assert not any(settings.values())


def test_flip_mirrors_about_half():
  x = images(400)
  got = augmented(x, flip=True)
  mirrored = np.all(got == x[:, :, ::-1], axis=(1, 2, 3))
  same = np.all(got == x, axis=(1, 2, 3))
  assert np.all(mirrored ^ same)
  assert 160 < mirrored.sum() < 240  # Four standard deviations.


def test_shift_moves_and_repeats_the_edge():
  x = images()
  got = augmented(x, shift=2)
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
  scaled = augmented(x, contrast=0.3)
  factors = (scaled / x).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(
    scaled, x * factors[:, None, None, None], atol=1e-5
  )
  assert factors.min() >= 0.7 - 1e-5 and factors.max() <= 1.3 + 1e-5
  assert factors.std() > 0.1
  added = (augmented(x, brightness=0.3) - x).mean(axis=(1, 2, 3))
  assert np.abs(added).max() <= 0.3 + 1e-5 and added.std() > 0.1
  assert augmented(x, brightness=5.0).max() <= 1


@pytest.mark.slow
def test_each_change_has_its_own_probability():
  x = images(200, 64)
  wanted = dict(zip(CHANGES, np.linspace(0.1, 0.8, 8), strict=True))
  for name, probability in wanted.items():
    share = changed(augmented(x, strength=1.0, **{name: probability}), x).mean()
    bound = 4 * np.sqrt(probability * (1 - probability) / 200)
    # The weakest of some changes cannot be told from none.
    assert -bound - 0.04 < share - probability < bound, name


def test_changes_are_drawn_independently():
  x = images(400, 8)
  one = changed(augmented(x, grey=0.5), x)
  other = changed(augmented(x, erase=0.5), x)
  assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


@pytest.mark.parametrize("count", [1, 2, 8])
def test_random_changes_are_so_many_different_ones(monkeypatch, count):
  # In place of each change: write into a pixel of its own that it was there.
  def leaves_mark(number):
    def change(key, images, strength):
      return images.at[:, number // 4, number % 4, 0].add(strength)

    return change

  places = (
    (occlusion, "cover"),
    (geometry, "random_crop"),
    (color, "random_color"),
    (degradation, "random_blur"),
    (degradation, "random_resolution"),
    (degradation, "random_jpeg"),
    (occlusion, "erase"),
  )
  for number, (module, name) in enumerate(places):
    monkeypatch.setattr(module, name, leaves_mark(number))
  monkeypatch.setattr(color, "grey", lambda x: leaves_mark(7)(None, x, 0.25))
  x = np.zeros((400, 4, 4, 3), np.float32)
  got = augmented(x, random_changes=count, strength=0.25)
  marks = got[:, :2, :, 0].reshape(400, 8)
  assert set(np.unique(marks)) <= {0.0, 0.25}
  assert np.all((marks > 0).sum(axis=1) == count)
  # Each is drawn equally often; five standard deviations of a share of 400.
  share = count / 8
  bound = 5 * np.sqrt(share * (1 - share) / 400) + 1e-9
  np.testing.assert_allclose((marks > 0).mean(axis=0), share, atol=bound)


def test_strength_scales_the_changes():
  x = images(64, 16)
  for name in ("crop", "color"):
    weak, strong = (
      np.abs(augmented(x, strength=s, **{name: 1.0}) - x).mean()
      for s in (0.1, 1.0)
    )
    assert 2 * weak < strong, name


@pytest.mark.slow
def test_stays_in_range_and_finite():
  x = np.random.default_rng(1).uniform(-1, 1, (16, 12, 12, 3))
  for strength in (0.0, 1.0):
    got = augmented(x.astype(np.float32), random_changes=8, strength=strength)
    assert np.all(np.abs(got) <= 1 + 1e-5)


def test_does_not_depend_on_the_mesh(mesh):
  changes = {"flip": True, "shift": 1, "brightness": 0.1, "contrast": 0.1}
  changes |= {"random_changes": 2, "crop": 0.3, "jpeg": 0.3}
  x = jax.device_put(images(size=8), NamedSharding(mesh, sharding.BATCH))
  got = jax.jit(lambda x: augment(jax.random.key(3), x, **(NOTHING | changes)))(
    x
  )
  assert got.sharding.is_equivalent_to(x.sharding, 4)
  want = augmented(images(size=8), 3, **changes)
  # A wave that lies between two multiples may be rounded to either.
  close = np.isclose(got, want, atol=1e-5)
  assert close.mean() > 0.99
  assert np.abs(got - want).max() < 0.5
