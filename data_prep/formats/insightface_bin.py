"""Verification sets of InsightFace, such as lfw.bin; nothing in them runs."""

import numpy as np

from data_prep.formats.pair_protocols import Pair, equal_runs
from jamsface_jax.data.folders import extension
from jamsface_jax.errors import InputError
from jamsface_jax.storage.plain_pickle import PickleRefusedError, loads


def read_bin(source: str, data: bytes) -> tuple[dict[str, bytes], list[Pair]]:
  """Reads a verification set.

  Args:
    source: the file's name, for messages.
    data: what the file holds.

  Returns:
    Maps image names to encoded bytes, in the order of the file, and the pairs.
    An image that pairs share in the pickle is there once.

  Raises:
    InputError: not such a pickle.
  """
  try:
    content = loads(data)
  except PickleRefusedError as error:
    raise InputError(
      f"--input {source!r} is not a plain verification set ({error}): nothing"
      " in it was run; get the file from where it was first published."
    ) from None
  if not isinstance(content, tuple | list) or len(content) != 2:
    raise InputError(
      f"--input {source!r} is not a pair of images and flags: give a"
      " verification .bin file."
    )
  same = _read_flags(source, content[1])
  images, names = _read_images(source, content[0])
  if len(names) != 2 * len(same):
    raise InputError(
      f"--input {source!r} has {len(names)} images for {len(same)} pairs"
      f" instead of {2 * len(same)}: get the file again."
    )
  pairs = [
    Pair(names[2 * k], names[2 * k + 1], bool(same[k]), int(fold))
    for k, fold in enumerate(equal_runs(len(same)))
  ]
  return images, pairs


def _read_flags(source: str, flags: object) -> list[int]:
  """The flags, from a list or an array of booleans or of 0 and 1."""
  if isinstance(flags, np.ndarray) and flags.ndim == 1:
    flags = flags.tolist()
  is_flags = isinstance(flags, tuple | list) and all(
    isinstance(flag, int) and flag in (0, 1) for flag in flags
  )
  if not is_flags or not flags:
    raise InputError(
      f"--input {source!r} does not have a flag, true or false, for each pair:"
      " give a verification .bin file."
    )
  return list(flags)


def _read_images(
  source: str, images: object
) -> tuple[dict[str, bytes], list[str]]:
  """The images by name, and the names in the order of the list."""
  if not isinstance(images, tuple | list):
    raise InputError(
      f"--input {source!r} does not have a list of images: give a verification"
      " .bin file."
    )
  encoded, names, known = {}, [], {}
  for number, image in enumerate(images):
    # By identity: a small file can refer to one image very often.
    if id(image) not in known:
      data = _encoded(source, number, image)
      name = f"{number // 2:05d}_{'ab'[number % 2]}{extension(data)}"
      encoded[name] = data
      if data:  # Nothing is one object, wherever it stands.
        known[id(image)] = name
    else:
      name = known[id(image)]
    names.append(name)
  return encoded, names


def _encoded(source: str, number: int, image: object) -> bytes:
  """The bytes of an image; none of an entry that is empty.

  Some writers keep them as bytes, others as an array, a row or a column.
  """
  if image is None:
    return b""
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.size not in (
      0,
      max(image.shape, default=0),
    ):
      raise InputError(
        f"--input {source!r}: image {number} is an array {image.dtype}"
        f" {image.shape} instead of an encoded image: give a file of JPEG or"
        " PNG images."
      )
  elif not isinstance(image, bytes | bytearray):
    raise InputError(
      f"--input {source!r}: image {number} is of type {type(image).__name__}:"
      " give a file of JPEG or PNG images."
    )
  return bytes(image)
