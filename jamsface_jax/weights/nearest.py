"""Which of the networks here a file comes nearest to."""

import collections
import dataclasses
from collections.abc import Sequence

from jamsface_jax.models import PUBLISHED, backbone_shapes, family
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.weights.fitting import fitted
from jamsface_jax.weights.onnx_file import OnnxFile
from jamsface_jax.weights.pytorch_names import pytorch_shapes
from jamsface_jax.weights.weight_files import WeightFile

_LOOKED_AT = 3  # Networks whose arrays are listed: each takes a second.
_KIN = 0.5  # Share of a network's kernels below which it is another.

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Nearest:
  """A network and how much of it a file has.

  Attributes:
    name: of `models.PUBLISHED`.
    fits: kernels of the network that the file has too, by their shape.
    kernels: kernels of the network.
    other: a kernel that the file lacks, by its name and shape; "" if none.
    given: the shape of one that the file has instead; None if none.
  """

  name: str
  fits: int
  kernels: int
  other: str
  given: Shape | None

  def __str__(self) -> str:
    """A sentence without its end."""
    if self.fits < _KIN * self.kernels:
      return (
        f"none of the networks here is of this kind ({self.name} comes nearest"
        f" with {self.fits} of {self.kernels} kernels)"
      )
    said = f"--model={self.name} comes nearest"
    if not self.other:
      return f"{said}: all of its {self.kernels} kernels are there"
    instead = "nothing" if self.given is None else str(self.given)
    return (
      f"{said}: {self.fits} of its {self.kernels} kernels are there, but"
      f" {instead} instead of {self.other}"
    )


def nearest(file: WeightFile | OnnxFile) -> Nearest:
  """Compares the kernels of a file with those of the published networks.

  Biases and normalisations do not count: exporters fold them.
  """
  given = kernels_of(file)
  convolutions = sum(len(shape) == 4 for shape in given)
  # How many convolutions there are is known without making a network.
  names = sorted(
    PUBLISHED, key=lambda name: abs(PUBLISHED[name].convolutions - convolutions)
  )
  return max(
    (_compare(name, file, given) for name in names[:_LOOKED_AT]),
    key=lambda found: found.fits / max(found.kernels, len(given)),
  )


def kernels_of(file: WeightFile | OnnxFile) -> list[Shape]:
  """The shapes of a file's kernels, without axes of 1 at their end."""
  if isinstance(file, OnnxFile) and file.layers is not None:
    arrays = [layer.arrays["weight"] for layer in file.layers]
  else:
    arrays = list(file.arrays.values())
  # A PReLU's slopes in a graph are (C, 1, 1).
  return [a.shape for a in arrays if a.ndim in (2, 4) and a.dtype.kind == "f"]


def _compare(
  name: str, file: WeightFile | OnnxFile, given: Sequence[Shape]
) -> Nearest:
  # Whatever the activation, the kernels are the same.
  activation = "relu6" if family(name) == "mobilefacenet" else None
  settings = replaced(Settings(), {"model.name": name})
  model = make_model(fitted("", settings, file, None, activation))
  shapes = backbone_shapes(model, 112)
  wanted = {
    torch: shape
    for torch, shape in pytorch_shapes(model, shapes).items()
    if len(shape) in (2, 4)
  }
  left = collections.Counter(map(_plain, given))
  missing = []
  for torch, shape in wanted.items():
    if left[_plain(shape)]:
      left[_plain(shape)] -= 1
    else:
      missing.append((torch, shape))
  spare = [shape for shape in given if left[_plain(shape)]]
  return Nearest(
    name=name,
    fits=len(wanted) - len(missing),
    kernels=len(wanted),
    other=f"{missing[0][0]} {missing[0][1]}" if missing else "",
    given=spare[0] if spare else None,
  )


def _plain(shape: Shape) -> Shape:
  """A linear layer may be a convolution of 1x1."""
  return shape[:2] if shape[2:] == (1, 1) else shape
