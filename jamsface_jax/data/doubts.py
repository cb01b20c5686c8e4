"""What a data set has that is hardly meant, though it can be trained on."""

from collections.abc import Sequence

import numpy as np

from jamsface_jax.data import decoding
from jamsface_jax.data.records import RecordReader

_PROBES = 64  # Images looked at.
# Aligned faces are upright templates: 112 x 112, 96 x 112, 160 x 160, 224 x 224
# and, of CelebA, 178 x 218, all of one size.
_MOST_SIDE = 300
_MOST_RATIO = 1.25
_MOST_SIZES = 4


def find_doubts(reader: RecordReader) -> list[str]:
  """Looks at counts and at the heads of some images.

  Args:
    reader: of the data set.

  Returns:
    A sentence for each doubt, with the remedy; none if all seems meant.
  """
  doubts = []
  if reader.index.classes == 1:
    doubts.append(
      "there is one class, so that there is nothing to tell apart: give images"
      " of at least two people"
    )
  ids = np.linspace(0, len(reader) - 1, _PROBES).astype(np.int64)
  sizes = []
  for record in reader.read(np.unique(ids).tolist()):
    try:
      sizes.append(decoding.read_size(record.image))
    except decoding.DecodingError:
      pass  # Whoever reads it says so.
  if seem_photographs(sizes):
    height, width = max(sizes)
    doubts.append(
      f"the images do not look like aligned faces ({len(set(sizes))} size(s),"
      f" such as {width} x {height}): cut the faces out with data_prep.align"
      " first"
    )
  return doubts


def seem_photographs(sizes: Sequence[tuple[int, int]]) -> bool:
  """Whether images of these sizes are plainly no aligned faces.

  Args:
    sizes: the (height, width) of some images.
  """
  doubtful = sum(
    max(size) > _MOST_SIDE or max(size) > _MOST_RATIO * min(size)
    for size in sizes
  )
  return 2 * doubtful > len(sizes) or len(set(sizes)) > _MOST_SIZES
