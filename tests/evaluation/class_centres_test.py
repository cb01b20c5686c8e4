"""The nearest class of embeddings, against NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import SIZE, make_head, put, random_inputs

from jamsface_jax.evaluation import class_centres
from jamsface_jax.head.parameters import WEIGHTS


def cosines(weights, embeddings, head):
  """Of every image to every class, the nearest sub-center counting."""
  w = weights.reshape(-1, head.sub_centers, SIZE)[: head.num_classes]
  w = w / np.linalg.norm(w, axis=2, keepdims=True)
  x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  return np.einsum("bd,nkd->bnk", x, w).max(axis=2)


@pytest.mark.parametrize("sub_centers", [1, 3])
def test_cosines_to_the_true_and_the_nearest_other_class(mesh, sub_centers):
  head = make_head(sub_centers=sub_centers)
  params, embeddings, labels = random_inputs(head, 24)
  sharded, _, _ = put(mesh, params, embeddings, labels)
  nearest = jax.jit(
    partial(class_centres.nearest_classes, head=head, mesh=mesh)
  )
  sizes = np.random.default_rng(0).integers(1, 500, 37)
  true_vb, other_vb = nearest(
    sharded[WEIGHTS],
    embeddings.astype(np.float32),
    labels,
    class_centres.class_priors(sizes, head=head, mesh=mesh),
  )
  plain = cosines(params[WEIGHTS], embeddings, head)
  adjusted = plain - np.log(sizes) / head.scale
  rows = np.arange(24)
  for true, other, want in zip(
    true_vb, other_vb, (plain, adjusted), strict=True
  ):
    np.testing.assert_allclose(true, want[rows, labels], atol=2e-6)
    want[rows, labels] = -np.inf
    np.testing.assert_allclose(other, want.max(axis=1), atol=2e-6)


@pytest.mark.parametrize("sub_centers", [1, 2])
def test_angles_between_centres(mesh, sub_centers, monkeypatch):
  monkeypatch.setattr(class_centres, "_SHOWN", 10)
  head = make_head(sub_centers=sub_centers)
  params, embeddings, labels = random_inputs(head, 8)
  sharded, _, _ = put(mesh, params, embeddings, labels)
  got = jax.jit(lambda w: class_centres.centre_angles(w, head=head, mesh=mesh))(
    sharded[WEIGHTS]
  )
  rows = np.arange(37 * sub_centers)
  want = cosines(params[WEIGHTS], params[WEIGHTS][rows], head)
  want[rows, rows // sub_centers] = -np.inf
  shown = np.isin(rows // sub_centers, [0, 3, 7, 11, 14, 18, 22, 25, 29, 33])
  np.testing.assert_allclose(
    got, np.degrees(np.arccos(want.max(axis=1)))[shown], atol=1e-3
  )


def test_an_image_of_length_zero_is_near_to_nothing(mesh):
  head = make_head()
  params, embeddings, labels = random_inputs(head, 8)
  sharded, _, _ = put(mesh, params, embeddings, labels)
  true, other = class_centres.nearest_classes(
    sharded[WEIGHTS],
    jnp.zeros((8, SIZE)),
    labels,
    jnp.zeros((1, head.padded_classes)),
    head=head,
    mesh=mesh,
  )
  assert np.all(true == 0) and np.all(other == 0)
