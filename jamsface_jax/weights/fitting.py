"""What a file of weights tells of its network besides the name."""

import numpy as np

from jamsface_jax.errors import InputError
from jamsface_jax.models import family
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.weights.onnx_file import OnnxFile
from jamsface_jax.weights.state_dict import SLOPES, has_modules, modules
from jamsface_jax.weights.weight_files import WeightFile


def fitted(
  path: str,
  settings: Settings,
  file: WeightFile | OnnxFile,
  embedding_size: int | None,
  activation: str | None,
) -> Settings:
  """Takes from the arrays what settings a published name leaves free.

  Args:
    path: the file, for messages.
    settings: with the name of the model.
    file: what was read; it does not say its settings itself.
    embedding_size: as asked; None: what the file has.
    activation: of a MobileFaceNet, as asked; None: what the file has.

  Raises:
    InputError: an activation without parameters is not asked for.
  """
  arrays = [a for a in _arrays(file) if a.dtype.kind not in "iub" and a.ndim]
  found: dict[str, object] = {}
  if embedding_size is None:
    found["model.embedding_size"] = _embedding_size(file)
  kind = family(settings.model.name)
  if kind != "vit":
    found["model.side_crop"] = _side_crop(settings.data.image_size, arrays)
  if kind == "iresnet":
    found["model.squeeze_reduction"] = _squeeze_reduction(arrays)
  if kind == "mobilefacenet":
    activation = activation or _activation(file, arrays)
    if activation is None:
      raise InputError(
        f"--activation is missing: {path!r} has no PReLU, and does not say"
        " whether its network has relu or relu6; look at its own code."
      )
    found["model.activation"] = activation
  elif activation is not None:
    raise InputError(
      f"--activation={activation} is for a MobileFaceNet only: leave it out."
    )
  return replaced(settings, found)


def _arrays(file: WeightFile | OnnxFile) -> list[np.ndarray]:
  """In the order of the network, where that is known."""
  if isinstance(file, OnnxFile) and file.layers is not None:
    return [a for layer in file.layers for a in layer.arrays.values()]
  return list(file.arrays.values())


def _embedding_size(file: WeightFile | OnnxFile) -> int:
  """Rows of the last linear layer, or the length of the last statistics."""
  if isinstance(file, OnnxFile):
    if file.embedding_size or not file.layers:
      return file.embedding_size or 512
    kernels = [layer.arrays["weight"] for layer in file.layers]
    return next((len(a) for a in kernels[::-1] if a.ndim > 1), 512)
  linear = [len(a) for a in file.arrays.values() if a.ndim == 2]
  vectors = [len(a) for a in file.arrays.values() if a.ndim == 1]
  return (linear or vectors or [512])[-1]


def _side_crop(image_size: int, arrays: list[np.ndarray]) -> int:
  """Columns that a kernel over the whole, narrow map tells of."""
  for array in arrays:
    if array.ndim == 4 and array.shape[2] > array.shape[3] > 1:
      height, width = array.shape[2:]
      return round(image_size * (1 - width / height) / 2)
  return 0


def _squeeze_reduction(arrays: list[np.ndarray]) -> int:
  """Channels for one number in between, of the first pair of 1x1 kernels."""
  kernels = [a.shape for a in arrays if a.ndim == 4 and a.shape[2:] == (1, 1)]
  for one, other in zip(kernels, kernels[1:], strict=False):
    if one[0] < one[1] and other[:2] == one[1::-1]:
      return one[1] // one[0]
  return 0


def _activation(
  file: WeightFile | OnnxFile, arrays: list[np.ndarray]
) -> str | None:
  """What a MobileFaceNet has after its convolutions; None: no array says."""
  if isinstance(file, OnnxFile):
    # Beside Clip, Relu is that of a first stage that is always so.
    kinds = file.activations
    return (
      "prelu" if "PRelu" in kinds else "relu6" if "Clip" in kinds else "relu"
    )
  tensors = {
    name: array.shape
    for name, array in file.arrays.items()
    if array.dtype.kind not in "iub" and array.ndim
  }
  if has_modules(tensors):
    kinds = [module.kind for module in modules(tensors).values()]
    return "prelu" if SLOPES in kinds else None
  kernels = sum(array.ndim > 1 for array in arrays)
  vectors = sum(array.ndim == 1 for array in arrays)
  # A normalisation has four vectors; a PReLU is one more.
  return "prelu" if vectors > 4 * kernels else None
