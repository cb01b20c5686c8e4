"""People trained on: class weights, the prior off, names of the data."""

import numpy as np
import pytest

from jamsface_jax.data.sources import RecordSource
from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.searching.trained_people import TrainedPeople
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.settings.variants import tiny
from jamsface_jax.storage.run_directory import RunDirectory


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "sub-centers"])
def trained(request, dataset, tmp_path_factory):
  """A run on the data set, and the class weights of its checkpoint."""
  run = RunDirectory(str(tmp_path_factory.mktemp("trained")))
  config = tiny(base_config())
  config.data.directory = dataset
  config.head.sub_centers = request.param
  config.head.scale = 2.0  # The prior counts.
  settings = make_settings(config)
  first = state.create_state(
    0,
    make_components(settings, 12, 37),
    settings.data.image_size,
    sharding.make_mesh(-1),
  )
  checkpoints = Checkpoints(run, keep_last=1, keep_best="")
  metadata = {"num_classes": 12, "color_order": "RGB", "embedding_size": 32}
  checkpoints.save(0, first, metadata)
  checkpoints.close()
  check_or_save(settings, run)
  return run, np.asarray(first.params["head"]["weights"]), request.param


def test_order_is_of_cosines_without_the_prior(trained, dataset):
  run, weights, sub_centers = trained
  people = TrainedPeople(run, step=None, fingerprint="0")
  probes = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
  probes /= np.linalg.norm(probes, axis=1, keepdims=True)
  rows = weights[: 12 * sub_centers].astype(np.float64)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  cosines = (probes @ rows.T).reshape(50, 12, sub_centers).max(axis=2)
  sizes = RecordSource(dataset, 32).class_sizes
  assert len(set(sizes)) > 1
  order = np.argsort(-(cosines - np.log(sizes) / 2.0), axis=1)
  assert (order[:, 0] != cosines.argmax(axis=1)).any()
  found = people.nearest(probes, 12)
  np.testing.assert_array_equal(found.owner, order)
  want = np.take_along_axis(cosines, order, axis=1)
  np.testing.assert_allclose(found.cosine, want, atol=1e-6)
  assert people.people == [f"Person_{number:02d}" for number in range(12)]


def test_other_training_data_are_refused(trained, dataset, monkeypatch):
  run, _, _ = trained
  monkeypatch.setattr(
    "jamsface_jax.searching.trained_people.open_source",
    lambda _: type("Less", (), {"num_classes": 11}),
  )
  with pytest.raises(InputError, match="has 12 classes and data.directory 11"):
    TrainedPeople(run, step=None, fingerprint="0")
