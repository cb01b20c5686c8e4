"""New images of people trained on, against NumPy in float64."""

from unittest import mock

import numpy as np
import pytest

from data_prep.writing.writer import DatasetWriter
from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.data import sources
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation import evaluator as evaluator_lib
from jamsface_jax.evaluation import known_people
from jamsface_jax.head.parameters import WEIGHTS
from jamsface_jax.run import state
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny


def test_parts_are_alike_in_number_and_rise_in_size():
  sizes = np.random.default_rng(0).integers(2, 60, 53)
  part = known_people.part_by_size(sizes)
  assert set(np.bincount(part)) == {5, 6} and part.max() == 9
  for number in range(9):
    assert sizes[part == number].max() <= sizes[part == number + 1].min()
  assert known_people.part_by_size(np.array([7, 3, 5])).tolist() == [2, 0, 1]


def test_accuracy_by_class_size():
  rng = np.random.default_rng(0)
  sizes = rng.permutation(np.repeat([2, 5, 9, 40], 10))
  labels = rng.permutation(np.repeat(np.arange(40), 3))
  # Poor classes are never right, those of 5 one time in three.
  true = np.full(120, 0.5)
  hardest = np.where(sizes[labels] == 2, 0.6, 0.4)
  for label in np.flatnonzero(sizes == 5):
    hardest[np.flatnonzero(labels == label)[:2]] = 0.7
  adjusted = sizes[labels] < 9
  source = mock.create_autospec(RecordSource, instance=True)
  source.name = "new"
  found = known_people.KnownPeople(source, labels, sizes).judge(
    true, hardest, adjusted
  )
  assert found.metrics == pytest.approx(
    {
      "new/accuracy": (20 + 10 / 3) / 40,
      "new/accuracy_poor_half": 1 / 6,
      "new/accuracy_rich_half": 1.0,
      "new/adjusted_accuracy": 0.5,
      "new/adjusted_accuracy_poor_half": 1.0,
      "new/adjusted_accuracy_rich_half": 0.0,
      "new/true_cosine": 0.5,
      "new/hardest_cosine": hardest.mean(),
    }
  )
  table = found.facts["by_class_size"]
  assert [row["classes"] for row in table] == [4] * 10
  assert sum(row["images"] for row in table) == 120
  assert table[0]["accuracy"] == 0 and table[0]["largest"] == 2
  assert [row["adjusted_accuracy"] for row in table[::9]] == [1, 0]
  assert table[9]["accuracy"] == 1 and table[9]["smallest"] == 40
  assert table[3]["hardest_cosine"] == pytest.approx(0.6)


def test_classes_are_found_by_name(tmp_path):
  def write(name, sizes):
    directory = str(tmp_path / name)
    with DatasetWriter(
      directory, name=name, classes=[*sizes], source=name
    ) as writer:
      for label, (person, size) in enumerate(sizes.items()):
        for k in range(size):
          writer.add(label, f"{person}/{k}.png", b"image", (8, 8))
    return directory

  training = write("train", {"ann": 3, "bob": 1, "eve": 2})
  more = write("more", {"zoe": 2})
  new = write("new", {"zoe": 2, "bob": 1})
  sizes = np.array([3, 1, 2, 2])
  (known,) = known_people.open_known_people(
    new, f"{training},{more}", 32, sizes
  )
  assert known.labels.tolist() == [3, 3, 1]
  assert isinstance(known.source, RecordSource)
  assert known_people.open_known_people("", training, 32, sizes) == []
  with pytest.raises(InputError, match=r"class 'zoe', which .*\(1 of 2\)"):
    known_people.open_known_people(new, training, 32, sizes)
  with pytest.raises(InputError, match="data.directory, which is ''"):
    known_people.open_known_people(new, "", 32, sizes)


def test_an_evaluation_looks_at_every_image_once(dataset, tmp_path):
  """Against all images embedded at once, 37 in batches of 16."""
  config = tiny(base_config())
  config.head.scale = 10.0  # The prior of a class counts as cosines do.
  config.data.directory = config.evaluation.known = str(dataset)
  config = make_settings(config)
  source = sources.open_source(config.data)
  mesh = sharding.make_mesh(2)
  components = make_components(config, source.num_classes, len(source))
  first = state.create_state(0, components, config.data.image_size, mesh)
  sizes = 3 ** np.arange(source.num_classes)
  evaluator = evaluator_lib.Evaluator(config, components, mesh, sizes)
  (found,) = evaluator.run(first)

  images, labels = source.read(np.arange(len(source)))
  assert len(labels) % config.evaluation.batch_size
  variables = {"params": first.params["backbone"]}
  variables["batch_stats"] = first.batch_stats
  embeddings = sum(
    np.asarray(
      components.model.apply(variables, normalize(some), train=False),
      np.float64,
    )
    for some in (images, images[:, :, ::-1])
  )
  w = np.asarray(first.params["head"][WEIGHTS], np.float64)
  w = w[: source.num_classes]
  w /= np.linalg.norm(w, axis=1, keepdims=True)
  x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  cosine, rows = x @ w.T, np.arange(len(labels))
  name = found.name
  assert found.metrics[f"{name}/true_cosine"] == pytest.approx(
    cosine[rows, labels].mean(), abs=1e-5
  )
  right = cosine.argmax(axis=1) == labels
  assert found.metrics[f"{name}/accuracy"] == pytest.approx(right.mean())
  assert 0 < right.sum() < len(labels)
  adjusted = cosine - np.log(sizes) / config.head.scale
  plainly_right, right = right, adjusted.argmax(axis=1) == labels
  assert right.mean() != plainly_right.mean()
  assert found.metrics[f"{name}/adjusted_accuracy"] == pytest.approx(
    right.mean()
  )
  cosine[rows, labels] = -np.inf
  assert found.metrics[f"{name}/hardest_cosine"] == pytest.approx(
    cosine.max(axis=1).mean(), abs=1e-5
  )
  assert f"{name}/accuracy_poor_half" in evaluator.rising_metrics()
  angles = evaluator.measure_centres(first)
  assert (
    0 < angles["train/centre_angle_min"] < angles["train/centre_angle_mean"]
  )


def test_two_sets_of_one_name_are_refused(dataset):
  config = tiny(base_config())
  config.data.directory = str(dataset)
  config.evaluation.known = f"{dataset},{dataset}"
  config = make_settings(config)
  source = sources.open_source(config.data)
  components = make_components(config, source.num_classes, len(source))
  with pytest.raises(
    InputError, match="evaluation.known has a set of the name"
  ):
    evaluator_lib.Evaluator(
      config, components, sharding.make_mesh(1), source.class_sizes
    )
