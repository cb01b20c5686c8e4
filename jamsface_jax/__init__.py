"""Face-recognition training with joint adaptive margins (JAMsFace) in JAX.

embedder = jamsface_jax.load("runs/mine")
embeddings = embedder(images)  # uint8 [N, H, W, 3] RGB to float32 [N, D]
"""

from typing import TYPE_CHECKING

from jamsface_jax.version import __version__ as __version__

if TYPE_CHECKING:
  from jamsface_jax.embedding.face_embedder import FaceEmbedder


def load(
  workdir: str, *, step: int | None = None, flip: bool = True
) -> "FaceEmbedder":
  """Opens a trained network, to turn images in memory into embeddings.

  Args:
    workdir: work directory of a training run.
    step: number of the checkpoint to open; None for the newest.
    flip: add the embedding of the mirrored image, as evaluation does.

  Returns:
    A callable object; see `inference.FaceEmbedder`.

  Raises:
    InputError: not a work directory, or no such checkpoint.
  """
  # Here, so that data_prep imports this package without JAX.
  from jamsface_jax.embedding.face_embedder import FaceEmbedder
  from jamsface_jax.storage.run_directory import RunDirectory

  return FaceEmbedder(RunDirectory(workdir), step=step, flip=flip)
