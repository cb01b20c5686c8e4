"""Lists images whose label is likely wrong, from the embeddings of a run.

  python -m jamsface_jax.embed --workdir=W --images=DATASET --output=E
  python -m data_prep.clean --embeddings=E --output=FILE

Nothing is deleted: FILE has a line `path<TAB>reason<TAB>score` for each finding
and the converters take it, whole or cut to the reasons that one believes, as
--exclude. How alike an image and a class are is the mean cosine between the
image and the class's (other) images. The reasons:

far_from_class       less like its own class than --min_similarity; the score
                     is its similarity.
nearer_to CLASS      more like this other class than like its own, and at least
                     --class_similarity; the score is by how much.
same_person_as CLASS two classes at least as alike as --class_similarity; listed
                     are the images of the smaller; the score is the classes'
                     similarity, the mean cosine between their images.
duplicate_of PATH    the cosine of the two images, at least
                     --duplicate_similarity; the one listed is less like its
                     class (by 0.001 or more) or comes later.

A CLASS is its label and one of its images. Duplicates are looked for among the
images that belong to, or are nearest to, the same class.

By default the first two thresholds follow from the data. Three similarities of
the images, to their own class, to a random other and to the nearest other, each
have a median and a spread (1.4826 times the median absolute deviation, so that
errors do not count): --min_similarity is equally many spreads away from own and
random, --class_similarity three spreads above nearest, so that an embedding
which cannot tell people apart lists few rather than half of them.
"""

import argparse
import collections
import dataclasses
import os
import shlex

import numpy as np

from data_prep.inspection.label_noise import (
  DUPLICATE_SIMILARITY,
  REASONS,
  Finding,
  SomeRows,
  find_noise,
)
from data_prep.writing.exclusions import HEADER
from jamsface_jax import shell
from jamsface_jax.embedding.files import BROKEN_FILE, read_broken
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage import lock
from jamsface_jax.storage.plain_array import map_array, read_array
from jamsface_jax.storage.text_lists import read_lines
from jamsface_jax.storage.whole_file import written_whole
from jamsface_jax.storage.write_error import write_error


def main() -> int:
  """Reads the flags and lists."""
  parser = argparse.ArgumentParser(
    prog=shell.name("data_prep.clean"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--embeddings", required=True, help="output of jamsface_jax.embed")
  add("--output", required=True, metavar="FILE", help="the list")
  add("--min_similarity", type=float, help="to the own class")
  add("--class_similarity", type=float, help="to another class")
  add(
    "--duplicate_similarity",
    type=float,
    default=DUPLICATE_SIMILARITY,
    help="of two images; default: %(default)s",
  )
  arguments = parser.parse_args()
  for name in ("min_similarity", "class_similarity", "duplicate_similarity"):
    value = getattr(arguments, name)
    if value is not None and not -1 <= value <= 1:
      raise InputError(f"--{name}={value} is no cosine: choose -1 to 1.")
  clean(
    arguments.embeddings,
    arguments.output,
    min_similarity=arguments.min_similarity,
    class_similarity=arguments.class_similarity,
    duplicate_similarity=arguments.duplicate_similarity,
  )
  return 0


def clean(
  directory: str,
  output: str,
  *,
  min_similarity: float | None,
  class_similarity: float | None,
  duplicate_similarity: float,
) -> None:
  """Writes the list; see the flags of this command.

  Raises:
    InputError: no embeddings there, or damaged ones.
  """
  embeddings, labels = read_embeddings(directory)
  broken = read_broken(directory)
  sound = np.setdiff1d(np.arange(len(labels)), broken)
  if not len(sound):
    raise InputError(
      f"--embeddings {directory!r} has no image that could be read, see"
      f" {BROKEN_FILE} there: embed images that can."
    )
  with lock.hold_file(output, "--output"):
    findings, thresholds = find_noise(
      embeddings if not len(broken) else SomeRows(embeddings, sound),
      labels[sound],
      min_similarity=min_similarity,
      class_similarity=class_similarity,
      duplicate_similarity=duplicate_similarity,
    )
    findings = [_renumber(one, sound) for one in findings]
    _write(directory, output, findings, labels)
  for name, value in thresholds.items():
    print(f"{name:<22} {value:.3f}")
  counts = collections.Counter(finding.reason for finding in findings)
  for reason in REASONS:
    print(f"{reason:<22} {counts[reason]:,}")
  images = len({finding.image for finding in findings})
  print(f"{images:,} of {len(labels):,} images listed in {output}")
  if len(broken):
    print(f"{len(broken):,} images of {BROKEN_FILE} were not looked at")
  exclude = shlex.quote(f"--exclude={output}")
  print(f"next: look at some, then convert again with {exclude}")


def _renumber(finding: Finding, sound: np.ndarray) -> Finding:
  """A finding by the rows of all images."""
  about = finding.about
  if finding.reason == "duplicate_of":
    about = int(sound[about])
  return dataclasses.replace(
    finding, image=int(sound[finding.image]), about=about
  )


def read_embeddings(directory: str) -> tuple[np.ndarray, np.ndarray]:
  """Opens what `jamsface_jax.embed` wrote.

  Args:
    directory: its --output.

  Returns:
    The embeddings, float32 [N, D], memory-mapped, and int64 [N] labels.

  Raises:
    InputError: a file is missing, or they do not belong together.
  """
  path = os.path.join(directory, "embeddings.npy")
  try:
    embeddings = map_array(path)
    labels = read_array(os.path.join(directory, "labels.npy"))
    paths = sum(1 for _ in read_lines(os.path.join(directory, "paths.txt")))
  except (OSError, ValueError) as error:
    raise InputError(
      f"--embeddings {directory!r} cannot be read ({error}): give the --output"
      " of jamsface_jax.embed."
    ) from None
  if (
    embeddings.ndim != 2
    or embeddings.dtype.kind != "f"
    or labels.shape != embeddings.shape[:1]
    or labels.dtype.kind not in "iu"
    or paths != len(labels)
    or not paths
  ):
    raise InputError(
      f"--embeddings {directory!r} has embeddings {embeddings.shape}, labels"
      f" {labels.shape} and {paths} paths, which do not belong together: embed"
      " again."
    )
  return embeddings, labels.astype(np.int64)


def _write(
  directory: str, output: str, findings: list[Finding], labels: np.ndarray
) -> None:
  """Writes the list, whole or not at all."""
  names, first = np.unique(labels, return_index=True)
  example = dict(zip(names.tolist(), first.tolist(), strict=True))
  wanted = {finding.image for finding in findings}
  for finding in findings:
    if finding.reason == "duplicate_of":
      wanted.add(finding.about)
    elif finding.about_class:
      wanted.add(example[finding.about])
  paths = {
    number - 1: text
    for number, text in read_lines(os.path.join(directory, "paths.txt"))
    if number - 1 in wanted
  }

  def reason(finding: Finding) -> str:
    if finding.reason == "duplicate_of":
      return f"duplicate_of {paths[finding.about]}"
    if finding.about_class:
      image = paths[example[finding.about]]
      return f"{finding.reason} {finding.about} ({image})"
    return finding.reason

  try:
    with written_whole(output) as file:
      file.write(f"{HEADER}\treason\tscore\n")
      file.writelines(
        f"{paths[finding.image]}\t{reason(finding)}\t{finding.score:.4f}\n"
        for finding in findings
      )
  except OSError as error:
    raise write_error("--output", output, error) from None


if __name__ == "__main__":
  run_command(main)
