"""From bytes on disk to uint8 batches, without JAX."""
