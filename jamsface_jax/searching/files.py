"""What a search leaves: names.csv, names.json and a page."""

import contextlib
import csv
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from jamsface_jax.searching.finding import NOBODY, Finding
from jamsface_jax.storage.whole_file import written_whole

CSV_FILE = "names.csv"
JSON_FILE = "names.json"
PAGE_FILE = "names.html"
FORMAT = 1


def write_tables(
  directory: str,
  findings: Iterable[Finding],
  origin: Mapping[str, Any],
  *,
  k: int,
) -> Iterator[Finding]:
  """Writes findings as they come and passes them on.

  Both files get their names when the last is written, and neither if anything
  goes wrong before.

  Args:
    directory: the output.
    findings: image by image.
    origin: JSON values that say what was searched how.
    k: the most candidates that an image has.

  Raises:
    OSError: the file system refuses.
  """
  with (
    written_whole(os.path.join(directory, CSV_FILE), newline="") as table,
    _json_list(os.path.join(directory, JSON_FILE), origin) as add,
  ):
    writer = csv.writer(table)
    writer.writerow(
      ["image", "name", "problem"]
      + [
        f"{what}{number}"
        for number in range(1, k + 1)
        for what in ("person", "cosine", "like")
      ]
    )
    for finding in findings:
      writer.writerow(_row(finding))
      add(_as_json(finding))
      yield finding


def _row(finding: Finding) -> list[str]:
  name = "" if finding.broken else finding.name or NOBODY
  row = [_text(finding.image), _text(name), finding.broken or ""]
  for one in finding.candidates:
    row += [_text(one.person), f"{one.cosine:.4f}", _text(one.image)]
  return row


def _as_json(finding: Finding) -> dict[str, Any]:
  """As JSON values; nobody is null."""
  found: dict[str, Any] = {"image": finding.image, "name": finding.name}
  if finding.broken:
    found["problem"] = finding.broken
  found["candidates"] = [
    {"person": one.person, "cosine": round(one.cosine, 6), "image": one.image}
    for one in finding.candidates
  ]
  return found


@contextlib.contextmanager
def _json_list(
  path: str, origin: Mapping[str, Any]
) -> Generator[Any, None, None]:
  """A file of an object whose last value is a list, written item by item."""
  with written_whole(path) as file:
    head = json.dumps({"format": FORMAT, **origin}, indent=1, allow_nan=False)
    file.write(head.removesuffix("\n}") + ',\n "images": [')
    comma = "\n  "

    def add(value: Mapping[str, Any]) -> None:
      nonlocal comma
      file.write(comma + json.dumps(value, allow_nan=False))
      comma = ",\n  "

    yield add
    file.write("\n ]\n}\n")


def _text(name: str) -> str:
  """A name of a file as UTF-8 can hold it."""
  return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
