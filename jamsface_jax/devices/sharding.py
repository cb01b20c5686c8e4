"""Which array lives where: the mesh, the three layouts, and moving batches.

The mesh has two axes. Examples are split over both, so that no device repeats
backbone work; class weights and margins are split over `model` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int64, PyTree, Shaped

from jamsface_jax.errors import InputError

BATCH = P(("data", "model"))  # Examples: every device its own.
CLASSES = P("model")  # Class weights, margins and their optimizer state.
REPLICATED = P()

_Results = TypeVar("_Results")


def make_mesh(
  model_devices: int,
  devices: Sequence[jax.Device] | None = None,
  slices: int = 0,
) -> Mesh:
  """Lays out devices as a (data, model) grid, neighbours as neighbours.

  Where devices are of several slices, which only a slower network joins, the
  `model` axis stays within a slice, or takes up whole slices. A machine with
  GPUs is a slice.

  Args:
    model_devices: size of the `model` axis; -1 puts all devices of a slice on
      it.
    devices: devices that the mesh consists of; None: all that JAX sees.
    slices: of how many slices they are, one after the other; 0: they say it.

  Returns:
    The mesh, with axes that the compiler splits arrays over by itself.

  Raises:
    InputError: the number does not divide the devices of a slice.
  """
  devices = jax.devices() if devices is None else devices
  count = slices or len({getattr(d, "slice_index", 0) for d in devices})
  each = len(devices) // count
  model = each if model_devices == -1 else model_devices
  spanned = model // each if model > each else 1
  within = model // spanned
  if model < 1 or each % within or count % spanned or model != spanned * within:
    where = "that JAX sees" if count == 1 else f"of each of {count} slices"
    ways = f"a divisor of {each}"
    if count > 1:
      ways += f", {each} times a divisor of {count}"
    raise InputError(
      f"mesh.model={model_devices} does not divide the {each} devices {where}:"
      f" use {ways}, or -1 for all of {'them' if count == 1 else 'a slice'}."
    )
  # Explicit axes, today's default, refuse the backward of a convolution.
  axis_types = (AxisType.Auto, AxisType.Auto)
  if count == 1:
    return jax.make_mesh(
      (each // model, model),
      ("data", "model"),
      axis_types=axis_types,
      devices=devices,
    )
  shape, far = (each // within, within), (count // spanned, spanned)
  if slices:
    grid = np.array(devices).reshape(*far, *shape).swapaxes(1, 2)
    grid = grid.reshape(-1, model)
  else:
    grid = mesh_utils.create_hybrid_device_mesh(
      shape, far, devices, allow_split_physical_axes=True
    )
  return Mesh(grid, ("data", "model"), axis_types=axis_types)


def state_shardings(shapes: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
  """Gives each leaf of a state its sharding by its path in the tree.

  A leaf below a `head` key is split by class; optimizer state repeats the path
  of its parameter and so follows it. Everything else is replicated.

  Args:
    shapes: pytree of arrays or ShapeDtypeStructs.
    mesh: the (data, model) mesh.

  Returns:
    The same tree of NamedShardings.
  """

  def of_leaf(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    below_head = any(getattr(entry, "key", None) == "head" for entry in path)
    spec = CLASSES if below_head and leaf.ndim else REPLICATED
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(of_leaf, shapes)


def check_divides(name: str, size: int, mesh: Mesh) -> None:
  """Refuses a global batch that the devices cannot share equally.

  Args:
    name: the setting or flag that says the size.
    size: rows of the batch.
    mesh: the (data, model) mesh.

  Raises:
    InputError: the size is no multiple of the number of devices.
  """
  if size < 1 or size % mesh.size:
    raise InputError(
      f"{name}={size} is not a multiple of the {mesh.size} devices: use a"
      f" multiple of {mesh.size}."
    )


def local_rows(size: int, mesh: Mesh) -> Int64[np.ndarray, " n"]:
  """Returns the rows of a global batch that this process's devices hold.

  Args:
    size: rows of the global batch, a multiple of the number of devices.
    mesh: the (data, model) mesh.

  Returns:
    int64, ascending: a process needs these rows and no others.
  """
  by_example = NamedSharding(mesh, BATCH)
  held = by_example.addressable_devices_indices_map((size,)).values()
  rows = {r for place in held if place for r in range(*place[0].indices(size))}
  return np.array(sorted(rows), np.int64)


def split_batch(
  array: Shaped[Array, "b ..."], parts: int, block: int, mesh: Mesh
) -> Shaped[Array, "m n ..."]:
  """Cuts a batch into micro-batches, the same ones on every mesh.

  They take blocks of neighbours by turns, so that each has its share of every
  device's examples; where the blocks of a device are a multiple of the parts,
  no example moves.

  Args:
    array: one example a row, sharding BATCH; the number of rows is a multiple
      of parts x block.
    parts: number of micro-batches, M.
    block: neighbours that stay together.
    mesh: the (data, model) mesh.

  Returns:
    One micro-batch a row, of b / parts examples each; its second axis is split
    as BATCH.
  """
  tail = array.shape[1:]
  parted = array.reshape(-1, parts, block, *tail).swapaxes(0, 1)
  return jax.lax.with_sharding_constraint(
    parted.reshape(parts, -1, *tail), NamedSharding(mesh, P(None, *BATCH))
  )


def join_batch(
  parts: Shaped[Array, "m n ..."], block: int, mesh: Mesh
) -> Shaped[Array, "b ..."]:
  """The batch that `split_batch` cut, its examples in their order again.

  Args:
    parts: one micro-batch a row.
    block: neighbours that stayed together.
    mesh: the (data, model) mesh.
  """
  count, tail = len(parts), parts.shape[2:]
  parted = parts.reshape(count, -1, block, *tail).swapaxes(0, 1)
  return jax.lax.with_sharding_constraint(
    parted.reshape(-1, *tail), NamedSharding(mesh, BATCH)
  )


def put_batch(
  local: Mapping[str, Shaped[np.ndarray, "n ..."]],
  rows: Int64[np.ndarray, " n"],
  size: int,
  mesh: Mesh,
) -> dict[str, Shaped[Array, "b ..."]]:
  """Makes global arrays, split by example, from this process's rows.

  Args:
    local: arrays whose first axis lists the examples of `rows`.
    rows: what `local_rows(size, mesh)` returned.
    size: rows of the global batch.
    mesh: the (data, model) mesh.

  Returns:
    Arrays of `size` rows with sharding BATCH.
  """
  by_example = NamedSharding(mesh, BATCH)

  def put(array: Shaped[np.ndarray, "n ..."]) -> Shaped[Array, "b ..."]:
    def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
      place = index[0] if index else slice(None)
      start, stop, _ = place.indices(size)
      first = np.searchsorted(rows, start)
      return array[first : first + stop - start]

    shape = (size, *array.shape[1:])
    return jax.make_array_from_callback(shape, by_example, of_device)

  return {name: put(array) for name, array in local.items()}


def in_turn(
  program: Callable[..., _Results], mesh: Mesh
) -> Callable[..., _Results]:
  """A compiled program that nothing else runs beside, where that is needed.

  Not its own last run, and not what its arguments come from.

  Devices of one CPU share its threads. Where one of them is a run ahead it can
  hold the thread that another needs to meet it, and after 40 s XLA ends the
  process (jaxlib 0.10.2, eight devices on two cores: six of six times; waiting
  for each run: never). On other chips runs are queued, and this is `program`.

  Args:
    program: what `jax.jit` gave.
    mesh: what it runs on.
  """
  local = mesh.local_devices
  if len(local) == 1 or local[0].platform != "cpu":
    return program

  def run(*args: Any) -> _Results:
    return jax.block_until_ready(program(*jax.block_until_ready(args)))

  return run
