"""How images are made numbers for a network: colour order, mean, deviation."""

import dataclasses
import re

from jamsface_jax.errors import InputError
from jamsface_jax.models.entry import MIDDLE

NORMALIZATION = "pixel / 127.5 - 1"  # What networks here take.
# In the order red, green, blue; torchvision's are of pixels / 255.
_NAMED = {
  "insightface": (MIDDLE, MIDDLE),
  "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
  NORMALIZATION: (MIDDLE, MIDDLE),
}
_NUMBER = r"\d+(?:\.\d*)?"
_LIST = rf"{_NUMBER}(?:,{_NUMBER},{_NUMBER})?"


@dataclasses.dataclass(frozen=True)
class Normalization:
  """(pixel - mean) / std, pixels in [0, 255].

  Attributes:
    mean: of red, green and blue.
    std: likewise.
  """

  mean: tuple[float, ...] = MIDDLE
  std: tuple[float, ...] = MIDDLE

  def __str__(self) -> str:
    """In words, as files and messages say it."""
    if self == USUAL:
      return NORMALIZATION
    mean, std = (
      f"{numbers[0]:g}" if len(set(numbers)) == 1 else f"{numbers}"
      for numbers in (self.mean, self.std)
    )
    return f"(pixel - {mean}) / {std}"


USUAL = Normalization()
PIXELS = Normalization((0.0,) * 3, (1.0,) * 3)  # As they are.


def parse(text: str) -> Normalization:
  """Reads what `--normalization` says.

  Args:
    text: a name of this file, or MEAN:STD, each a number or three with commas,
      of red, green and blue.

  Raises:
    InputError: it is neither.
  """
  if text in _NAMED:
    return Normalization(*_NAMED[text])
  if not re.fullmatch(f"{_LIST}:{_LIST}", text):
    raise InputError(
      f"--normalization={text!r} is not known: give MEAN:STD of pixels in [0,"
      " 255], such as 127.5:128 or 123.7,116.3,103.5:58.4,57.1,57.4, or one of"
      " insightface, imagenet."
    )
  mean, std = (
    tuple(map(float, part.split(","))) * (1 if "," in part else 3)
    for part in text.split(":")
  )
  if min(std) <= 0:
    raise InputError(
      f"--normalization={text!r} divides by 0: give a deviation above 0."
    )
  return Normalization(mean, std)
