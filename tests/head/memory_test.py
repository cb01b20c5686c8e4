"""What a head costs: against the compiler's own account."""

import pytest
from heads import SIZE, make_head, make_margin
from softmax_test import ADAMW, SGD, compiled

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.head import memory as memory_lib

MIB = 2**20


def estimate(head, mesh, *, fused_update, optimizer=SGD):
  return memory_lib.estimate(
    head, 24, mesh, optimizer=optimizer, fused_update=fused_update
  )


@pytest.mark.parametrize(
  ("optimizer", "changes"),
  [
    (SGD, {}),
    (SGD, {"sub_centers": 2}),
    (SGD, {"sample_rate": 0.25}),
    (SGD, {"keep_bytes": 2**19}),
    (ADAMW, {}),
    (ADAMW, {"sample_rate": 0.25}),
  ],
  # The name of an optimizer would be another in each process.
  ids=["sgd", "centers", "sampled", "kept", "adamw", "adamw sampled"],
)
def test_estimate_agrees_with_the_compiler(mesh, optimizer, changes):
  head = make_head(20_000, 512, chunk=512, **changes)
  memory = compiled(mesh, head, 64, optimizer).memory_analysis()
  held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  held += memory.output_size_in_bytes - memory.alias_size_in_bytes
  cost = memory_lib.estimate(
    head, 64, mesh, optimizer=optimizer, fused_update=True
  )
  assert cost.total == pytest.approx(held, rel=0.15)


def test_bytes_by_hand():
  mesh = sharding.make_mesh(4)  # 2 x 4.
  head = make_head(1000, 1000, chunk=100)
  cost = estimate(head, mesh, fused_update=False)
  assert cost.weights == cost.optimizer == cost.gradient == 250 * SIZE * 4
  two = estimate(head, mesh, fused_update=False, optimizer=ADAMW)
  assert two.optimizer == 2 * cost.optimizer
  assert cost.operations == 4 * 2 * 12 * 252 * SIZE  # 3 chunks of 84.
  fused = estimate(head, mesh, fused_update=True)
  assert fused.total == cost.total - cost.gradient
  anew = make_margin(0.3, learned=False, rule="concentration")
  head = make_head(1000, 1000, chunk=100, angular=anew, sub_centers=2)
  seen = estimate(head, mesh, fused_update=True)
  assert cost.seen == 0 and seen.seen == 250 * SIZE * 4 == seen.weights // 2
  assert seen.parts["class sums"] == seen.seen


def test_a_head_that_does_not_fit_is_refused_with_the_ways_out():
  mesh = sharding.make_mesh(4)
  head = make_head(1_000_000, 1000, chunk=100)
  cost = estimate(head, mesh, fused_update=False)
  memory_lib.check_fits(cost, head, mesh, 64 * MIB)
  with pytest.raises(InputError) as error:
    memory_lib.check_fits(cost, head, mesh, 40 * MIB)
  text = str(error.value)
  assert "1,000,000 classes need 46.8 MiB on each device" in text
  assert "which has 40 MiB" in text
  for way in ("mesh.model=-1", "devices on the model axis", "fused_update"):
    assert way in text
  assert "at least 4 devices" in text


def test_description():
  mesh = sharding.make_mesh(4)
  head = make_head(1000, 1000, chunk=100)
  cost = estimate(head, mesh, fused_update=True)
  text = memory_lib.describe(cost, 2**30, cost.operations / 2)
  assert "of 1 GiB on each device" in text and "about 2 s of a step" in text
  assert "gradient" not in text
