"""What computes a network: JAX, or onnxruntime, faster on some processors."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8

from jamsface_jax.embedding.embedder import Embedder, Opener, open_embedder
from jamsface_jax.errors import InputError
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import onnx_file, onnx_graph
from jamsface_jax.weights.comparison import Network, check, reference
from jamsface_jax.weights.pytorch_names import to_pytorch

CHECKED_BATCH = 4  # Images that both engines embed before the first of a user.


class OnnxEmbedder(Embedder):
  """Embeds by onnxruntime, on the processor, in float32.

  Args:
    network: maps images to embeddings, see `comparison.Network`; the variables
      are in it, and those that methods are given are not looked at.
    others: as of `Embedder`.
  """

  engine = "onnxruntime"

  def __init__(self, network: Network, *, flip: bool, **others: Any):
    super().__init__(flip=flip, **others)
    self._network = network
    self._flip = flip

  def start(
    self, variables: dict[str, Any], images: UInt8[np.ndarray, "n h w 3"]
  ) -> Float32[np.ndarray, "n d"]:
    """Embeds one batch, and waits for it; see `Embedder`."""
    embeddings = self._network(images)
    if self._flip:
      embeddings += self._network(np.ascontiguousarray(images[:, :, ::-1]))
    return embeddings


def open_in_onnxruntime(
  run: RunDirectory,
  *,
  step: int | None,
  batch_size: int,
  flip: bool,
  mesh: Mesh,
) -> tuple[Embedder, dict[str, Any], dict[str, Any]]:
  """Opens the network of a run as `open_embedder` does.

  The network is compared with JAX's, on noise, before it is given out.

  Raises:
    InputError: as of `open_embedder`; packages are missing, or this is no
      machine for it.
    RunError: onnxruntime computes something else than JAX.
  """
  platforms = {device.platform for device in mesh.devices.flat}
  if platforms != {"cpu"}:
    raise InputError(
      "--engine=onnxruntime computes on processors, and this machine has a"
      f" {' and a '.join(sorted(platforms))}: leave it out."
    )
  if mesh.is_multi_process:
    raise InputError(
      "--engine=onnxruntime needs all of a batch in each process, and here"
      f" {jax.process_count()} share it: start one process."
    )
  onnx_file.packages()  # Before anything takes long.
  _, variables, metadata = open_embedder(
    run, step=step, batch_size=batch_size, flip=flip, mesh=mesh
  )
  settings = read_settings(run)
  size = settings.data.image_size
  model = make_model(
    replaced(settings, {"model.dtype": "float32", "model.lanes": 1})
  )
  graph = onnx_graph.build(
    model,
    to_pytorch(model, jax.device_get(variables)),
    {},
    image_size=size,
    uint8=True,
  )
  network = onnx_file.graph_session(graph)
  check(
    "onnxruntime",
    network,
    reference(model, variables),
    count=CHECKED_BATCH,
    image_size=size,
  )
  embedder = OnnxEmbedder(
    network,
    model=model,
    mesh=mesh,
    batch_size=batch_size,
    image_size=size,
    flip=flip,
  )
  return embedder, variables, metadata


_OPENERS: dict[str, Callable[..., Any]] = {
  Embedder.engine: open_embedder,
  OnnxEmbedder.engine: open_in_onnxruntime,
}


def opener(engine: str) -> Opener:
  """What opens the network of a run for an engine.

  Raises:
    InputError: there is no such engine.
  """
  if engine not in _OPENERS:
    raise InputError(
      f"engine={engine!r} is unknown: use one of {', '.join(_OPENERS)}."
    )
  return _OPENERS[engine]


def add_flag(parser: argparse.ArgumentParser) -> None:
  """Lets people choose the engine of a command."""
  parser.add_argument(
    "--engine",
    choices=list(_OPENERS),
    default=Embedder.engine,
    help="what computes the network; onnxruntime: on processors, where it may"
    " be faster, see docs/performance.md",
  )
