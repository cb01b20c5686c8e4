"""From the images of a template to one embedding, as IJB is evaluated.

A template is the sum over its media of the mean over each medium's images, so
that a long video counts as much as a photograph. Three switches are usual, and
results differ by points between them, so each result says how they stood:

  F  flip sum: an image's embedding is that of it plus that of its mirror image
  D  detector score: an image counts in proportion to the detector's score
  N  feature norm: an image counts in proportion to its embedding's length

A setting is written as F1D1N0: with F and D, without N. (Some scripts write N1
for the opposite, lengths divided out.)
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, Real

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.cosines import row_lengths

_ROWS = 256  # Images weighed at once; more would multiply by more zeros.


@dataclasses.dataclass(frozen=True)
class Pooling:
  """How the images of a template are weighed; see above."""

  detector: bool
  norm: bool

  def __str__(self) -> str:
    return f"D{self.detector:d}N{self.norm:d}"


ALL = tuple(Pooling(d, n) for d in (True, False) for n in (True, False))


def parse_pooling(text: str) -> Pooling:
  """Reads a setting such as "D1N0".

  Raises:
    InputError: it is none.
  """
  found = re.fullmatch("D([01])N([01])", text)
  if not found:
    raise InputError(
      f"pooling {text!r} is not of the form D1N0: write D1 or D0 for the"
      " detector's score and N1 or N0 for the feature norm."
    )
  return Pooling(*(digit == "1" for digit in found.groups()))


class TemplatePooler:
  """Sums the images of all templates while their embeddings come in.

  Args:
    templates: template of each image, integers [N] in [0, T).
    media: medium of each image, integers [N]; numbers may recur in other
      templates.
    scores: the detector's score of each image, [N], above 0; None if no
      pooling uses it.
    poolings: the settings, each pooled in the same pass.
    what: what the embeddings are, for messages.
  """

  def __init__(
    self,
    templates: Int[np.ndarray, " n"],
    media: Int[np.ndarray, " n"],
    scores: Real[np.ndarray, " n"] | None,
    *,
    poolings: Sequence[Pooling],
    what: str,
  ):
    self._templates = np.asarray(templates, np.int64)
    self._poolings, self._what = poolings, what
    # The mean over a medium is a weight too: one over its images.
    _, medium = np.unique(np.asarray(media), return_inverse=True)
    key = self._templates * (medium.max() + 1) + medium
    _, which, counts = np.unique(key, return_inverse=True, return_counts=True)
    share = 1 / counts[which]
    self._weights = [
      _weighed(share, scores) if pooling.detector else share
      for pooling in poolings
    ]
    # One each, [T, D]; D is known when the first embeddings come.
    self._sums: list[Float32[np.ndarray, "t d"]] = []
    self._done = 0

  def add(self, embeddings: Float[np.ndarray, "n d"]) -> None:
    """Adds the embeddings of the next images.

    Args:
      embeddings: floating-point numbers [n, D], of the images after those added
        so far.

    Raises:
      InputError: an embedding is not finite, or is zero and has no direction.
    """
    if not self._sums:
      shape = self._templates.max() + 1, embeddings.shape[1]
      self._sums = [np.zeros(shape, np.float32) for _ in self._poolings]
    for start in range(0, len(embeddings), _ROWS):
      self._add(np.asarray(embeddings[start : start + _ROWS], np.float32))

  def _add(self, rows: Float32[np.ndarray, "n d"]) -> None:
    images = slice(self._done, self._done + len(rows))
    lengths = row_lengths(rows, first=self._done, what=self._what)
    templates, which = np.unique(self._templates[images], return_inverse=True)
    # As a product of matrices: weights [templates, n] times rows [n, D].
    weights = np.zeros((len(templates), len(rows)), np.float32)
    for sums, pooling, weight in zip(
      self._sums, self._poolings, self._weights, strict=True
    ):
      weight = weight[images] / (1 if pooling.norm else lengths)
      weights[which, np.arange(len(rows))] = weight
      sums[templates] += weights @ rows
    self._done += len(rows)

  def units(self) -> dict[Pooling, Float32[np.ndarray, "t d"]]:
    """The templates, scaled to length 1.

    Returns:
      float32 [T, D] for each pooling.

    Raises:
      InputError: a template's images cancel each other out.
    """
    if self._done != len(self._templates):
      raise ValueError(f"{self._done} of {len(self._templates)} images came.")
    for sums in self._sums:
      lengths = row_lengths(sums, first=0, what=f"templates of {self._what}")
      sums /= lengths[:, np.newaxis].astype(np.float32)
    return dict(zip(self._poolings, self._sums, strict=True))


def _weighed(
  share: Float[np.ndarray, " n"], scores: Real[np.ndarray, " n"] | None
) -> Float[np.ndarray, " n"]:
  if scores is None:
    raise ValueError("A pooling by detector scores needs them; got none.")
  return share * scores
