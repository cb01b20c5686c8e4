"""Writes a trained network in a format of others, and checks it."""

import dataclasses
import json
import os
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.devices import sharding
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage import lock
from jamsface_jax.storage.durable import sync_directory, sync_file
from jamsface_jax.storage.plain_file import partial_path, plain
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.storage.write_error import write_error
from jamsface_jax.version import __version__
from jamsface_jax.weights import onnx_file, onnx_graph, weight_files
from jamsface_jax.weights.comparison import (
  Network,
  difference,
  in_float32,
  noise,
  reference,
)
from jamsface_jax.weights.normalization import NORMALIZATION
from jamsface_jax.weights.pytorch_names import to_pytorch

PLATFORMS = ("cpu", "cuda", "tpu")

# Batches that a network is compared at, and how far the largest difference may
# be from 0, as a share of the largest number.
CHECKED_BATCHES = (1, 4, 64)
TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 0.02  # Where numbers are kept in float16.


def export(
  run: RunDirectory,
  format: str,
  output: str,
  *,
  step: int | None,
  input_dtype: str,
  dtype: str = "float32",
) -> None:
  """Writes one file.

  The file has another name until it is complete and has been checked: onnx and
  stablehlo by running them, the others by reading them.

  Args:
    run: whose network it is.
    format: "onnx", "stablehlo", "safetensors" or "numpy".
    output: path of the new file.
    step: which of the run's checkpoints; None: the newest.
    input_dtype: "uint8" for pixels or "float32" for what is normalised, of onnx
      and stablehlo.
    dtype: "float32" or "float16", of the numbers in the file; networks compute
      in float32 with either.

  Raises:
    InputError: no such network, `output` exists, a package is missing, or a
      number is beyond float16.
    RunError: what was written computes something else than the network.
  """
  if os.path.exists(output):
    raise InputError(
      f"--output={output!r} exists: give the name of a new file."
    )
  if format == "onnx":
    onnx_file.packages()  # Before anything takes long.
  config = read_settings(run)
  with lock.hold_file(output, "--output"):
    mesh = sharding.make_mesh(-1)
    _, variables, stored = open_embedder(
      run, step=step, batch_size=mesh.size, flip=False, mesh=mesh
    )
    config = replaced(config, {"model.dtype": "float32"})
    # As any device takes it, not as that of the one who exports likes it best.
    plain = make_model(replaced(config, {"model.lanes": 1}))
    partial = partial_path(output)
    try:
      try:
        _write(
          partial,
          format,
          plain,
          jax.device_get(variables),
          dtype,
          describe(config, stored) | {"numbers": dtype},
          image_size=config.data.image_size,
          uint8=input_dtype == "uint8",
        )
        sync_file(partial)
        os.replace(partial, output)
        sync_directory(os.path.dirname(output))
      finally:
        if os.path.exists(partial):
          os.remove(partial)
    except OSError as error:
      raise write_error("--output", output, error) from None
  size = os.path.getsize(output) / 2**20
  print(f"{output}: {size:.1f} MiB, step {stored['step']} of {run.path}")


def _rounded(variables: dict[str, Any], dtype: str) -> dict[str, Any]:
  """The variables with so many bits.

  Raises:
    InputError: a number is beyond them.
  """
  if dtype == "float32":
    return variables
  with np.errstate(over="ignore"):
    found = jax.tree.map(lambda array: np.asarray(array, dtype), variables)
  if not all(np.isfinite(array).all() for array in jax.tree.leaves(found)):
    raise InputError(
      f"--dtype={dtype} cannot hold the largest numbers of this network: leave"
      " it out."
    )
  return found


def describe(config: Settings, stored: dict[str, Any]) -> dict[str, str]:
  """What an exported file says of itself, as texts.

  Args:
    config: the settings of the run.
    stored: the checkpoint's metadata, with its step.
  """
  size = config.data.image_size
  described = {
    "producer": f"jamsface_jax {__version__}",
    "architecture": config.model.name,
    "model": json.dumps(dataclasses.asdict(config.model), sort_keys=True),
    "image_size": str(size),
    "images": (
      f"faces cut out to {size}x{size}, eyes, nose and mouth on ArcFace's"
      " template, bilinear; cut out already and of another size, resized to it,"
      " bilinear, by area where they shrink"
    ),
    "color_order": stored["color_order"],
    "normalization": NORMALIZATION,
    "embedding_size": str(config.model.embedding_size),
    "embeddings": "not scaled to length 1",
    "step": str(stored["step"]),
    "data_fingerprint": str(stored["data_fingerprint"]),
  }
  if "origin" in stored:  # Imported.
    described["origin"] = json.dumps(stored["origin"])
  return described


def _write(
  path: str,
  format: str,
  model: nn.Module,
  variables: dict[str, Any],
  dtype: str,
  metadata: dict[str, str],
  *,
  image_size: int,
  uint8: bool,
) -> None:
  """Writes and checks a file.

  Raises:
    InputError: a number is beyond `dtype`.
    RunError: it is not what was to be written.
  """
  expected = reference(model, variables)
  variables = _rounded(variables, dtype)
  tolerance = TOLERANCE if dtype == "float32" else ROUNDED_TOLERANCE
  if format in ("safetensors", "numpy"):
    write = {
      "safetensors": weight_files.write_safetensors,
      "numpy": weight_files.write_npz,
    }[format]
    arrays = to_pytorch(model, variables)
    write(path, arrays, metadata)
    _check_arrays(path, arrays)
    if dtype != "float32":
      rounded = jax.tree.map(lambda a: np.asarray(a, np.float32), variables)
      found = reference(model, rounded)
      _check(path, found, expected, image_size, tolerance)
    return
  write = {"onnx": _write_onnx, "stablehlo": _write_stablehlo}[format]
  network = write(
    path, model, variables, metadata, image_size=image_size, uint8=uint8
  )
  _check(path, network, expected, image_size, tolerance)


def _write_onnx(
  path: str,
  model: nn.Module,
  variables: dict[str, Any],
  metadata: dict[str, str],
  *,
  image_size: int,
  uint8: bool,
) -> Network:
  """Writes a graph; returns it as onnxruntime opens it."""
  shape = f"{image_size}, {image_size}"
  layout = f"[N, {shape}, 3]" if uint8 else f"[N, 3, {shape}]"
  data = onnx_graph.build(
    model,
    to_pytorch(model, variables),
    metadata | {"input": f"{_kind(uint8)} {layout}"},
    image_size=image_size,
    uint8=uint8,
  )
  with open(path, "wb", opener=plain) as file:
    file.write(data)
  return onnx_file.session(path)


def _write_stablehlo(
  path: str,
  model: nn.Module,
  variables: dict[str, Any],
  metadata: dict[str, str],
  *,
  image_size: int,
  uint8: bool,
) -> Network:
  """Writes an artefact of jax.export; returns it as that opens it."""
  layout = f"[N, {image_size}, {image_size}, 3]"

  def forward(images: Array) -> Any:
    ready = normalize(images) if uint8 else images
    # Within what is exported, so that the file has them as they are kept: of
    # arrays of JAX, since it widens those of NumPy before.
    exact = jax.tree.map(
      lambda array: jnp.asarray(array).astype(np.float32), variables
    )
    with in_float32():
      return model.apply(exact, ready, train=False)

  # The one text of an artefact that jax.export hands back.
  forward.__name__ = json.dumps(
    metadata | {"input": f"{_kind(uint8)} {layout}"}
  )
  # JAX takes a name for 1 or more: so may no image come, too.
  (batch,) = jax.export.symbolic_shape("N - 1")
  images = jax.ShapeDtypeStruct(
    (batch, image_size, image_size, 3), np.uint8 if uint8 else np.float32
  )
  exported = jax.export.export(jax.jit(forward), platforms=PLATFORMS)(images)
  with open(path, "wb", opener=plain) as file:
    file.write(exported.serialize())
  with open(path, "rb", opener=plain) as file:
    loaded = jax.export.deserialize(bytearray(file.read()))
  call = jax.jit(loaded.call)
  return lambda pixels: np.asarray(call(pixels if uint8 else normalize(pixels)))


def _kind(uint8: bool) -> str:
  """What goes into an exported network, in words."""
  return "pixels uint8" if uint8 else "normalised float32"


def _check(
  path: str,
  network: Network,
  expected: Network,
  image_size: int,
  tolerance: float,
) -> None:
  """Compares what was written with the network, on noise.

  Raises:
    RunError: they differ.
  """
  rng = np.random.default_rng(0)
  for batch in CHECKED_BATCHES:
    pixels = noise(rng, batch, image_size)
    found = difference(network(pixels), expected(pixels))
    if not found.share < tolerance:
      raise RunError(
        f"{path!r} computes something else than the network: embeddings of"
        f" {batch} images differ by {found.largest:.2g}, {found.share:.2g} of"
        " the largest number."
      )
    print(
      f"batch {batch}: largest difference {found.largest:.2g},"
      f" {found.share:.1g} of the largest number"
    )


def _check_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
  """Reads back what was written.

  Raises:
    RunError: it is not the same.
  """
  found = weight_files.read(path).arrays
  if list(found) != list(arrays) or not all(
    np.array_equal(found[name], arrays[name], equal_nan=True) for name in arrays
  ):
    raise RunError(
      f"{path!r} does not read back as it was written: look at the disk."
    )
