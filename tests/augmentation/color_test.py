import colorsys

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jamsface_jax.augmentation import color


def images(batch):
  rng = np.random.default_rng(0)
  return rng.uniform(-0.5, 0.5, (batch, 5, 4, 3)).astype(np.float32)


def adjust(x, **changes):
  still = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
  return np.asarray(
    color.adjust_color(
      jnp.asarray(x),
      **{
        f"{name}_b": jnp.full(len(x), value, jnp.float32)
        for name, value in (still | changes).items()
      },
    )
  )


def test_nothing_to_adjust():
  np.testing.assert_allclose(adjust(images(3)), images(3), atol=1e-6)


def test_each_in_turn():
  x = images(3)
  light = cv2.cvtColor(x.reshape(-1, 4, 3), cv2.COLOR_RGB2GRAY)
  light = light.reshape(3, 5, 4, 1)
  np.testing.assert_allclose(adjust(x, brightness=0.2), x + 0.2, atol=1e-6)
  np.testing.assert_allclose(adjust(x, contrast=0.7), x * 0.7, atol=1e-6)
  np.testing.assert_allclose(
    adjust(x, saturation=1.3), light + 1.3 * (x - light), atol=1e-4
  )
  got = adjust(x, contrast=0.5, saturation=0.5, brightness=-0.1)
  want = 0.5 * (light + 0.5 * (x - light)) - 0.1
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_hue_turns_the_colours_and_keeps_the_light():
  x = images(3)

  def yiq(pixels):
    return np.array([colorsys.rgb_to_yiq(*p) for p in pixels.reshape(-1, 3)])

  before, after = yiq(x), yiq(adjust(x, hue=0.1))
  np.testing.assert_allclose(after[:, 0], before[:, 0], atol=0.01)
  chroma = [rows[:, 1] + 1j * rows[:, 2] for rows in (before, after)]
  # colorsys has the coefficients with two digits.
  np.testing.assert_allclose(
    chroma[1], chroma[0] * np.exp(0.2j * np.pi), atol=0.02
  )
  np.testing.assert_allclose(adjust(adjust(x, hue=0.3), hue=-0.3), x, atol=1e-5)


def test_each_image_has_its_own():
  x = images(3)
  got = color.adjust_color(
    jnp.asarray(x),
    brightness_b=jnp.array([0.0, 0.1, 0.0]),
    contrast_b=jnp.array([1.0, 1.0, 0.5]),
    saturation_b=jnp.ones(3),
    hue_b=jnp.zeros(3),
  )
  want = np.stack([x[0], x[1] + 0.1, x[2] * 0.5])
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_random_color_is_bounded_by_its_strength():
  x = np.full((500, 1, 1, 3), 0.1, np.float32)
  x[:, :, :, 0] = 0.5
  light = float(np.array([0.299, 0.587, 0.114]) @ x[0, 0, 0])
  for strength in (0.3, 1.0):
    got = color.random_color(jax.random.key(0), jnp.asarray(x), strength)
    after = np.asarray(got) @ np.array([0.299, 0.587, 0.114])
    # Light moves with brightness and contrast alone.
    most = 0.4 * strength * (1 + light)
    moved = np.abs(after - light).max()
    assert 0.8 * most < moved <= most + 1e-3


def test_grey_is_that_of_opencv():
  x = images(3)
  want = cv2.cvtColor(x.reshape(-1, 4, 3), cv2.COLOR_RGB2GRAY)
  got = np.asarray(color.grey(jnp.asarray(x)))
  for channel in range(3):
    np.testing.assert_allclose(
      got[..., channel], want.reshape(3, 5, 4), atol=1e-6
    )
