"""How the arrays of the head lie on the (data, model) mesh.

Everything that is one entry a class is split over `model` (`CLASSES`), what a
device's neighbours along `model` must share of the examples over `data` alone.
"""

from typing import TypeVar

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

from jamsface_jax.devices.sharding import CLASSES, REPLICATED

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
