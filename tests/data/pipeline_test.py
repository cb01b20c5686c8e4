import numpy as np
import pytest

from jamsface_jax.data.order import shuffled
from jamsface_jax.data.pipeline import batches, read_ahead
from jamsface_jax.data.sources import NoiseSource, RecordSource
from jamsface_jax.errors import InputError


def collect(source, rows, start=0, threads=2, steps=8, sampling="uniform"):
  return list(
    batches(
      source,
      seed=5,
      sampling=sampling,
      batch_size=8,
      rows=rows,
      start=start,
      total_steps=steps,
      threads=threads,
    )
  )


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_read_ahead_keeps_the_order():
  got = list(read_ahead(lambda k: k * k, start=3, stop=200, threads=8))
  assert got == [k * k for k in range(3, 200)]


def test_batches_are_what_the_source_holds(dataset):
  source = RecordSource(dataset, 40)
  for batch in collect(source, np.arange(8)):
    images, labels = source.read(batch["ids"])
    np.testing.assert_array_equal(batch["images"], images)
    np.testing.assert_array_equal(batch["labels"], labels)
    assert batch["images"].shape == (8, 40, 40, 3)


def test_resuming_needs_the_step_alone(dataset):
  source = RecordSource(dataset, 40)
  whole = collect(source, np.arange(8))
  assert_same(collect(source, np.arange(8), start=5), whole[5:])


def test_threads_do_not_change_anything():
  source = NoiseSource(4, 30, 8)
  assert_same(
    collect(source, np.arange(8), threads=7),
    collect(source, np.arange(8), threads=1),
  )


@pytest.mark.parametrize("start", [0, 1, 64, 199])
def test_batches_that_are_read_together_are_those_of_their_steps(start):
  source = NoiseSource(4, 30, 2)
  got = collect(source, np.arange(2, 6), start=start, steps=200)
  assert len(got) == 200 - start
  for step, batch in enumerate(got, start):
    ids = shuffled(step * 8 + np.arange(2, 6), 30, seed=5)
    np.testing.assert_array_equal(batch["ids"], ids)
    images, labels = source.read(ids)
    np.testing.assert_array_equal(batch["images"], images)
    np.testing.assert_array_equal(batch["labels"], labels)


@pytest.mark.parametrize("sampling", ["uniform", "square_root"])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_disjoint_slices_of_the_same_batches(
  processes, sampling
):
  source = NoiseSource(4, 30, 8)
  whole = collect(source, np.arange(8), sampling=sampling)
  parts = [
    collect(source, rows, sampling=sampling)
    for rows in np.split(np.arange(8), processes)
  ]
  joined = [
    {
      name: np.concatenate([part[step][name] for part in parts])
      for name in whole[0]
    }
    for step in range(len(whole))
  ]
  assert_same(joined, whole)


def test_errors_of_threads_reach_the_reader():
  class Broken(NoiseSource):
    def read(self, ids):
      raise InputError("image 'x' cannot be read: mend it.")

  with pytest.raises(InputError, match="'x'"):
    collect(Broken(4, 30, 8), np.arange(8))


def test_noise_is_a_function_of_the_id():
  source = NoiseSource(4, 30, 8)
  images, labels = source.read(np.arange(30))
  again, _ = source.read(np.array([29, 3]))
  np.testing.assert_array_equal(again, images[[29, 3]])
  np.testing.assert_array_equal(
    np.bincount(labels, minlength=4), source.class_sizes
  )
