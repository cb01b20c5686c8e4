"""New images of the people trained on: who is told apart, by class size.

Verification asks for people never seen. Here the question is where a loss that
favours classes with few images should show it: is the nearest class of a new
image its own, and does that depend on how many images the class has?

Classes are also asked with log(images) / scale taken off their cosines, which
takes out what the softmax has learned of how often they come: logit adjustment
after training, as https://arxiv.org/abs/2007.07314 names it beside that of the
loss.
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from jamsface_jax.data.records import read_classes
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.test_set import Evaluation, prefixed

_PARTS = 10  # Parts of the classes, by size.


class KnownPeople:
  """Images of classes trained on, not trained on themselves.

  Args:
    source: the images.
    labels: the class trained on of each image, int [N].
    class_sizes: how many training images each class has, int [C].
  """

  def __init__(
    self,
    source: RecordSource,
    labels: Int[np.ndarray, " n"],
    class_sizes: Int[np.ndarray, " c"],
  ):
    self.source = source
    self.labels = labels
    self._sizes = class_sizes
    self._part_of_class = part_by_size(class_sizes)

  @property
  def name(self) -> str:
    """The name of the data set, which begins those of its metrics."""
    return self.source.name

  def rising_metrics(self) -> list[str]:
    """Names of the metrics that are better when larger."""
    return [
      f"{self.name}/{kind}{half}"
      for kind in ("accuracy", "adjusted_accuracy")
      for half in ("", "_poor_half", "_rich_half")
    ]

  def judge(
    self,
    true_cosine: Float[np.ndarray, " n"],
    hardest_cosine: Float[np.ndarray, " n"],
    adjusted_right: Bool[np.ndarray, " n"],
  ) -> Evaluation:
    """Sums up what `nearest_classes` found.

    Args:
      true_cosine: from each image to its class, float [N].
      hardest_cosine: from each image to the nearest other class, float [N].
      adjusted_right: whether its class is the nearest once each is lowered by
        its prior, see `class_priors`, bool [N].
    """
    right = true_cosine > hardest_cosine
    part = self._part_of_class[self.labels]
    parts = int(self._part_of_class.max()) + 1
    poor = part < parts / 2
    metrics = {
      "accuracy": _mean(right),
      "accuracy_poor_half": _mean(right[poor]),
      "accuracy_rich_half": _mean(right[~poor]),
      "adjusted_accuracy": _mean(adjusted_right),
      "adjusted_accuracy_poor_half": _mean(adjusted_right[poor]),
      "adjusted_accuracy_rich_half": _mean(adjusted_right[~poor]),
      "true_cosine": _mean(true_cosine),
      "hardest_cosine": _mean(hardest_cosine),
    }
    table = []
    for number in range(parts):
      of_part = part == number
      sizes = self._sizes[self._part_of_class == number]
      table.append(
        {
          "classes": len(sizes),
          "smallest": int(sizes.min()),
          "largest": int(sizes.max()),
          "images": int(of_part.sum()),
          "accuracy": _mean(right[of_part]),
          "adjusted_accuracy": _mean(adjusted_right[of_part]),
          "true_cosine": _mean(true_cosine[of_part]),
          "hardest_cosine": _mean(hardest_cosine[of_part]),
        }
      )
    return Evaluation(
      name=self.name,
      headline=f"nearest class right for {metrics['accuracy']:.2%} of"
      f" {len(right):,} new images, {metrics['accuracy_poor_half']:.2%} in the"
      " poorer half of the classes",
      metrics=prefixed(self.name, metrics),
      intervals={},
      facts={"images": len(right), "by_class_size": table},
    )


def open_known_people(
  data: str, training: str, image_size: int, class_sizes: Int[np.ndarray, " c"]
) -> list[KnownPeople]:
  """Opens data sets of new images of classes trained on.

  Args:
    data: directories with a comma between; "" for none. Classes are found by
      name.
    training: the setting `data.directory`: where the training data lie.
    image_size: height and width that the network sees.
    class_sizes: how many images each class of the training data has, int [C].

  Raises:
    InputError: not a data set, or one with a class that is not trained on.
  """
  if data and not training:
    raise InputError(
      f"evaluation.known={data!r} needs the classes of data.directory, which is"
      " '': train on a data set, or leave evaluation.known empty."
    )
  directories = [*filter(None, data.split(","))]
  numbers = {}
  if directories:
    trained = (read_classes(one) for one in training.split(","))
    numbers = {
      name: number
      for number, name in enumerate(itertools.chain.from_iterable(trained))
    }
  known_people = []
  for directory in directories:
    source = RecordSource(directory, image_size)
    names = read_classes(directory)
    strangers = [name for name in names if name not in numbers]
    if strangers:
      raise InputError(
        f"evaluation.known={directory!r} has the class {strangers[0]!r}, which"
        f" {training!r} does not have ({len(strangers)} of {len(names)}): give"
        " new images of classes that are trained on, as data_prep.from_folder"
        " takes them with --identities=TRAIN/classes.txt."
      )
    class_of = np.array([numbers[name] for name in names])
    known_people.append(
      KnownPeople(source, class_of[source.labels()], class_sizes)
    )
  return known_people


def part_by_size(
  class_sizes: Int[np.ndarray, " c"],
) -> Int64[np.ndarray, " c"]:
  """Cuts the classes into ten parts alike in number, the poorest first.

  Args:
    class_sizes: how many images each class has, int [C].

  Returns:
    The part of each class, int64 [C], 0 to 9; fewer parts if there are fewer
    classes. Classes of one size are told apart by their number.
  """
  order = np.argsort(class_sizes, kind="stable")
  parts = min(_PARTS, len(order))
  part = np.empty(len(order), np.int64)
  part[order] = np.arange(len(order)) * parts // len(order)
  return part


def _mean(values: np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else float("nan")
