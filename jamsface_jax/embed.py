"""Writes the embeddings of images as NumPy files.

  python -m jamsface_jax.embed --workdir=W --images=INPUT --output=E

INPUT is a folder, an image, a data set, a text file with a path on each line,
or a .npy array uint8 [N, H, W, 3], of aligned faces; or of photographs, whose
faces --align finds, all of them (pip install 'jamsface-jax[detect]'). Row k
belongs to image k: of the sorted paths of a folder, otherwise of the order of
the input; with --align, to face k, from left to right in each photograph.

E/embeddings.npy  float32 [N, D] (--float16), rows of length 1 unless --raw
E/labels.npy      int64 [N]: the class of a data set, the number of the image's
                  folder in the order of names, or -1 for an array
E/paths.txt       a line an image
E/boxes.npy       float32 [N, 4], with --align: left, top, width, height
E/landmarks.npy   float32 [N, 5, 2], with --align: eyes, nose, mouth corners
E/norms.npy       float32 [N], with --norms: lengths before scaling to 1
E/broken.txt      row, path and reason of each image that cannot be read, if
                  there are any; their embeddings and norms are NaN
E/meta.json       what made them; written last

The same command goes on where it was interrupted, and it runs on several
processes as jamsface_jax.main does: each writes its part of the files.
"""

import argparse

import jax

from jamsface_jax import shell
from jamsface_jax.data.local_copy import keep_copies_in
from jamsface_jax.detection.photographs import EVERY, WHICH
from jamsface_jax.devices import processes
from jamsface_jax.devices.program_cache import keep_programs
from jamsface_jax.embedding.files import META_FILE
from jamsface_jax.embedding.writing import embed
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.bucket import SCHEME
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.storage.upload import write_folder


def main() -> int:
  """Reads the flags and embeds."""
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.embed"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, help="of a training run")
  add("--images", required=True, help="folder, data set, list or .npy array")
  add("--output", required=True, help="directory of the embeddings")
  add("--root", help="what a list's paths are relative to; default: its folder")
  add("--color_order", choices=("RGB", "BGR"), help="of an array's pixels")
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add(
    "--align",
    nargs="?",
    choices=WHICH,
    const=EVERY,
    help="find the faces of photographs: all, or the large and central one",
  )
  add("--raw", action="store_true", help="do not scale rows to length 1")
  add("--norms", action="store_true", help="write norms.npy too")
  add("--float16", action="store_true", help="store half precision")
  add(
    "--no_flip",
    action="store_true",
    help="embed the image alone, without adding its mirror image",
  )
  add(
    "--batch_size",
    type=int,
    help="images at once, a process; default: the run's evaluation.batch_size",
  )
  add("--threads", type=int, help="batches read at once; default: the run's")
  add("--data_cache", default="", help="for copies of data sets in buckets")
  processes.add_flags(parser)
  arguments = parser.parse_args()
  run = RunDirectory(arguments.workdir)
  keep_programs()
  keep_copies_in(arguments.data_cache)
  with processes.joined(arguments):
    if arguments.output.startswith(SCHEME) and jax.process_count() > 1:
      raise InputError(
        f"--output={arguments.output!r} is written by one process, and"
        f" {jax.process_count()} were started: give a directory that they"
        " share, and copy it when it is whole."
      )
    write_folder(
      arguments.output,
      lambda output: embed(
        run,
        arguments.images,
        output,
        root=arguments.root,
        color_order=arguments.color_order,
        step=arguments.step,
        raw=arguments.raw,
        norms=arguments.norms,
        float16=arguments.float16,
        flip=not arguments.no_flip,
        batch_size=arguments.batch_size,
        threads=arguments.threads,
        align=arguments.align,
      ),
      last=META_FILE,
      what="embeddings",
    )
  return 0


if __name__ == "__main__":
  run_command(main)
