r"""Converts a data set of TensorFlow Datasets, without TensorFlow.

  python -m data_prep.from_tfds --input=lfw --download --output=DIR
  python -m data_prep.from_tfds --input=~/tensorflow_datasets/my_faces/1.0.0 \
      --output=DIR

--input is a name known to TFDS, or the directory of a version that was prepared
as ArrayRecord (a builder's `download_and_prepare` with file_format
"array_record", which is what --download does). TFDS must have the images as
encoded files; they are copied as they are, and called CLASS/NUMBER.jpg with the
number of the example, because TFDS does not keep their names.

lfw is Labeled Faces in the Wild: 13,233 images of 5,749 people, 250x250, not
aligned. Its protocol, pairs.txt, names images by file and so cannot be used
with it: for verification take the original archive and data_prep.from_pairs.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.writing import conversion_flags, upload
from data_prep.writing.conversion import print_result, training_command
from data_prep.writing.loading import load_images
from data_prep.writing.writer import DatasetWriter
from jamsface_jax.data.folders import extension
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.file_state import file_state

_FILE_FORMAT = "array_record"
_LABELS_AT_ONCE = 1024

# A broken connection or disk, a package that is missing, another file there.
_PREPARATION_ERRORS = (
  OSError,
  ImportError,
  tfds.download.DownloadError,
  tfds.download.download_manager.NonMatchingChecksumError,
)


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the flags and converts."""
  parser = conversion_flags.make_parser("from_tfds", __doc__)
  add = parser.add_argument
  add("--input", required=True, help="TFDS name[/config][:version], or folder")
  add(
    "--split", default="train", help="of TFDS; slices such as train[:10%%] too"
  )
  add("--data_dir", help="where TFDS keeps data; default: TFDS's own")
  add(
    "--download",
    action="store_true",
    help="let TFDS download and prepare the data set if it is not there",
  )
  add("--image_feature", default="image", help="feature with the image")
  add("--label_feature", default="label", help="feature with the class")
  arguments = conversion_flags.parse(parser, argv)
  upload.write(
    arguments.output,
    lambda output: convert(
      arguments.input,
      output,
      name=arguments.name,
      split=arguments.split,
      data_dir=arguments.data_dir,
      download=arguments.download,
      image_feature=arguments.image_feature,
      label_feature=arguments.label_feature,
      skip_bad=arguments.skip_bad,
      threads=arguments.threads,
    ),
  )
  return 0


def convert(
  dataset: str,
  directory: str,
  *,
  name: str,
  split: str,
  data_dir: str | None,
  download: bool,
  image_feature: str,
  label_feature: str,
  skip_bad: bool,
  threads: int,
) -> None:
  """Writes the data set; see the flags of this command.

  Raises:
    InputError: TFDS does not have this, or not in this form, or a broken image.
  """
  builder = _open(dataset, data_dir, download)
  features = builder.info.features
  for feature in image_feature, label_feature:
    if feature not in features:
      raise InputError(
        f"--input {dataset!r} has no feature {feature!r}, only"
        f" {', '.join(features)}: choose with --image_feature and"
        " --label_feature."
      )
  if not isinstance(features[image_feature], tfds.features.Image):
    raise InputError(
      f"--image_feature {image_feature!r} of {dataset!r} is not an image:"
      " choose another."
    )
  try:
    source = builder.as_data_source(
      split=split, decoders={image_feature: tfds.decode.SkipDecoding()}
    )
  except (ValueError, KeyError, NotImplementedError) as error:
    raise InputError(
      f"--input {dataset!r} cannot be read as {_FILE_FORMAT}, split {split!r}"
      f" ({_first_line(error)}): choose another --split, or prepare it in that"
      " format."
    ) from None
  labels, classes = _read_labels(source, features[label_feature], label_feature)

  def load(number: int) -> bytes:
    return source[number][image_feature]

  with (
    ThreadPoolExecutor(threads) as pool,
    DatasetWriter(
      directory,
      name=name,
      classes=classes,
      source=f"tfds {builder.info.full_name} {split} {len(source)} {skip_bad}"
      f" {image_feature} {label_feature} {_states(builder.data_dir)}",
    ) as writer,
  ):
    rest = ((number, 0) for number in range(writer.position, len(labels)))
    loaded = load_images(rest, load, pool, check=True)
    for number, data, size in tqdm(
      loaded,
      initial=writer.position,
      total=len(labels),
      unit="image",
      disable=None,
    ):
      image = f"{classes[labels[number]]}/{number:08d}{extension(data)}"
      if not isinstance(size, str):
        writer.add(labels[number], image, data, size)
      elif skip_bad:
        writer.skip(image, size)
      else:
        raise InputError(
          f"example {number} of {dataset!r} cannot be read ({size}): prepare it"
          " again, or leave such images out with --skip_bad."
        )
  print_result(
    directory,
    writer.skipped,
    training_command(directory, len(labels)),
  )


def _states(directory: str) -> list[tuple[str, str]]:
  """What changes whenever a file of a prepared data set does."""
  return [
    (name, str(file_state(os.path.join(directory, name))))
    for name in sorted(os.listdir(directory))
  ]


def _open(
  dataset: str, data_dir: str | None, download: bool
) -> tfds.core.DatasetBuilder:
  """The builder, with the data prepared."""
  path = os.path.expanduser(dataset)
  try:
    if os.path.isdir(path):
      return tfds.builder_from_directory(path)
    builder = tfds.builder(dataset, data_dir=data_dir, file_format=_FILE_FORMAT)
  except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
    raise InputError(
      f"--input {dataset!r} is neither a name that TFDS knows nor the directory"
      f" of a prepared version ({_first_line(error)}): correct it."
    ) from None
  if not builder.is_prepared():
    if not download:
      raise InputError(
        f"--input {dataset!r} is not prepared in {str(builder.data_path)!r}:"
        " add --download, or give --data_dir."
      )
    try:
      # ty: ignore[missing-argument] a wrapper of TFDS hides that it is bound.
      builder.download_and_prepare()
    except _PREPARATION_ERRORS as error:
      reason = str(error).strip().split("\n")[-1]  # First comes the example.
      raise InputError(
        f"--input {dataset!r} cannot be prepared by TFDS ({reason[:200]}): mend"
        " that, or prepare it on another machine and give its directory."
      ) from None
  return builder


def _read_labels(
  source: Any, feature: tfds.features.FeatureConnector, key: str
) -> tuple[list[int], list[str]]:
  """Numbers the classes that occur; returns a label for each example.

  A ClassLabel keeps its order, anything else is sorted by name.
  """
  values = []
  for start in range(0, len(source), _LABELS_AT_ONCE):
    numbers = range(start, min(start + _LABELS_AT_ONCE, len(source)))
    values += [example[key] for example in source.__getitems__(numbers)]
  if isinstance(feature, tfds.features.ClassLabel):
    order = sorted({int(value) for value in values})
    classes = [feature.int2str(value) for value in order]
    values = [int(value) for value in values]
  else:
    values = [
      value.decode() if isinstance(value, bytes) else str(value)
      for value in values
    ]
    order = classes = sorted(set(values))
  label = {value: number for number, value in enumerate(order)}
  return [label[value] for value in values], classes


def _first_line(error: Exception) -> str:
  return str(error).strip().split("\n")[0][:200]


if __name__ == "__main__":
  run_command(main)
