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

from data_prep.formats.insightface_bin import read_bin
from data_prep.writing import conversion_flags, upload
from data_prep.writing.verification_set import write_verification_set
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.plain_file import plain


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_bin", __doc__)
  parser.add_argument("--input", required=True, help="the .bin file")
  arguments = conversion_flags.parse(parser, argv)
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      name=arguments.name,
      skip_bad=arguments.skip_bad,
      threads=arguments.threads,
    ),
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
    with open(source, "rb", opener=plain) as file:
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


if __name__ == "__main__":
  run_command(main)
