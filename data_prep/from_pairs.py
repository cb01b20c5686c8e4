r"""Makes a verification set of an image folder and a public protocol.

  python -m data_prep.from_pairs --protocol=lfw --input=LFW_CROPS \
      --pairs=pairs.txt --output=DIR
  python -m data_prep.from_pairs --protocol=cfp-fp --input=CFP_CROPS \
      --pairs=cfp-dataset/Protocol --output=DIR

Only the images that the protocol names are written, as they are. --pairs is the
file that comes with the images, by --protocol:

  lfw      pairs.txt or pairsDevTest.txt; images Name/Name_0001.jpg
  cfp-fp   the folder Protocol: Pair_list_F.txt and Pair_list_P.txt number the
           images, Split/FP/01 to 10 have same.txt and diff.txt with a line
           `frontal,profile` a pair; images 001/frontal/01.jpg in --input
  cfp-ff   the same folder: Split/FF, both images frontal
  agedb30  a line `path1 path2 1|0` (or 1|-1) a pair; the folds are ten equal
           runs of lines
  calfw    pairs_CALFW.txt: two lines a pair, `image fold` for one person and
           `image 0` for two; the pairs of two people have no fold there and
           are cut, in order, into ten equal runs
  cplfw    pairs_CPLFW.txt: two lines a pair, `image 1` or `image 0`; both kinds
           are cut, in order, into ten equal runs
  list     a line `path1 path2 1|0 [fold]` a pair, paths in --input

An image may have another extension there than in --input. With --skip_bad pairs
of images that are missing or broken are left out; the folds of the others stay.

The class of an image is its person where the protocol's layout says who that is
(lfw, cfp, calfw, cplfw); for agedb30 and list its folder, or, without a folder,
the image itself.
"""

import os
from collections.abc import Sequence

from data_prep.formats.pair_protocols import PROTOCOLS, Images
from data_prep.writing import conversion_flags, exclusions, upload
from data_prep.writing.verification_set import write_verification_set
from jamsface_jax.data.decoding import DecodingError
from jamsface_jax.data.folders import read_file
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.protocols.groups_file import read_groups


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_pairs", __doc__)
  add = parser.add_argument
  add(
    "--protocol",
    required=True,
    choices=sorted(PROTOCOLS),
    metavar="NAME",
    help=f"one of {', '.join(sorted(PROTOCOLS))}",
  )
  add("--input", required=True, help="folder of the images")
  add("--pairs", required=True, help="the protocol's file; CFP: its folder")
  conversion_flags.add_groups(parser)
  arguments = conversion_flags.parse(parser, argv)
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      protocol=arguments.protocol,
      pairs=arguments.pairs,
      groups=arguments.groups,
      name=arguments.name,
      skip_bad=arguments.skip_bad,
      threads=arguments.threads,
    ),
  )
  return 0


def convert(
  source: str,
  directory: str,
  *,
  protocol: str,
  pairs: str,
  name: str,
  skip_bad: bool,
  threads: int,
  groups: str | None = None,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: a protocol that cannot be read or does not fit the images, or a
      broken image.
  """
  if not os.path.isdir(source):
    raise InputError(
      f"--input {source!r} is not a folder: give the folder of the images."
    )
  read, person = PROTOCOLS[protocol]
  found = read(pairs, Images(source, skip_missing=skip_bad))
  images = sorted({x for pair in found for x in (pair.first, pair.second)})
  people = sorted({person(image) for image in images})
  of_people = read_groups(groups, people) if groups else None

  known = exclusions.left_out_before(source)

  def load(image: str) -> bytes:
    try:
      return read_file(source, image)
    except FileNotFoundError:
      raise DecodingError(known.reason(image)) from None

  write_verification_set(
    directory,
    name=name,
    source=f"pairs {protocol} {os.path.abspath(source)}",
    images={image: person(image) for image in images},
    load=load,
    pairs=found,
    skip_bad=skip_bad,
    threads=threads,
    groups=of_people,
  )


if __name__ == "__main__":
  run_command(main)
