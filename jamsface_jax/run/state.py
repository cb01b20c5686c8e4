"""What training changes: how it is made, and how it lies on the devices."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, PyTree

from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import options_to_run_once
from jamsface_jax.head import concentration
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.head.making import first_state
from jamsface_jax.models import init_backbone
from jamsface_jax.run.components import Components

# An array; its ShapeDtypeStruct or its sharding in trees of the same form.
Leaf = Any


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step reads and writes.

  Its fields are stored in checkpoints by their names.

  Attributes:
    step: finished steps, int32 scalar.
    params: `backbone` (replicated) and `head` (split by class), float32.
    batch_stats: running statistics of the backbone, float32.
    opt_state: state of the optimizers, each leaf sharded as its parameter.
    running: what the loss remembers, float32 scalars by name.
    seen: what this pass over the data has seen of classes, below `head`, split
      by class, see `head.concentration`; {} where no margin follows from it.
    rejected: steps whose loss or gradient was not finite, which changed nothing
      else: int32 [2], in all and in a row.
  """

  step: Leaf
  params: dict[str, PyTree[Leaf]]
  batch_stats: PyTree[Leaf]
  opt_state: PyTree[Leaf]
  running: dict[str, Leaf]
  seen: dict[str, PyTree[Leaf]]
  rejected: Leaf


def make_init(
  components: Components,
  image_size: int,
  mesh: Mesh,
  class_sizes: Int[np.ndarray, " n"] | None = None,
) -> Callable[[Key[Array, ""]], TrainState]:
  """Returns the pure function from a key to the first state.

  Args:
    components: those of the run.
    image_size: pixels along a side.
    mesh: the (data, model) mesh.
    class_sizes: images of each class; see `head.init`.
  """

  def init(key: Key[Array, ""]) -> TrainState:
    backbone_key, head_key = jax.random.split(key)
    variables = init_backbone(backbone_key, components.model, image_size)
    params = {
      "backbone": variables["params"],
      "head": head_lib.init(head_key, components.head, mesh, class_sizes),
    }
    seen = concentration.start(components.head, mesh)
    return TrainState(
      step=jnp.int32(0),
      params=params,
      batch_stats=variables["batch_stats"],
      opt_state=components.optimizers.init(params),
      running=first_state(components.head),
      seen={"head": seen} if seen else {},
      rejected=jnp.zeros(2, jnp.int32),
    )

  return init


@functools.lru_cache(maxsize=4)  # A launch asks several times; each is a trace.
def state_shapes(
  components: Components, image_size: int, mesh: Mesh
) -> TrainState:
  """Describes the state without making it.

  Args:
    components: those of the run.
    image_size: pixels along a side.
    mesh: the (data, model) mesh.

  Returns:
    A TrainState of ShapeDtypeStructs that carry their shardings.
  """
  init = make_init(components, image_size, mesh)
  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.tree.map(
    lambda shape, where: jax.ShapeDtypeStruct(
      shape.shape, shape.dtype, sharding=where
    ),
    shapes,
    sharding.state_shardings(shapes, mesh),
  )


def create_state(
  seed: int,
  components: Components,
  image_size: int,
  mesh: Mesh,
  class_sizes: Int[np.ndarray, " n"] | None = None,
) -> TrainState:
  """Makes the first state, born sharded: no device ever holds it whole.

  Args:
    seed: decides the initial values.
    components: those of the run.
    image_size: pixels along a side.
    mesh: the (data, model) mesh.
    class_sizes: images of each class; see `head.init`.
  """
  shardings = jax.tree.map(
    lambda shape: shape.sharding, state_shapes(components, image_size, mesh)
  )
  init = jax.jit(
    make_init(components, image_size, mesh, class_sizes),
    out_shardings=shardings,
    compiler_options=options_to_run_once(mesh.devices.flat[0].platform),
  )
  return init(jax.random.key(seed))
