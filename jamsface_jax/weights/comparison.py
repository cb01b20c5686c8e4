"""Whether two forms of a network compute the same, on noise."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.devices.compiling import compiler_options

# uint8 pixels [N, H, W, 3], RGB, to float32 [N, D].
Network = Callable[[UInt8[np.ndarray, "n h w 3"]], Float32[np.ndarray, "n d"]]


@dataclasses.dataclass(frozen=True)
class Difference:
  """How far embeddings of the same images are from each other.

  Attributes:
    largest: the largest difference of two numbers.
    share: the same, as a share of the largest number.
  """

  largest: float
  share: float


def in_float32() -> AbstractContextManager[None]:
  """A context in which networks are traced as they compute in float32.

  Accelerators multiply float32 with 10 bits or fewer unless told otherwise: two
  forms of a network then differ by 4e-4 of the largest number on an H100, whose
  only fault is that one of them ran on a CPU.
  """
  return jax.default_matmul_precision("highest")


def reference(model: nn.Module, variables: dict[str, Any]) -> Network:
  """The network itself, compiled, as exact as float32 is.

  Args:
    model: the backbone.
    variables: its `params` and `batch_stats`.
  """

  @jax.jit(compiler_options=compiler_options(jax.default_backend()))
  def forward(
    variables: dict[str, Any], pixels: UInt8[Array, "n h w 3"]
  ) -> Any:
    with in_float32():
      return model.apply(variables, normalize(pixels), train=False)

  return lambda pixels: np.asarray(forward(variables, pixels))


def noise(
  rng: np.random.Generator, count: int, image_size: int
) -> UInt8[np.ndarray, "n h w 3"]:
  """So many images of random pixels."""
  return rng.integers(0, 256, (count, image_size, image_size, 3), np.uint8)


def difference(
  found: Float[np.ndarray, "n d"], expected: Float[np.ndarray, "n d"]
) -> Difference:
  """Compares embeddings; not a number where one of them is not."""
  largest = np.abs(found - expected).max()
  return Difference(float(largest), float(largest / np.abs(expected).max()))
