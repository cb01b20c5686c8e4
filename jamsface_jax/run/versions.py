"""Versions of the packages that decide what a run computes."""

import importlib.metadata

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
)


def versions() -> dict[str, str]:
  """Installed versions, by the name of the package."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}
