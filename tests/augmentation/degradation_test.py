import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, ndimage

from jamsface_jax.augmentation import degradation


def smooth(batch, height, width):
  """Images with large and small detail, in [-1, 1]."""
  rng = np.random.default_rng(0)
  return (
    np.stack(
      [
        cv2.resize(rng.uniform(-1, 1, (6, 6, 3)), (width, height))
        + rng.uniform(-0.1, 0.1, (height, width, 3))
        for _ in range(batch)
      ]
    )
    .clip(-1, 1)
    .astype(np.float32)
  )


def test_blur_is_gaussian():
  x = smooth(4, 20, 15)
  sigmas = np.array([0.0, 0.7, 1.5, 3.0], np.float32)
  got = np.asarray(degradation.blur(jnp.asarray(x), jnp.asarray(sigmas)))
  np.testing.assert_allclose(got[0], x[0], atol=2e-5)

  def gauss(image, sigma):
    return ndimage.gaussian_filter(
      image, (sigma, sigma, 0), mode="constant", truncate=8
    )

  for image, sigma, result in zip(x[1:], sigmas[1:], got[1:], strict=True):
    image = image.astype(np.float64)
    want = gauss(image, sigma) / gauss(np.ones_like(image), sigma)
    np.testing.assert_allclose(result, want, atol=1e-4)


@pytest.mark.parametrize("height", [3, 6, 11, 17, 24])
def test_resolution_is_lost_as_opencv_does(height):
  x = smooth(1, 24, 48)
  got = degradation.lower_resolution(
    jnp.asarray(x), jnp.array([height], jnp.float32)
  )
  few = cv2.resize(x[0], (2 * height, height), interpolation=cv2.INTER_AREA)
  want = cv2.resize(few, (48, 24), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_allclose(got[0], want, atol=1e-4)


def test_resolution_of_each_image_is_its_own():
  x = jnp.asarray(smooth(3, 16, 16))
  sizes = jnp.array([16.0, 5.0, 9.0])
  got = degradation.lower_resolution(x, sizes)
  np.testing.assert_allclose(got[0], x[0], atol=1e-5)
  for k in range(3):
    alone = degradation.lower_resolution(x[k : k + 1], sizes[k : k + 1])
    np.testing.assert_allclose(got[k], alone[0], atol=1e-5)


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
@pytest.mark.parametrize("size", [(40, 48), (37, 45)])
def test_compression_is_that_of_libjpeg(size, quality):
  levels = np.round(smooth(1, *size)[0] * 127.5 + 127.5).astype(np.uint8)
  x = levels[None].astype(np.float32) / 127.5 - 1
  got = degradation.compress(jnp.asarray(x), jnp.array([quality], jnp.float32))
  got = np.asarray(got[0]) * 127.5 + 127.5
  _, data = cv2.imencode(
    ".jpg",
    levels[:, :, ::-1],
    [cv2.IMWRITE_JPEG_QUALITY, quality]
    + [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
  )
  want = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB).astype(np.float32)
  lost = np.abs(want - levels).mean()
  # libjpeg's integer transforms round elsewhere; a wave that lies near the
  # middle between two multiples may fall to the other side.
  assert np.abs(got - want).mean() < max(0.05 * lost, 0.9)
  np.testing.assert_allclose(
    np.abs(got - levels).mean(), lost, rtol=0.05, atol=0.1
  )


def test_waves_are_a_cosine_transform():
  x = np.random.default_rng(0).normal(size=(8, 8))
  got = degradation._DCT @ x @ degradation._DCT.T
  np.testing.assert_allclose(got, fft.dctn(x, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize(
  "change",
  [
    degradation.random_blur,
    degradation.random_resolution,
    degradation.random_jpeg,
  ],
)
def test_more_strength_takes_more_detail(change):
  x = jnp.asarray(smooth(40, 56, 56))
  lost = [
    np.abs(change(jax.random.key(0), x, s) - x).mean(axis=(1, 2, 3))
    for s in (0.0, 0.5, 1.0)
  ]
  assert lost[0].mean() < 0.03
  assert lost[0].mean() < lost[1].mean() < lost[2].mean()
  assert lost[2].std() > 0.1 * lost[2].mean()  # Not the same for all.
