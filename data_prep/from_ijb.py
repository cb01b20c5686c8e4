r"""Makes a data set of IJB-B or IJB-C as InsightFace publishes them.

  cut -d' ' -f1-11 IJBC/meta/ijbc_name_5pts_score.txt > points.txt
  python -m data_prep.align --input=IJBC/loose_crop --output=IJBC/aligned \
      --landmarks=points.txt
  python -m data_prep.from_ijb --input=IJBC/aligned --meta=IJBC/meta \
      --output=DIR

IJB compares templates: sets of images of a person, those of one medium (a video
or a photograph) together. --meta holds, with any prefix:

  *_face_tid_mid.txt          `image template medium` a line
  *_template_pair_label.txt   `template template 1|0` a line, 1 for one person
  *_name_5pts_score.txt       optional: `image x1 y1 ... x5 y5 score` a line,
                              the images in the same order; only the detector's
                              score is kept, the points are for data_prep.align
  *_1N_*.csv                  optional galleries and probes: a header, then
                              template and subject in the first two columns

The class of an image is its template, so that a record's label is its row among
the templates, and classes.txt has their official numbers. Beside the images the
data set has, with templates by label:

  faces.csv            image,template,medium,score of every image in the file,
                       those left out by --skip_bad too
  template_pairs.npy   int32 [P, 3]: template, template, 1 or 0
  gallery_G1.csv, probe_mixed.csv, ...   template,subject: each template once
"""

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.formats.ijb import (
  TEMPLATE_PAIRS_FILE,
  Face,
  comparisons_left,
  find_file,
  read_faces,
  read_subjects,
  read_template_pairs,
  require_file,
  write_faces,
  write_subjects,
)
from data_prep.writing import conversion, conversion_flags, upload
from data_prep.writing.class_gaps import new_numbers
from data_prep.writing.conversion import Item
from data_prep.writing.exclusions import SKIPPED_FILE
from data_prep.writing.writer import SHARD_BYTES, DatasetAssembler
from jamsface_jax import shell
from jamsface_jax.data import records
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.whole_file import written_whole


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_ijb", __doc__)
  add = parser.add_argument
  add("--input", required=True, help="folder of the images")
  add("--meta", required=True, help="folder of the files above")
  conversion_flags.add_engine(parser)
  arguments = conversion_flags.parse(parser, argv)
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      meta=arguments.meta,
      name=arguments.name,
      skip_bad=arguments.skip_bad,
      engine=arguments.engine,
      threads=arguments.threads,
    ),
  )
  return 0


def convert(
  source: str,
  directory: str,
  *,
  meta: str,
  name: str,
  skip_bad: bool,
  threads: int | None,
  engine: str = "local",
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: files that cannot be read or contradict each other, or a broken
      image.
  """
  for flag, folder in ("--input", source), ("--meta", meta):
    if not os.path.isdir(folder):
      raise InputError(f"{flag} {folder!r} is not a folder: give IJB's.")
  # Everything that the files say is checked before anything is written.
  faces = read_faces(
    require_file(meta, "*_face_tid_mid.txt"),
    find_file(meta, "*_name_5pts_score.txt"),
  )
  templates = np.unique([face.template for face in faces])
  pairs = read_template_pairs(
    require_file(meta, "*_template_pair_label.txt"), templates
  )
  lists = {
    path.split("_1N_")[-1]: read_subjects(path, templates)
    for path in sorted(glob.glob(os.path.join(glob.escape(meta), "*_1N_*.csv")))
  }
  labels = np.searchsorted(templates, [face.template for face in faces])

  digest = hashlib.sha256(repr((faces, lists)).encode())
  digest.update(pairs.tobytes())
  with DatasetAssembler(
    directory,
    name=name,
    classes=[str(template) for template in templates],
    source=f"ijb {os.path.abspath(source)} {digest.hexdigest()} {skip_bad}",
    shard_bytes=shard_bytes,
  ) as assembler:
    _write(directory, faces, labels, pairs, lists)
    listed = (
      Item(label, face.image, 0)
      for face, label in zip(faces, labels.tolist(), strict=True)
    )
    conversion.convert(
      assembler,
      conversion.look_up_files(source, listed),
      conversion.read_folder(source, skip_bad=skip_bad),
      total=len(faces),
      engine=engine,
      threads=threads,
    )
    if assembler.dropped:  # And what is known of them.
      numbers = new_numbers(len(templates), assembler.dropped)
      left = comparisons_left(np.array(numbers), labels, pairs, lists)
      faces = [faces[k] for k in left.faces]
      labels, lists = left.labels, left.lists
      assembler.left_out = {
        "template pairs": len(pairs) - len(left.pairs),
        "gallery and probe entries": left.entries,
      }
      pairs = left.pairs
      _write(directory, faces, labels, pairs, lists)
  index, skipped = records.read_index(directory), assembler.skipped
  print(
    f"{index.images:,} images of {index.classes:,} templates, {len(pairs):,}"
    f" pairs ({pairs[:, 2].sum():,} of one person) and {len(lists)} lists in"
    f" {directory}"
    + (f"; {skipped} in {SKIPPED_FILE}" if skipped else "")
    + (f"; {_templates_left_out(index.left_out)}" if assembler.dropped else "")
  )
  embed = ("--workdir=W", f"--images={directory}", "--raw", "--output=E")
  print(f"next: {shell.command('jamsface_jax.embed', *embed)}")


def _write(
  directory: str,
  faces: Sequence[Face],
  labels: np.ndarray,
  pairs: np.ndarray,
  lists: Mapping[str, Mapping[int, int]],
) -> None:
  """Writes what is known of the templates."""
  write_faces(directory, faces, labels)
  path = os.path.join(directory, TEMPLATE_PAIRS_FILE)
  with written_whole(path, "wb") as file:
    np.save(file, pairs)
  for file, subjects in lists.items():
    write_subjects(os.path.join(directory, file), subjects)


def _templates_left_out(counts: Mapping[str, int]) -> str:
  """What templates without an image took along, for people."""
  parts = [
    f"{counts[name]:,} {name}"
    for name in ("template pairs", "gallery and probe entries")
    if name in counts
  ]
  templates = f"{counts['classes']:,} templates without an image left out"
  return templates + (f", with {' and '.join(parts)}" if parts else "")


if __name__ == "__main__":
  run_command(main)
