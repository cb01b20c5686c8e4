"""Face-recognition training with joint adaptive margins (JAMsFace) in JAX."""

__version__ = "0.1.0"
