"""Pictures for a report: samples of the training data, pairs of a test set.

Faces are people: who calls this says whether they may be shown.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from jamsface_jax.data.sources import RecordSource

_CLASSES, _IMAGES, _PAIRS = 6, 4, 6


@dataclasses.dataclass(frozen=True)
class Strip:
  """Images that belong together.

  Attributes:
    caption: what they are.
    images: JPEG files.
  """

  caption: str
  images: list[bytes]


def class_strips(source: RecordSource) -> list[Strip]:
  """Images of a few classes, from the largest to the smallest."""
  order = np.argsort(-source.class_sizes, kind="stable")
  places = np.linspace(0, len(order) - 1, min(_CLASSES, len(order)))
  labels = source.labels()
  strips = []
  for label in order[places.round().astype(int)]:
    ids = np.flatnonzero(labels == label)
    strips.append(
      Strip(
        f"class {label}, {len(ids):,} images",
        _encoded(source, ids[:_IMAGES]),
      )
    )
  return strips


def pair_strips(
  source: RecordSource, pairs: Sequence[Mapping[str, float]], kind: str
) -> list[Strip]:
  """The first pairs of a list.

  Args:
    source: the test set.
    pairs: as `results.json` has them, by numbers of images.
    kind: what they are, for the caption.
  """
  strips = []
  for pair in pairs[:_PAIRS]:
    ids = [int(pair["first"]), int(pair["second"])]
    names = " and ".join(source.names_of(ids))
    caption = f"{kind}: {names}, cosine {pair['cosine']:.3f}"
    strips.append(Strip(caption, _encoded(source, np.array(ids))))
  return strips


def _encoded(source: RecordSource, ids: np.ndarray) -> list[bytes]:
  images, _ = source.read(ids)
  quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
  return [
    cv2.imencode(".jpg", image[:, :, ::-1], quality)[1].tobytes()
    for image in images
  ]
