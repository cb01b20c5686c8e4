import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jamsface_jax.head import margins


@pytest.mark.parametrize("smooth", [True, False])
def test_hand_numbers(smooth):
  # cos(60 deg + 30 deg) - 0.2, cos 60 deg - 0.35, and no margin at all.
  got = margins.joint(
    jnp.array([0.5, 0.5, 0.3]),
    jnp.array([np.pi / 6, 0.0, 0.0]),
    jnp.array([0.2, 0.35, 0.0]),
    smooth=smooth,
  )
  np.testing.assert_allclose(got, [-0.2, 0.15, 0.3], atol=1e-6)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("angular", [0.0, 0.2, 0.5, 1.5])
def test_equals_arccos_before_the_seam(smooth, angular):
  theta = np.linspace(0.05, np.pi - angular - 1e-3, 200)
  got = margins.joint(
    jnp.cos(theta), jnp.full(200, angular), jnp.full(200, 0.1), smooth=smooth
  )
  np.testing.assert_allclose(got, np.cos(theta + angular) - 0.1, atol=2e-6)


@pytest.mark.parametrize("smooth", [True, False])
def test_falls_with_the_angle_on_all_of_it(smooth):
  theta = np.linspace(1e-3, np.pi - 1e-3, 2000)
  phi = margins.joint(
    jnp.cos(theta), jnp.full(2000, 0.5), jnp.full(2000, 0.0), smooth=smooth
  )
  assert np.all(np.diff(phi) < 1e-6)
  assert phi[-1] < -1.1  # Below cos(pi): the continuation is in use.


@pytest.mark.parametrize("smooth", [True, False])
def test_continuations_meet_or_jump_as_documented(smooth):
  with jax.enable_x64(True):
    theta = np.array([np.pi - 0.5 - 1e-7, np.pi - 0.5 + 1e-7, 3.0])
    before, after, beyond = np.asarray(
      margins.joint(
        jnp.cos(theta), jnp.full(3, 0.5), jnp.zeros(3), smooth=smooth
      )
    )
  want = -2 - np.cos(3.5) if smooth else np.cos(3.0) - 0.5 * np.sin(0.5)
  assert abs(beyond - want) < 1e-6
  drop = 0.0 if smooth else -1 + np.cos(0.5) + 0.5 * np.sin(0.5)
  np.testing.assert_allclose(before - after, drop, atol=1e-6)


@pytest.mark.parametrize("smooth", [True, False])
def test_gradients_are_the_true_ones(smooth):
  with jax.enable_x64(True):
    # Both sides of the seam, which lies at cos t = -cos a, about -0.88.
    cosine = jnp.array([0.9, 0.2, -0.5, -0.95])
    angular = jnp.array([0.5, 0.3, 0.4, 0.5])
    cosine_margin = jnp.array([0.1, 0.2, 0.3, 0.4])

    def total(*arguments):
      return margins.joint(*arguments, smooth=smooth).sum()

    got = jax.grad(total, argnums=(0, 1, 2))(cosine, angular, cosine_margin)
    arguments = [np.array(a) for a in (cosine, angular, cosine_margin)]
    for i in range(3):
      for row in range(4):
        up, down = [[a.copy() for a in arguments] for _ in range(2)]
        up[i][row] += 1e-6
        down[i][row] -= 1e-6
        slope = (
          total(*map(jnp.array, up)) - total(*map(jnp.array, down))
        ) / 2e-6
        np.testing.assert_allclose(got[i][row], slope, rtol=1e-6, atol=1e-8)
    assert np.all(np.abs(got[1]) > 0.05)  # Not straight-through.


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_finite_at_the_ends(cosine):
  def total(c, a):
    return margins.joint(c, a, jnp.zeros(1), smooth=True).sum()

  value, slopes = jax.value_and_grad(total, argnums=(0, 1))(
    jnp.array([cosine]), jnp.array([0.5])
  )
  assert np.isfinite(value) and np.all(np.isfinite(slopes))
