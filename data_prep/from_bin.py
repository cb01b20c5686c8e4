"""Converts an InsightFace verification set, such as lfw.bin, to a data set.

  python -m data_prep.from_bin --input=lfw.bin --output=DIR

Such a file is a pickle of (2N encoded images, N flags): images 2k and 2k + 1
are pair k, flag k says whether they show one person. It is read without running
anything that it contains. Images are copied as they are and called 00000_a.jpg,
00000_b.jpg, ...; the folds are ten equal runs of pairs, as in InsightFace's own
evaluation. The file does not say who is shown: each image is a class of its
own, and the data set is for verification only.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from data_prep.from_pairs import Pair, equal_runs, write_verification_set
from data_prep.writing import conversion_flags
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.plain_pickle import PickleRefusedError, loads

# How the files of an image format start; JPEG if none fits.
_EXTENSIONS = {b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp"}


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_bin", __doc__)
  parser.add_argument("--input", required=True, help="the .bin file")
  arguments = conversion_flags.parse(parser, argv)
  convert(
    arguments.input,
    arguments.output,
    name=arguments.name,
    skip_bad=arguments.skip_bad,
    threads=arguments.threads,
  )
  return 0


def convert(
  source: str, directory: str, *, name: str, skip_bad: bool, threads: int
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: not such a file, a pickle with anything else in it, or a broken
      image.
  """
  try:
    with open(source, "rb") as file:
      data = file.read()
  except OSError as error:
    raise InputError(
      f"--input {source!r} cannot be read ({error.strerror}): give a .bin file."
    ) from None
  images, pairs = read_bin(source, data)
  write_verification_set(
    directory,
    name=name,
    source=f"bin {hashlib.sha256(data).hexdigest()}",
    images={image: image for image in images},
    load=images.__getitem__,
    pairs=pairs,
    skip_bad=skip_bad,
    threads=threads,
  )


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
      if isinstance(image, np.ndarray):
        if image.ndim != 1 or image.dtype != np.uint8:
          raise InputError(
            f"--input {source!r}: image {number} is an array {image.dtype}"
            f" {image.shape} instead of an encoded image: give a file of JPEG"
            " or PNG images."
          )
      elif not isinstance(image, bytes | bytearray):
        raise InputError(
          f"--input {source!r}: image {number} is of type"
          f" {type(image).__name__}: give a file of JPEG or PNG images."
        )
      data = bytes(image)
      name = f"{number // 2:05d}_{'ab'[number % 2]}{extension(data)}"
      known[id(image)] = name
      encoded[name] = data
    names.append(known[id(image)])
  return encoded, names


def extension(data: bytes) -> str:
  """The usual end of the file name of an encoded image."""
  return next(
    (end for start, end in _EXTENSIONS.items() if data.startswith(start)),
    ".jpg",
  )


if __name__ == "__main__":
  run_command(main)
