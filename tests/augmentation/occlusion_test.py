import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jamsface_jax.augmentation import occlusion

BATCH, HEIGHT, WIDTH = 300, 40, 30


def hidden_by(change, strength):
  """Which pixels are new, and the pixels."""
  x = jnp.full((BATCH, HEIGHT, WIDTH, 3), 0.5)
  got = np.asarray(change(jax.random.key(0), x, strength))
  assert np.abs(got).max() <= 1
  return np.any(got != 0.5, axis=-1), got


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_erased_is_a_box_of_noise(strength):
  hidden, got = hidden_by(occlusion.erase, strength)
  areas, tops, lefts = [], [], []
  for one, image in zip(hidden, got, strict=True):
    rows, columns = np.any(one, axis=1), np.any(one, axis=0)
    np.testing.assert_array_equal(one, rows[:, None] & columns[None, :])
    for line in (rows, columns):  # In one piece.
      where = np.flatnonzero(line)
      assert len(where) == where[-1] - where[0] + 1
    areas.append(one.mean())
    tops.append(np.argmax(rows))
    lefts.append(np.argmax(columns))
    noise = image[one]
    if len(noise) > 100:
      assert 0.5 < noise.std() < 0.66  # 1 / sqrt(3) = 0.577.
  areas = np.array(areas)
  # A box is cut to whole pixels: half a pixel each way.
  assert 0.0 < areas.min() and areas.max() < 0.02 + 0.38 * strength + 0.03
  assert abs(areas.mean() - (0.02 + 0.19 * strength)) < 0.015
  assert np.std(tops) > 5 and np.std(lefts) > 3


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_cover_hides_mouth_but_not_eyes(strength):
  hidden, got = hidden_by(occlusion.cover, strength)
  mouth = hidden[:, round(0.82 * HEIGHT), 11:19]
  assert mouth.all()
  highest = 0.7 - 0.2 * strength
  assert not hidden[:, : int(highest * HEIGHT)].any()
  assert not hidden[:, :, 0].any() and not hidden[:, :, -1].any()
  tops = np.argmax(hidden[:, :, WIDTH // 2], axis=1) / HEIGHT
  assert tops.max() <= 0.7 + 1 / HEIGHT
  assert (tops.std() > 0.04) == (strength > 0)
  # The rim sinks to the sides, and the mask is the same on both.
  np.testing.assert_array_equal(hidden, hidden[:, :, ::-1])
  rims = np.argmax(hidden, axis=1)[:, 5:15]
  rims = np.where(hidden.any(axis=1)[:, 5:15], rims, HEIGHT)
  assert np.all(np.diff(rims, axis=1) <= 0)
  colors = []
  for one, image in zip(hidden, got, strict=True):
    assert np.all(image[one] == image[one][0])
    colors.append(image[one][0])
  assert np.std(colors) > 0.5
