"""Reading compiled programs: against sums by hand and XLA's own account."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jamsface_jax.devices import sharding
from jamsface_jax.pods.collectives import find_collectives
from jamsface_jax.pods.program import arrays, parse
from jamsface_jax.pods.work import each_work, unknown_loops

ROWS, SIZE, TURNS = 24, 40, 7


def compiled(function, *shapes, **options):
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function, **options).lower(*shapes).compile()


def program_of(function, *shapes):
  return parse(compiled(function, *shapes).as_text())


def operations(program):
  return sum(w.operations * w.runs for w in each_work(program))


def moved_bytes(program):
  return sum(w.bytes * w.runs for w in each_work(program))


def looped(x, w):
  return lax.fori_loop(0, TURNS, lambda _, x: jnp.tanh(x @ w), x)


def unrolled(x, w):
  for _ in range(TURNS):
    x = jnp.tanh(x @ w)
  return x


def test_a_loop_counts_as_often_as_it_turns():
  shapes = (ROWS, SIZE), (SIZE, SIZE)
  once = 2 * ROWS * SIZE * SIZE
  loop, flat = program_of(looped, *shapes), program_of(unrolled, *shapes)
  assert operations(flat) == operations(loop) == TURNS * once
  assert unknown_loops(loop) == 0
  # XLA's own account has the body once; its bytes of the flat one are ours.
  costs = compiled(looped, *shapes).cost_analysis()
  assert costs["flops"] < 2 * once
  account = compiled(unrolled, *shapes).cost_analysis()
  moved = account["bytes accessed"]
  assert moved_bytes(flat) == pytest.approx(moved, rel=0.02)
  assert moved_bytes(loop) == pytest.approx(moved, rel=0.1)


def test_loops_in_loops_and_slices():
  """Rows read and written in place count, not the arrays that hold them."""
  chunks = 5

  def walk(w):
    def chunk(k, w):
      rows = lax.dynamic_slice_in_dim(w, k * ROWS, ROWS)
      rows = lax.fori_loop(0, TURNS, lambda _, r: jnp.sin(r), rows)
      return lax.dynamic_update_slice_in_dim(w, rows, k * ROWS, 0)

    return lax.fori_loop(0, chunks, chunk, w)

  compiled_ = compiled(walk, (chunks * ROWS, SIZE), donate_argnums=0)
  program = parse(compiled_.as_text())
  assert unknown_loops(program) == 0
  runs = [
    runs
    for instruction, _, runs, _ in program.executed()
    if "sine" in instruction.text or "sin" in instruction.name
    if instruction.opcode in ("fusion", "sine", "call")
  ]
  assert max(runs) == chunks * TURNS
  chunk_bytes = ROWS * SIZE * 4
  moved = moved_bytes(program)
  least = chunks * TURNS * 2 * chunk_bytes
  assert least <= moved <= least + 8 * chunks * chunk_bytes


def test_a_loop_that_ends_on_data_is_said():
  def until(x):
    return lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x + 1.0, x)

  assert unknown_loops(program_of(until, (SIZE,))) == 1


@pytest.mark.parametrize("which", ["forward", "images", "weights"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_agree_with_the_account_of_xla(which, stride):
  """Padding and the holes of a strided backward are not multiplied."""
  images, weights = (4, 14, 14, 8), (3, 3, 8, 16)

  def conv(x, w):
    return lax.conv_general_dilated(
      x,
      w,
      (stride, stride),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  def backward(x, w, y):
    return jax.vjp(conv, x, w)[1](y)[which == "weights"]

  size = 14 // stride
  if which == "forward":
    done = compiled(conv, images, weights)
  else:
    done = compiled(backward, images, weights, (4, size, size, 16))
  found = operations(parse(done.as_text()))
  assert found == done.cost_analysis()["flops"]
  # All three make the same products.
  inside = sum(
    0 <= stride * i + k - 1 < 14 for i in range(size) for k in range(3)
  )
  assert found == 2 * 4 * inside**2 * 8 * 16


@pytest.mark.parametrize("model", [8, 4, 2])
def test_collectives_with_their_axes_and_turns(model):

  mesh = sharding.make_mesh(model)
  data = 8 // model

  def local(x):
    total = lax.psum(x, "data") if data > 1 else x

    def turn(_, v):
      return lax.pmax(v, "model") * 0.5

    top = lax.fori_loop(0, TURNS, turn, total[:, 0])
    rows = lax.all_gather(total, "model", tiled=True)
    part = lax.psum_scatter(jnp.sin(rows), "model", tiled=True)
    return part + top[:, None]

  function = jax.shard_map(
    local, mesh=mesh, in_specs=P("model"), out_specs=P("model"), check_vma=False
  )
  rows = 8 * 6
  done = jax.jit(function).lower(jnp.zeros((rows, SIZE))).compile()
  found = find_collectives(parse(done.as_text()), mesh.shape)
  whole = rows * SIZE * 4
  by_kind = {(c.kind, c.axis): c for c in found}
  assert len(by_kind) == len(found)
  gather = by_kind["all-gather", "model"]
  assert (gather.bytes, gather.group, gather.runs) == (whole, model, 1)
  scatter = by_kind["reduce-scatter", "model"]
  assert (scatter.bytes, scatter.dtype, scatter.looped) == (whole, "f32", False)
  top = by_kind["all-reduce", "model"]
  assert (top.runs, top.looped) == (TURNS, True)
  assert top.bytes == rows // model * 4
  if data > 1:
    assert by_kind["all-reduce", "data"].bytes == whole // model
    assert by_kind["all-reduce", "data"].group == data


@pytest.mark.parametrize(
  ("groups", "expected"),
  [
    ("{{0,1,2,3},{4,5,6,7}}", ("model", 4)),
    ("{{0,4},{1,5},{2,6},{3,7}}", ("data", 2)),
    ("{{0,1},{2,3},{4,5},{6,7}}", ("other", 2)),
    ("[2,4]<=[8]", ("model", 4)),
    ("[4,2]<=[2,4]T(1,0)", ("data", 2)),
    ("mesh['a'=2,'b'=4] {'b'}", ("model", 4)),
    ("mesh['a'=2,'b'=4] {'a','b'}", ("data+model", 8)),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data", 2)),
    ("mesh['a'=8] {'a':(2)4}", ("model", 4)),
    ("mesh['a'=8] {'a':(1)2}", ("data", 2)),
    ("{}", ("data+model", 8)),
  ],
)
def test_groups_in_all_notations(groups, expected):
  text = f"""HloModule m

ENTRY %main (p: f32[5]) -> f32[5] {{
  %p = f32[5]{{0}} parameter(0)
  ROOT %r = f32[5]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%add
}}
"""
  (found,) = find_collectives(parse(text), {"data": 2, "model": 4})
  assert (found.axis, found.group) == expected
  assert (found.bytes, found.arrays) == (20, 1)


@pytest.mark.parametrize(
  ("text", "plain", "padded", "main"),
  [
    ("f32[1024,512]{1,0:T(8,128)S(1)}", 2**21, 2**21, False),
    ("bf16[64,14,14,64]{3,0,2,1:T(8,128)(2,1)}", 1605632, 3211264, True),
    ("bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)}", 73728, 147456, True),
    # Rows to a multiple of 8, columns, which lie closest, to one of 128.
    ("bf16[5,3,64]{2,0,1:T(8,128)(2,1)}", 1920, 8 * 3 * 128 * 2, True),
    ("f32[5888]{0:T(1024)}", 23552, 24576, True),
    ("pred[]{:T(128)}", 1, 1, True),
    ("s4[7]{0}", 4, 4, True),
  ],
)
def test_bytes_of_an_array(text, plain, padded, main):
  (array,) = arrays(text)
  assert array.bytes == plain
  assert array.padded_bytes == padded
  assert array.in_main_memory == main
