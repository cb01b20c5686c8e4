"""Face-recognition training with joint adaptive margins (JAMsFace) in JAX.

In Python, a trained network turns faces into embeddings and names:

  network = jamsface_jax.load("runs/mine")
  network(images)                  # Embeddings, float32 [N, D], of length 1.
  network.faces("photo.jpg")       # All faces: boxes, landmarks, embeddings.
  network.verify("a.jpg", "b.jpg") # One person? Cosine and threshold.
  network.find("a.jpg", "people")  # Who of a folder with one for each person.

An image is a path, an image of PIL, or a uint8 RGB array [H, W, 3]: a face, cut
out upright by data_prep.align; or a photograph, to `faces`, and to the others
with align=True.

On the command line, `jamsface` or `python -m jamsface_jax` lists what there is:
training, evaluation, embedding, search, export.
"""

import sys
from typing import TYPE_CHECKING

from jamsface_jax.version import __version__ as __version__

if sys.argv[:1] == ["-m"]:  # Python looks for the module that it shall run.
  from jamsface_jax import interruption

  interruption.end_at_once()  # The first thing, before more is imported.
  from jamsface_jax import commands

  commands.refuse_what_is_no_command(sys.orig_argv)

if TYPE_CHECKING:
  from jamsface_jax.searching.recognizer import Recognizer


def load(
  workdir: str, *, step: int | None = None, flip: bool = True
) -> "Recognizer":
  """Opens a trained network, to embed, compare and name faces.

  Args:
    workdir: work directory of a training run, or of imported weights.
    step: number of the checkpoint to open; None for the newest.
    flip: add the embedding of the mirrored image, as evaluation does.

  Returns:
    A callable object with `faces`, `verify` and `find`; see
    `searching.recognizer.Recognizer`.

  Raises:
    InputError: not a work directory, or no such checkpoint.
  """
  # Here, so that data_prep imports this package without JAX.
  from jamsface_jax.searching.recognizer import Recognizer
  from jamsface_jax.storage.run_directory import RunDirectory

  return Recognizer(RunDirectory(workdir), step=step, flip=flip)
