r"""What the compilers of TPUs and GPUs make of the head alone; none is needed.

A step of the head, both walks over the classes and the update of their weights,
is compiled for devices that are not there, for the batch of a whole step. The
limit is the four products that an exact head needs which keeps no logits, at
the device's peak, and weights and momentum read and written once, at its
memory's rate. TPUs need libtpu (pip install -e '.[compile]'), GPUs the CUDA
compiler (pip install -e '.[compile-cuda]'), each in an environment of its own.

  python benchmarks/head_program.py --topologies=v5e:4x4,v6e:4x4
  python benchmarks/head_program.py --topologies=h100:8

Columns, of one device: classes; operations of products over those of the four;
gigabytes moved over those of weights and momentum; instructions that are run;
milliseconds of the four products at the peak, and of weights and momentum at
the memory's rate; of the program, instruction by instruction the slower of the
two; by the compiler's own cycles, which GPUs' does not count; and the products'
milliseconds as share of the larger of the last two. Collectives are not in it.
Where cosines are kept (`head.keep_mib`) three products are enough.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp

from jamsface_jax import head as head_lib
from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import compiler_options
from jamsface_jax.head import WEIGHTS, Head
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.pods.accelerators import Topology, open_topologies
from jamsface_jax.pods.program import parse
from jamsface_jax.pods.step_cost import estimate
from jamsface_jax.pods.work import each_work
from jamsface_jax.run.components import make_components
from jamsface_jax.run.state import state_shapes
from jamsface_jax.settings.defaults import base_config, make_settings

BYTES = 16  # Of a weight: it and its momentum, read and written.


def main() -> None:
  """Reads the flags, compiles, prints a table as Markdown."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topologies", default="v5e:4x4", help="comma between")
  parser.add_argument("--classes", default="93431,360232,29000000")
  parser.add_argument("--batch", type=int, default=1024, help="of all devices")
  parser.add_argument("--dtypes", default="bfloat16,float32")
  parser.add_argument("--size", type=int, default=512, help="of an embedding")
  arguments = parser.parse_args()
  columns = (
    "topology", "dtype", "classes", "a device", "products / four",
    "moved / least", "instructions", "four ms", "least moved ms",
    "estimate ms", "cycles ms", "four of it",
  )  # fmt: skip
  print("".join(f"| {name} " for name in columns) + "|")
  print("|---" * len(columns) + "|")
  for topology in open_topologies(arguments.topologies.split(",")):
    for dtype in arguments.dtypes.split(","):
      for classes in map(int, arguments.classes.split(",")):
        cells = row(topology, dtype, classes, arguments.batch, arguments.size)
        print("".join(f"| {cell} " for cell in cells) + "|", flush=True)


def row(
  topology: Topology, dtype: str, classes: int, batch: int, size: int
) -> tuple[str, ...]:
  """Compiles the head for a topology; the cells of its row."""
  config = base_config()
  config.model.name = "iresnet"  # Of whatever size: it is not compiled.
  config.model.stages = (1,)
  config.model.width = 0.125
  config.model.embedding_size = size
  config.data.batch_size = batch
  config.head.product_dtype = dtype
  config.head.chunk_classes = chunk_classes(topology.platform)
  settings = make_settings(config)
  mesh = sharding.make_mesh(
    settings.mesh.model, topology.devices, topology.slices
  )
  components = make_components(settings, classes, classes)
  head: Head = components.head
  shapes = state_shapes(components, settings.data.image_size, mesh)

  by_example = jax.NamedSharding(mesh, sharding.BATCH)
  embeddings = jax.ShapeDtypeStruct(
    (batch, size), jnp.float32, sharding=by_example
  )
  labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=by_example)
  step = partial(
    head_step,
    head=head,
    mesh=mesh,
    optimizer=components.optimizers.weights,
  )
  weights = shapes.opt_state["head"]["weights"]
  compiled = (
    jax.jit(
      step,
      donate_argnums=(0, 1),
      compiler_options=compiler_options(topology.platform),
    )
    .lower(shapes.params["head"], weights, embeddings, labels)
    .compile()
  )
  one = topology.accelerator
  passes = one.float32_passes if one else 1
  program = parse(compiled.as_text() or "")
  work = list(each_work(program, float32_passes=passes))
  held = head.padded_classes // mesh.shape["model"]
  examples = batch // mesh.shape["data"]
  four = 4 * 2 * examples * held * size
  least = BYTES * held * size
  cells = (
    topology.name,
    dtype,
    f"{classes:,}",
    f"{held:,}",
    f"{sum(w.operations * w.runs for w in work) / four:.2f}",
    f"{sum(w.bytes * w.runs for w in work) / least:.2f}",
    f"{sum(w.runs for w in work):,}",
  )
  if one is None:
    return (*cells, *[""] * 5)  # Of CPUs no peak is known.
  times = estimate(work, [], topology, mesh.shape)
  four_seconds = four * (1 if dtype == "bfloat16" else passes) / one.peak
  return (
    *cells,
    f"{1e3 * four_seconds:.3f}",
    f"{1e3 * least / one.bandwidth:.3f}",
    f"{1e3 * times.compute:.3f}",
    f"{1e3 * times.compiler:.3f}" if times.compiler else "",
    f"{four_seconds / max(times.compute, times.compiler):.0%}",
  )


def head_step(params, opt_state, x_bd, y_b, *, head, mesh, optimizer):
  """Loss and update, as the step of training has them."""
  loss = head_lib.loss(
    params, x_bd, y_b, head=head, mesh=mesh, loss_state={}, key=None
  )
  new = head_lib.update_weights(
    params,
    opt_state,
    loss.residuals,
    jnp.array(True),
    optimizer=optimizer,
    clip_norm=0.0,
    head=head,
    mesh=mesh,
    sample=None,
  )
  return params | {WEIGHTS: new.weights}, new.opt_state, loss.embedding_gradient


if __name__ == "__main__":
  main()
