"""Who is in images in memory: what `jamsface_jax.load` gives."""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence

import numpy as np

from jamsface_jax.embedding.face_embedder import FaceEmbedder, Image
from jamsface_jax.errors import InputError
from jamsface_jax.searching import threshold as thresholds
from jamsface_jax.searching.finding import Finding, find_parts
from jamsface_jax.searching.gallery import Gallery, gather
from jamsface_jax.searching.network import Network
from jamsface_jax.searching.sources import Part, maker, open_source
from jamsface_jax.storage.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Verification:
  """Whether two images show one person.

  Attributes:
    same: whether the cosine reaches the threshold.
    cosine: of their embeddings, -1 to 1.
    threshold: where one person begins.
  """

  same: bool
  cosine: float
  threshold: float


class Recognizer(FaceEmbedder):
  """Embeds, compares and names faces; made by `jamsface_jax.load`.

  Images are as `FaceEmbedder` takes them: aligned faces, or photographs where
  `align=True` is said.
  """

  def __init__(self, run: RunDirectory, *, step: int | None, flip: bool):
    super().__init__(run, step=step, flip=flip)
    self._run = run
    self._flip = flip

  def verify(
    self,
    first: Image,
    second: Image,
    *,
    far: float = 1e-3,
    threshold: float | None = None,
    align: bool = False,
  ) -> Verification:
    """Whether two images show one person.

    Args:
      first: an image.
      second: the other.
      far: the share of pairs of two people that would pass, by the evaluation
        of the run.
      threshold: a cosine instead.
      align: they are photographs: their faces are found first.

    Raises:
      InputError: no image, no face, or no threshold at this rate.
    """
    least = self._threshold(far, threshold)
    images = [self._prepared(one, align) for one in (first, second)]
    one, other = (self(image) for image in images)
    cosine = float(np.clip(one @ other, -1, 1))
    return Verification(cosine >= least, cosine, least)

  def gallery(self, people: str) -> Gallery:
    """Opens a gallery, to be searched often.

    Args:
      people: a folder with one for each person, or what else the command
        jamsface_jax.search takes.

    Raises:
      InputError: none of these, or nothing in it.
    """
    if not self._flip:
      raise InputError(
        "load(..., flip=False) embeds other than galleries are: leave it out."
      )
    network = Network(self._run, step=self.step)
    source = open_source(people, "gallery", network, "gallery")
    with tempfile.TemporaryDirectory() as scratch:
      return gather(source, scratch)

  def find(
    self,
    images: Image | Sequence[Image],
    people: str | Gallery,
    *,
    most: int = 3,
    far: float = 1e-3,
    threshold: float | None = None,
    align: bool = False,
  ) -> list[Finding]:
    """Names who is in images: the nearest person, or nobody.

    Args:
      images: one or several.
      people: who they may be: see `gallery`.
      most: candidates of an image, at most.
      far: see `verify`; of one comparison: a stranger has one with each image
        of the gallery.
      threshold: a cosine instead.
      align: they are photographs: their faces are found first.

    Returns:
      What was found for each image, whose name is None for nobody.

    Raises:
      InputError: no image, no face, no such gallery, or no threshold at this
        rate.
    """
    least = self._threshold(far, threshold)
    gallery = self.gallery(people) if isinstance(people, str) else people
    if gallery.network not in (None, self._maker):
      raise InputError(
        "people: they were embedded by another network: embed them again."
      )
    several = isinstance(images, Sequence) and not isinstance(images, str)
    several |= isinstance(images, np.ndarray) and images.ndim == 4
    listed = list(images) if several else [images]
    rows = self([self._prepared(one, align) for one in listed])
    names = [
      one if isinstance(one, str) else str(number)
      for number, one in enumerate(listed)
    ]
    part = Part(names, np.full(len(names), -1), rows, {})
    return list(find_parts([part], gallery, 0, k=most, threshold=least))

  @functools.cached_property
  def _maker(self) -> str:
    network = Network(self._run, step=self.step)
    return maker(network.fingerprint, flip=self._flip)

  def _threshold(self, far: float, threshold: float | None) -> float:
    if threshold is not None:
      return thresholds.given(threshold).cosine
    return thresholds.measured(self._run, far).cosine

  def _prepared(self, image: Image, align: bool) -> Image:
    return self.aligned(image) if align else image
