"""Images of the data, where they may be shown."""

import base64
import functools
from collections.abc import Callable, Sequence

from jamsface_jax import shell
from jamsface_jax.data.local_copy import is_here
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.reports import faces
from jamsface_jax.reports.markup import Html, element, joined, sentence
from jamsface_jax.reports.run_record import RunRecord

_ALL_PAIRS = ":all_pairs"


def images_section(runs: Sequence[RunRecord], *, every_face: bool) -> Html:
  """Images of the training data, and pairs of test sets that came out worst.

  Args:
    runs: those of the page.
    every_face: show images of data sets that are not synthetic too.
  """
  parts = []
  size = runs[0].settings["data.image_size"]
  for directory in dict.fromkeys(
    one for run in runs for one in run.settings["data.directory"].split(",")
  ):
    if directory:
      parts.append(_data_set(directory, size, every_face, faces.class_strips))
  for run in runs:
    size = run.settings["data.image_size"]
    choose = functools.partial(_hardest_pairs, run)
    for place in run.settings["evaluation.data"].split(","):
      directory = place.removesuffix(_ALL_PAIRS)
      if directory:
        parts.append(_data_set(directory, size, every_face, choose))
  if None in parts:
    paths = (f"--workdir={run.directory.path}" for run in runs)
    command = shell.command("jamsface_jax.report", *paths, "--faces")
    parts.append(
      sentence(
        "Not shown: images of data sets that are not synthetic. Faces are"
        f" people; {command} shows them."
      )
    )
  if not parts:
    return sentence("There are none: the run learned from noise.")
  return joined(part for part in parts if part is not None)


def _data_set(
  directory: str,
  size: int,
  every_face: bool,
  choose: Callable[[RecordSource], list[faces.Strip]],
) -> Html | None:
  """Images of a data set with a heading; None if they may not be shown."""
  if not is_here(directory):  # Not copied for some pictures.
    return None
  try:
    source = RecordSource(directory, size)
    if not (source.synthetic or every_face):
      return None
    strips = choose(source)
  except InputError as error:
    return sentence(f"Not shown: {error}")
  kind = "synthetic" if source.synthetic else "shown because --faces was given"
  return Html(
    element("h3", f"{source.name} ({kind})")
    + element("div", joined(map(_strip, strips)), class_="faces")
  )


def _strip(strip: faces.Strip) -> Html:
  images = [
    element(
      "img",
      src=f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
      alt=strip.caption,
    )
    for jpeg in strip.images
  ]
  return element("figure", *images, element("figcaption", strip.caption))


def _hardest_pairs(run: RunRecord, source: RecordSource) -> list[faces.Strip]:
  """The pairs that came out worst, where pairs are of images."""
  one = run.sets.get(source.name, {})
  if "roc" not in one or "templates" in one["facts"]:
    return []
  positives, negatives = one["hardest_positives"], one["hardest_negatives"]
  return [
    *faces.pair_strips(source, positives, "one person, least alike"),
    *faces.pair_strips(source, negatives, "two people, most alike"),
  ]
