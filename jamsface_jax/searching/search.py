"""A search from its inputs to its files."""

import collections
import os
import sys
from collections.abc import Iterator
from typing import Any

from jamsface_jax.data.images import Images
from jamsface_jax.detection.photographs import EVERY, ONE
from jamsface_jax.errors import InputError
from jamsface_jax.searching import files
from jamsface_jax.searching.finding import Finding, People, find
from jamsface_jax.searching.gallery import gather
from jamsface_jax.searching.network import Network
from jamsface_jax.searching.page import MOST, page
from jamsface_jax.searching.sources import Source, open_source
from jamsface_jax.searching.threshold import Threshold
from jamsface_jax.searching.trained_people import TrainedPeople
from jamsface_jax.storage import lock
from jamsface_jax.storage.paths import absolute, lies_within
from jamsface_jax.storage.whole_file import written_whole
from jamsface_jax.storage.write_error import write_error


def search(
  network: Network,
  images: str,
  gallery: str | None,
  output: str,
  *,
  threshold: Threshold | None,
  k: int,
  faces: bool,
  align: bool,
) -> None:
  """Writes who is in images; see the flags of the command.

  Args:
    network: embeds what is not embedded yet.
    images: who is to be named, see `open_source`.
    gallery: the people, likewise; None for those trained on.
    output: the directory of the files.
    threshold: from where on a name is given; None: always.
    k: candidates of an image, at most.
    faces: show images on the page.
    align: find the faces of photographs first: all that are to be named, and
      of the people the large and central one.

  Raises:
    InputError: nothing to search, embeddings that do not fit each other, or an
      output that cannot be written to.
  """
  for flag, path in (("--images", images), ("--gallery", gallery)):
    if path is not None:
      _refuse_inside(output, path, flag)
  with lock.hold(output, "--output"):
    probes = open_source(
      images, "--images", network, "images", EVERY if align else None
    )
    people, shown = _people(network, gallery, output, ONE if align else None)
    pictures = _pictures(probes, shown) if faces else None
    facts = _facts(images, gallery, probes, people, threshold)
    print("\n".join(f"{name}: {text}" for name, text in facts.items()))
    found = find(
      probes,
      people,
      k=k,
      threshold=None if threshold is None else threshold.cosine,
    )
    origin = {
      "images_from": absolute(images),
      "gallery": None if gallery is None else absolute(gallery),
      "people": len(people.people),
      "gallery_images": people.usable,
      "network": probes.network or people.network,
      "threshold": None if threshold is None else threshold.cosine,
      "far": None if threshold is None else threshold.far,
      "threshold_from": None if threshold is None else threshold.origin,
    }
    try:
      counts, first = _write(output, found, origin, min(k, len(people.people)))
      if len(probes) > MOST:
        facts["shown"] = f"the first {MOST:,} images of {len(probes):,}"
      with written_whole(os.path.join(output, files.PAGE_FILE)) as file:
        file.write(page(first, facts, pictures))
    except OSError as error:
      raise write_error("--output", output, error) from None
  print(
    f"{counts['named']:,} of {len(probes):,} images have a name"
    + (f", {counts['nobody']:,} are nobody's" if counts["nobody"] else "")
    + (f", {counts['broken']:,} cannot be read" if counts["broken"] else "")
  )
  names = files.CSV_FILE, files.JSON_FILE, files.PAGE_FILE
  print("written:", ", ".join(os.path.join(output, name) for name in names))


def _people(
  network: Network, gallery: str | None, scratch: str, align: str | None
) -> tuple[People, Images | None]:
  """Who is searched among, and their images if they are at hand."""
  if gallery is None:
    return TrainedPeople(
      network.run, step=network.step, fingerprint=network.fingerprint
    ), None
  source = open_source(gallery, "--gallery", network, "gallery", align)
  people = gather(source, scratch)
  if missing := len(source) - people.usable:
    print(
      f"warning: {missing:,} images of --gallery cannot be read and are left"
      " out.",
      file=sys.stderr,
    )
  return people, source.images


def _pictures(probes: Source, shown: Images | None) -> tuple[Images, Images]:
  if probes.images is None or shown is None:
    raise InputError(
      "--faces needs images on both sides, but one of --images and --gallery"
      " has embeddings alone: give the images, or leave --faces out."
    )
  return probes.images, shown


def _facts(
  images: str,
  gallery: str | None,
  probes: Source,
  people: People,
  threshold: Threshold | None,
) -> dict[str, str]:
  """What is searched how, in words."""
  facts = {
    "images": f"{len(probes):,} of {images}",
    "gallery": f"{len(people.people):,} people"
    + (
      " trained on, by their class weights, the prior taken off"
      if gallery is None
      else f", {people.usable:,} images of {gallery}"
    ),
  }
  if threshold is None:
    facts["threshold"] = "none: the nearest person is named, however unlike"
    return facts
  facts["threshold"] = f"cosine {threshold.cosine:.3f} ({threshold.origin})"
  wrong = threshold.wrong_names(people.usable)
  if wrong is not None:
    facts["strangers"] = (
      f"up to {wrong:.1%} of people who are not in the gallery get a name: the"
      f" FAR is that of one comparison, and there are {people.usable:,}"
    )
  return facts


def _write(
  output: str, found: Iterator[Finding], origin: dict[str, Any], k: int
) -> tuple[collections.Counter[str], list[Finding]]:
  """Writes the tables; returns counts of answers and what the page shows."""
  counts: collections.Counter[str] = collections.Counter()
  first = []
  for one in files.write_tables(output, found, origin, k=k):
    kind = "named" if one.name is not None else "nobody"
    counts["broken" if one.broken else kind] += 1
    if len(first) < MOST:
      first.append(one)
  return counts, first


def _refuse_inside(output: str, path: str, flag: str) -> None:
  """Refuses an output within a folder of images, which would count as one.

  Raises:
    InputError: it lies there.
  """
  if os.path.isdir(path) and lies_within(output, path):
    raise InputError(
      f"--output={output!r} lies within {flag}={path!r}: choose another"
      " directory."
    )
