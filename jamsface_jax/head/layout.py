"""How the arrays of the head lie on the (data, model) mesh.

Everything that is one entry a class is split over `model` (`CLASSES`), what a
device's neighbours along `model` must share of the examples over `data` alone.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jamsface_jax.devices.sharding import CLASSES, REPLICATED, make_mesh
from jamsface_jax.errors import InputError

EXAMPLES = P("data")  # As the head sees them: gathered along `model`.
COSINES = P("model", "data")  # Of classes (first axis) with examples.

Tree = TypeVar("Tree")


def spec_of(leaf: jax.Array | jax.ShapeDtypeStruct) -> P:
  """The layout of a parameter of the head, or of its optimizer's state.

  Arrays have a first axis of classes (or of their weight rows); scalars are the
  same everywhere.
  """
  return CLASSES if leaf.ndim else REPLICATED


def varying(
  tree: Tree, axes: str | tuple[str, ...] = ("data", "model")
) -> Tree:
  """Marks values that are the same on all devices as free to differ.

  What a loop carries must be marked so from its start: `shard_map` refuses a
  carry whose type changes.
  """
  return lax.pcast(tree, axes, to="varying")


def place(tree: Tree, mesh: Mesh, spec: P) -> Tree:
  """Lays arrays out on the mesh, inside of `jit` or outside.

  Axes of either kind are served: those that the compiler splits arrays over by
  itself, and the explicit ones of `jax.make_mesh`, where the layout is part of
  an array's type.
  """
  sharding = NamedSharding(mesh, spec)
  if AxisType.Explicit in mesh.axis_types:
    return jax.tree.map(lambda leaf: jax.reshard(leaf, sharding), tree)
  return lax.with_sharding_constraint(tree, sharding)


def mesh_for(array: jax.Array | np.ndarray, mesh: Mesh | None) -> Mesh:
  """The mesh if there is one, else the one device where the array is.

  Args:
    array: an array of the batch; inside of `jit` its device is not known, and
      the default one is taken.
    mesh: axes `data` and `model`, in this order; None: one device.

  Raises:
    InputError: the mesh has other axes.
  """
  if mesh is None:
    if isinstance(array, Tracer) or not isinstance(array, jax.Array):
      return make_mesh(1, [_default_device()])
    return make_mesh(1, sorted(array.devices(), key=lambda d: d.id)[:1])
  if mesh.axis_names != ("data", "model"):
    raise InputError(
      f"the mesh of a head has axes ('data', 'model'), not {mesh.axis_names}:"
      " make it by jax.make_mesh((DATA, MODEL), ('data', 'model')), of the same"
      " devices."
    )
  return mesh


def _default_device() -> jax.Device:
  """Where JAX puts arrays that nobody has placed."""
  with jax.ensure_compile_time_eval():
    return next(iter(jnp.zeros(()).devices()))
