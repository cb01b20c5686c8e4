"""Writes a trained network in a format of others, and checks it."""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.export
import numpy as np

from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import compiler_options
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.errors import InputError, RunError
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.version import __version__
from jamsface_jax.weights import onnx_file, weight_files
from jamsface_jax.weights.pytorch_names import to_pytorch

NORMALIZATION = "pixel / 127.5 - 1"
PLATFORMS = ("cpu", "cuda", "tpu")

# Batches that a network is compared at, and how far the largest difference may
# be from 0, as a share of the largest number.
CHECKED_BATCHES = (1, 4, 64)
TOLERANCE = 1e-4

# uint8 pixels [N, H, W, 3] to float32 [N, D].
Network = Callable[[np.ndarray], np.ndarray]


def export(
  run: RunDirectory,
  format: str,
  output: str,
  *,
  step: int | None,
  input_dtype: str,
) -> None:
  """Writes one file; see the flags of this command.

  The file has another name until it is complete and has been checked: onnx and
  stablehlo by running them, the others by reading them.

  Raises:
    InputError: no such network, `output` exists, or a package is missing.
    RunError: what was written computes something else than the network.
  """
  if os.path.exists(output):
    raise InputError(
      f"--output={output!r} exists: give the name of a new file."
    )
  if format == "onnx":
    onnx_file.packages()  # Before anything takes long.
  config = read_settings(run)
  mesh = sharding.make_mesh(-1)
  _, variables, stored = open_embedder(
    run, step=step, batch_size=mesh.size, flip=False, mesh=mesh
  )
  config = replaced(config, {"model.dtype": "float32"})
  partial = output + ".partial"
  try:
    try:
      _write(
        partial,
        format,
        make_model(config),
        jax.device_get(variables),
        describe(config, stored),
        image_size=config.data.image_size,
        uint8=input_dtype == "uint8",
      )
      os.replace(partial, output)
    finally:
      if os.path.exists(partial):
        os.remove(partial)
  except OSError as error:
    raise InputError(
      f"--output={output!r} cannot be written ({error.strerror}): give another"
      " file."
    ) from None
  size = os.path.getsize(output) / 2**20
  print(f"{output}: {size:.1f} MiB, step {stored['step']} of {run.path}")


def describe(config: Settings, stored: dict[str, Any]) -> dict[str, str]:
  """What an exported file says of itself, as texts.

  Args:
    config: of the work directory.
    stored: the checkpoint's metadata, with its step.
  """
  described = {
    "producer": f"jamsface_jax {__version__}",
    "architecture": config.model.name,
    "model": json.dumps(dataclasses.asdict(config.model), sort_keys=True),
    "image_size": str(config.data.image_size),
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
  variables: dict,
  metadata: dict[str, str],
  *,
  image_size: int,
  uint8: bool,
) -> None:
  """Writes and checks a file."""
  arrays = to_pytorch(model, variables)
  if format in ("safetensors", "numpy"):
    write = {
      "safetensors": weight_files.write_safetensors,
      "numpy": weight_files.write_npz,
    }[format]
    write(path, arrays, metadata)
    _check_arrays(path, arrays)
    return

  kind = "pixels uint8" if uint8 else "normalised float32"
  if format == "onnx":
    last = ", {0}, {0}, 3]" if uint8 else ", 3, {0}, {0}]"
    metadata |= {"input": f"{kind} [N" + last.format(image_size)}
    data = onnx_file.build(
      model, arrays, metadata, image_size=image_size, uint8=uint8
    )
  else:
    metadata |= {"input": f"{kind} [N, {image_size}, {image_size}, 3]"}
    data = _stablehlo(
      model, variables, metadata, image_size=image_size, uint8=uint8
    )
  with open(path, "wb") as file:
    file.write(data)
  run = _open_onnx if format == "onnx" else _open_stablehlo
  _check(path, run(path, uint8), model, variables, image_size)


def _stablehlo(
  model: nn.Module,
  variables: dict,
  metadata: dict[str, str],
  *,
  image_size: int,
  uint8: bool,
) -> bytes:
  """An artefact of jax.export that holds the variables."""

  def forward(images):
    images = normalize(images) if uint8 else images
    return model.apply(variables, images, train=False)

  # The one text of an artefact that jax.export hands back.
  forward.__name__ = json.dumps(metadata)
  (batch,) = jax.export.symbolic_shape("N")
  images = jax.ShapeDtypeStruct(
    (batch, image_size, image_size, 3), np.uint8 if uint8 else np.float32
  )
  exported = jax.export.export(jax.jit(forward), platforms=PLATFORMS)(images)
  return bytes(exported.serialize())


def _open_onnx(path: str, uint8: bool) -> Network:
  return onnx_file.session(path)


def _open_stablehlo(path: str, uint8: bool) -> Network:
  with open(path, "rb") as file:
    loaded = jax.export.deserialize(bytearray(file.read()))
  call = jax.jit(loaded.call)
  return lambda pixels: call(pixels if uint8 else normalize(pixels))


def _check(
  path: str,
  network: Network,
  model: nn.Module,
  variables: dict,
  image_size: int,
) -> None:
  """Compares what was written with the network, on noise."""
  rng = np.random.default_rng(0)
  reference = jax.jit(
    lambda variables, pixels: model.apply(
      variables, normalize(pixels), train=False
    ),
    compiler_options=compiler_options(jax.default_backend()),
  )
  for batch in CHECKED_BATCHES:
    shape = (batch, image_size, image_size, 3)
    pixels = rng.integers(0, 256, shape, np.uint8)
    expected = np.asarray(reference(variables, pixels))
    difference = np.abs(np.asarray(network(pixels)) - expected).max()
    share = difference / np.abs(expected).max()
    if not share < TOLERANCE:
      raise RunError(
        f"{path!r} computes something else than the network: embeddings of"
        f" {batch} images differ by {difference:.2g}, {share:.2g} of the"
        " largest number."
      )
    print(
      f"batch {batch}: largest difference {difference:.2g}, {share:.1g} of the"
      " largest number"
    )


def _check_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
  """Reads back what was written."""
  found = weight_files.read(path).arrays
  if list(found) != list(arrays) or not all(
    np.array_equal(found[name], arrays[name], equal_nan=True) for name in arrays
  ):
    raise RunError(
      f"{path!r} does not read back as it was written: look at the disk."
    )
