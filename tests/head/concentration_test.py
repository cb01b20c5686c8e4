"""Margins by concentration: against the formula, on every mesh, in passes.

Who vouches: the formulas of KappaFace's public code
(github.com/Leminhbinh0209/KappaFace, commit 5158b2f: momentum_head.py and
losses.py), written anew in NumPy and float64 from the embeddings themselves.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import SIZE, make_head, make_margin
from jax.sharding import AxisType, NamedSharding

from jamsface_jax import head as head_lib
from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.head import concentration
from jamsface_jax.head.concentration import COUNTS, SPREADS, SUMS

CLASSES = 37


def anew(initial, upper=1.0, **changes):
  return make_margin(
    initial, upper, learned=False, rule="concentration", **changes
  )


def kappa_head(**changes):
  settings = {"angular": anew(0.8), "cosine": anew(0.0), "held": "none"}
  return make_head(CLASSES, **settings | changes)


def images(seed=0, *, richest=41):
  """Embeddings and labels of a pass: ragged sizes, of various spread."""
  rng = np.random.default_rng(seed)
  sizes = 2 + rng.integers(0, 9, CLASSES)
  sizes[5] = richest
  labels = rng.permutation(np.repeat(np.arange(CLASSES), sizes))
  centres = rng.normal(size=(CLASSES, SIZE))
  spread = rng.uniform(0.2, 2.0, CLASSES)[labels, None]
  x = centres[labels] + spread * rng.normal(size=(len(labels), SIZE))
  return x * rng.uniform(0.1, 50.0, (len(x), 1)), labels, sizes


def published(x, labels, sizes, *, temperature=0.4, gamma=0.7):
  """momentum_head.py: update_kappa, then update_weights."""
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  r = np.array(
    [
      np.linalg.norm(unit[labels == j].sum(axis=0)) / sizes[j]
      for j in range(len(sizes))
    ]
  )
  with np.errstate(divide="ignore"):
    # One image has R = 1, which theirs leaves to rounding.
    r[sizes == 1] = 1.0
    kappa = r * (SIZE - r**2) / (1 - r**2)
  kappa[np.isinf(kappa)] = kappa[~np.isinf(kappa)].max()
  standard = (kappa - kappa.mean()) / kappa.std(ddof=1)
  by_kappa = 1 - 1 / (1 + np.exp(-temperature * standard))
  by_size = (np.cos(np.pi * sizes / (1.05 * sizes.max())) + 1) / 2
  return gamma * by_kappa + (1 - gamma) * by_size


def on_mesh(mesh, x, labels):
  place = partial(jax.device_put, device=NamedSharding(mesh, sharding.BATCH))
  return place(x.astype(np.float32)), place(labels.astype(np.int32))


def first(head, mesh, sizes):
  """Margins and what is seen before the first pass."""
  init = partial(head_lib.init, head=head, mesh=mesh, class_sizes=sizes)
  params = jax.jit(init)(jax.random.key(0))
  return head_lib.margins_and_scalars(params), concentration.start(head, mesh)


def after_a_pass(head, mesh, x, labels, sizes, batch=24, start=None):
  """Shows all images, in batches whose last one is filled with no class."""
  params, seen = first(head, mesh, sizes) if start is None else start
  add = jax.jit(partial(concentration.add, head=head, mesh=mesh))
  fill = -len(x) % batch
  x = np.concatenate([x, np.ones((fill, SIZE))])
  # Neither below nor beyond the classes, nor in the padding, counts.
  labels = np.concatenate([labels, np.resize([-1, 37, 39, 99], fill)])
  for k in range(0, len(x), batch):
    seen = add(seen, *on_mesh(mesh, x[k : k + batch], labels[k : k + batch]))
  return jax.jit(partial(concentration.end_pass, head=head, mesh=mesh))(
    params, seen
  )


def real(margins):
  got = np.asarray(margins, np.float64)
  assert np.all(got[CLASSES:] == 0)
  return got[:CLASSES]


@pytest.mark.parametrize("temperature, gamma", [(0.4, 0.7), (3.0, 0.2)])
def test_margins_are_those_of_the_public_code(mesh, temperature, gamma):
  head = kappa_head(
    concentration_temperature=temperature, concentration_share=gamma
  )
  x, labels, sizes = images()
  params, seen = after_a_pass(head, mesh, x, labels, sizes)
  weights = published(x, labels, sizes, temperature=temperature, gamma=gamma)
  assert weights.std() > 0.05
  np.testing.assert_allclose(
    real(params[head_lib.ANGULAR]), 0.8 * weights, rtol=1e-4
  )
  assert not np.any(params[head_lib.COSINE])
  # The next pass begins with nothing, split by class.
  by_class = NamedSharding(mesh, sharding.CLASSES)
  for name in (SUMS, COUNTS):
    assert not np.any(seen[name])
  for value in (*seen.values(), params[head_lib.ANGULAR]):
    assert value.sharding.is_equivalent_to(by_class, value.ndim)
    assert value.dtype == jnp.float32


def test_classes_of_one_image_are_as_the_densest(mesh):
  """Their concentration is infinite; images that embed alike have the same."""
  x, labels, sizes = images(1)
  sizes[[3, 8]] = 1
  kept = ~np.isin(labels, [3, 8]) | ~np.isin(
    np.arange(len(labels)),
    np.concatenate([np.flatnonzero(labels == j)[1:] for j in (3, 8)]),
  )
  x, labels = x[kept], labels[kept]
  x[labels == 9] = 3 * x[labels == 9][:1]
  sizes[9] = (labels == 9).sum()
  params, _ = after_a_pass(kappa_head(), mesh, x, labels, sizes)
  got = real(params[head_lib.ANGULAR])
  alike = sizes.copy()
  alike[9] = 1  # To the oracle, that of one image.
  want = published(x, labels, alike)
  by_size = 0.3 * np.cos(np.pi * sizes / (1.05 * sizes.max())) / 2
  want += by_size - 0.3 * np.cos(np.pi * alike / (1.05 * alike.max())) / 2
  np.testing.assert_allclose(got, 0.8 * want, rtol=1e-4)
  assert np.isfinite(got).all()


def test_a_class_that_was_not_seen_keeps_its_concentration(mesh):
  x, labels, sizes = images(2)
  head = kappa_head()
  kept = ~np.isin(labels, [4, 5])
  some = x[kept], labels[kept]
  # Never seen: as the mean of all. What was seen is compared with itself.
  params, seen = after_a_pass(head, mesh, *some, sizes)
  by_size = 0.3 * (np.cos(np.pi * sizes / (1.05 * sizes.max())) + 1) / 2
  got = real(params[head_lib.ANGULAR]) / 0.8 - by_size
  np.testing.assert_allclose(got[[4, 5]], 0.7 * 0.5, rtol=1e-5)
  others = np.delete(np.arange(CLASSES), [4, 5])
  renumbered = np.searchsorted(others, some[1])
  among = published(some[0], renumbered, sizes[others], gamma=1.0)
  np.testing.assert_allclose(got[others], 0.7 * among, rtol=1e-4)
  # Seen, and then not: as it was.
  start = after_a_pass(head, mesh, x, labels, sizes)
  again, _ = after_a_pass(head, mesh, *some, sizes, start=start)
  for name in (head_lib.ANGULAR,):
    before, after = real(start[0][name]), real(again[name])
    np.testing.assert_array_equal(after[[4, 5]], before[[4, 5]])
    assert np.all(after[others] != before[others])
  # A pass without any, of steps that were all rejected.
  end = jax.jit(partial(concentration.end_pass, head=head, mesh=mesh))
  nothing, _ = end(*start)
  np.testing.assert_allclose(
    nothing[head_lib.ANGULAR], start[0][head_lib.ANGULAR], rtol=1e-6
  )


@pytest.mark.parametrize("held", ["classes", "images", "sizes"])
def test_means_are_held(mesh, held):
  """Raised by one number; both margins alike, each by its own strength."""
  x, labels, sizes = images(3)
  sizes = np.where(sizes < 6, 4, sizes)
  head = kappa_head(angular=anew(0.15, 0.8), cosine=anew(0.12, 0.6), held=held)
  params, seen = first(head, mesh, sizes)
  np.testing.assert_allclose(real(params[head_lib.ANGULAR]), 0.15)
  start = params, seen
  params, _ = after_a_pass(head, mesh, x, labels, sizes, start=start)
  free, _ = after_a_pass(kappa_head(), mesh, x, labels, sizes)
  weights = real(free[head_lib.ANGULAR]) / 0.8
  group = sizes if held == "sizes" else np.zeros(CLASSES)
  for name, mean in ((head_lib.ANGULAR, 0.15), (head_lib.COSINE, 0.12)):
    got = real(params[name])
    for one in np.unique(group):
      mine = group == one
      counts = sizes[mine] if held == "images" else None
      held_mean = np.average(got[mine], weights=counts)
      assert held_mean == pytest.approx(mean, abs=1e-6)
      added = (got - mean * weights)[mine]
      np.testing.assert_allclose(added, added[:1].repeat(len(added)), atol=2e-6)
    assert got.std() > 0.003


def test_held_margins_stay_in_their_bounds(mesh):
  x, labels, sizes = images(4)
  head = kappa_head(
    angular=anew(0.15, 0.17, lower=0.14),
    held="images",
    concentration_temperature=5.0,
  )
  params, _ = after_a_pass(head, mesh, x, labels, sizes)
  got = real(params[head_lib.ANGULAR])
  assert np.average(got, weights=sizes) == pytest.approx(0.15, abs=1e-6)
  assert got.min() == np.float32(0.14) and got.max() <= np.float32(0.17)


def test_first_margins_are_whole(mesh):
  """train.py begins with weights of 1, whatever momentum_head.py has."""
  params, seen = first(kappa_head(), mesh, np.arange(1, 38))
  np.testing.assert_allclose(real(params[head_lib.ANGULAR]), 0.8)
  assert seen[SUMS].shape == (40, SIZE)
  assert np.all(np.asarray(seen[SPREADS]) == 0.5)


def test_nothing_is_kept_where_nothing_follows_from_it(mesh):
  for head in (
    make_head(),
    kappa_head(angular=anew(0.0)),
    make_head(angular=make_margin(0.3, learned=False)),
  ):
    assert concentration.start(head, mesh) == {}
    params = {head_lib.ANGULAR: jnp.ones(40)}
    assert (
      concentration.add(
        {}, jnp.ones((8, SIZE)), jnp.zeros(8, int), head=head, mesh=mesh
      )
      == {}
    )
    assert concentration.end_pass(params, {}, head=head) == (params, {})


def test_a_step_that_is_rejected_adds_nothing(mesh):
  head = kappa_head()
  x, labels, _ = images()
  seen = concentration.start(head, mesh)
  batch = on_mesh(mesh, x[:24], labels[:24])
  add = jax.jit(partial(concentration.add, head=head, mesh=mesh))
  seen = add(seen, *batch)
  same = add(seen, batch[0] * np.nan, batch[1], accept=jnp.bool_(False))
  for name, value in seen.items():
    np.testing.assert_array_equal(same[name], value)
  assert seen[COUNTS].sum() == 24


def test_batches_are_added_in_place(mesh):
  """Beside the sums a device needs the batch, and no [C, D] again."""
  head = make_head(
    20_000, 512, angular=anew(0.5), cosine=anew(0.0), held="none"
  )
  add = jax.jit(
    partial(concentration.add, head=head, mesh=mesh), donate_argnums=0
  )
  shapes = jax.eval_shape(lambda: concentration.start(head, mesh))
  by_class = NamedSharding(mesh, sharding.CLASSES)
  seen = {
    name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=by_class)
    for name, shape in shapes.items()
  }
  batch = (
    jax.ShapeDtypeStruct(
      (64, SIZE), jnp.float32, sharding=NamedSharding(mesh, sharding.BATCH)
    ),
    jax.ShapeDtypeStruct(
      (64,), jnp.int32, sharding=NamedSharding(mesh, sharding.BATCH)
    ),
  )
  memory = add.lower(seen, *batch).compile().memory_analysis()
  sums = 4 * SIZE * head.padded_classes // mesh.shape["model"]
  assert memory.alias_size_in_bytes >= sums
  assert memory.temp_size_in_bytes < 0.2 * sums


def test_axes_that_are_explicit_and_half_embeddings():
  """As in a loop of one's own, without a compiled step around it."""
  explicit = jax.make_mesh(
    (2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2
  )
  head = kappa_head(angular=anew(0.5), cosine=anew(0.2), held="images")
  x, labels, sizes = images(5)
  x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)[:160]
  found = []
  for mesh, dtype in ((None, "float32"), (explicit, "bfloat16")):
    params = head_lib.init(jax.random.key(0), head, mesh, sizes)
    seen = concentration.start(head, mesh)
    for k in range(0, 160, 40):
      batch = jnp.asarray(x[k : k + 40], dtype), jnp.asarray(labels[k : k + 40])
      if mesh is not None:
        batch = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
      seen = concentration.add(seen, *batch, head=head, mesh=mesh)
    params, _ = concentration.end_pass(params, seen, head=head, mesh=mesh)
    assert head_lib.WEIGHTS in params
    found.append(real(params[head_lib.ANGULAR]))
  assert found[0].std() > 0.01
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_gradients_do_not_move_them():
  with pytest.raises(InputError, match="fixed"):
    head_lib.learned(0.3, upper=0.8, rule="concentration")
  made = head_lib.make(
    10, SIZE, angular=head_lib.fixed(0.3, rule="concentration")
  )
  assert made.angular.made_anew and not made.angular.learned
  assert made.counts_images and not head_lib.make(10, SIZE).counts_images
