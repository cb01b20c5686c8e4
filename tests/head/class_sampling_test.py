"""Which classes a sampled step sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import make_head

from jamsface_jax.devices import sharding
from jamsface_jax.head import class_sampling

draw = jax.jit(class_sampling.draw, static_argnames=("head", "mesh"))


def drawn(mesh, head, labels, seed=0):
  """Classes and log weights of the used slots, by class."""
  sample = draw(jax.random.key(seed), jnp.asarray(labels), head=head, mesh=mesh)
  classes = np.asarray(sample.classes)
  slots = len(classes) // mesh.shape["model"]
  shard = np.arange(len(classes)) // slots
  per_shard = head.padded_classes // mesh.shape["model"]
  rows, used = np.asarray(sample.rows), classes >= 0
  # A used slot names the row of its class; no index comes twice in a shard.
  np.testing.assert_array_equal(
    rows[used] + shard[used] * per_shard, classes[used]
  )
  assert np.all(rows[~used] >= per_shard)
  for one in range(mesh.shape["model"]):
    assert len(set(rows[shard == one])) == slots
  order = np.argsort(classes[used])
  return classes[used][order], np.asarray(sample.log_weights)[used][order]


@pytest.mark.parametrize(
  ("classes", "multiple", "rate"),
  [(37, 8, 0.1), (101, 64, 0.5), (1000, 512, 0.03), (9, 32, 0.9), (1, 8, 0.5)],
)
def test_all_positives_and_a_share_of_the_others_each_once(
  mesh, classes, multiple, rate
):
  head = make_head(classes, multiple, sample_rate=rate)
  rng = np.random.default_rng(0)
  for seed in range(5):
    labels = rng.integers(0, classes, 16)
    got, _ = drawn(mesh, head, labels, seed)
    assert len(set(got)) == len(got)
    assert set(labels) <= set(got) <= set(range(classes))
    strata = int(np.ceil(rate * classes))
    assert strata - len(set(labels)) <= len(got) <= strata + len(set(labels))


def test_does_not_depend_on_the_mesh(mesh):
  head = make_head(1000, 512, sample_rate=0.1)
  labels = np.arange(0, 480, 30)
  want = drawn(sharding.make_mesh(1), head, labels)
  got = drawn(mesh, head, labels)
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])


def test_every_class_has_the_same_chance():
  mesh = sharding.make_mesh(4)
  head = make_head(50, 64, sample_rate=0.3)  # 15 runs of 3 or 4.
  count = np.zeros(50)
  for seed in range(400):
    classes, _ = drawn(mesh, head, [7] * 8, seed)
    count[classes] += 1
  assert count[7] == 400
  others = np.delete(count, 7) / 400
  # Runs of 4 (the first 5) and of 3; four standard errors of a share.
  want = np.delete(np.where(np.arange(50) < 20, 1 / 4, 1 / 3), 7)
  assert np.abs(others - want).max() < 4 * 0.5 / 20


def test_weighed_the_sample_stands_for_all():
  """The mean of the weighed sum over draws is the sum over all."""
  mesh = sharding.make_mesh(1)
  head = make_head(50, 64, sample_rate=0.3, weigh_sample=True)
  values = np.random.default_rng(0).exponential(size=50)
  labels = [3, 3, 9, 30]
  sums = []
  for seed in range(400):
    classes, log_weights = drawn(mesh, head, labels * 2, seed)
    sums.append(np.sum(np.exp(log_weights) * values[classes]))
  error = np.std(sums) / 20
  assert abs(np.mean(sums) - values.sum()) < 4 * error < 0.1 * values.sum()
  # As Partial FC has it, the sum is that of the drawn alone.
  plain = make_head(50, 64, sample_rate=0.3)
  assert np.all(drawn(mesh, plain, labels * 2)[1] == 0)
