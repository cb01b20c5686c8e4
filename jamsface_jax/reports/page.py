"""The self-contained page of one run or several."""

import base64
import functools
import hashlib
import html
import importlib.resources
from collections.abc import Sequence

from jamsface_jax.reports.runs import Run, read_run, run_names
from jamsface_jax.reports.sections import (
  data,
  headlines,
  images,
  margins,
  origin,
  settings,
  time,
  training,
  verification,
)
from jamsface_jax.storage.run_directory import RunDirectory, RunFile
from jamsface_jax.version import __version__


def write(
  directories: Sequence[RunDirectory],
  output: RunFile,
  *,
  every_face: bool = False,
) -> None:
  """Writes a page, whole or not at all.

  Args:
    directories: those of the runs; the first is what others are compared with.
    output: the HTML file.
    every_face: show images of data sets that are not synthetic too.

  Raises:
    InputError: see `read_run`.
  """
  names = run_names(directories)
  runs = [
    read_run(one, name) for one, name in zip(directories, names, strict=True)
  ]
  content = page(runs, every_face=every_face)
  output.write_text(content)


def page(runs: Sequence[Run], *, every_face: bool) -> str:
  """The whole page.

  Args:
    runs: at least one.
    every_face: see `write`.
  """
  style, script = _asset("report.css"), _asset("report.js")
  sections = [
    ("Summary", headlines(runs)),
    ("Training", training(runs)),
    ("Verification", verification(runs)),
    ("Margins", margins(runs)),
    ("Data", data(runs)),
    ("Images", images(runs, every_face=every_face)),
    ("Time", time(runs)),
    ("Settings", settings(runs)),
    ("How it was run", origin(runs)),
  ]
  title = " and ".join(run.name for run in runs)
  items = "".join(
    f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name, _ in sections
  )
  body = "\n".join(
    f'<section aria-labelledby="{_anchor(name)}">'
    f'<h2 id="{_anchor(name)}">{name}</h2>\n{content}\n</section>'
    for name, content in sections
  )
  # Whatever a name or a setting may hold: nothing but these two runs here, and
  # nothing is fetched.
  policy = (
    f"default-src 'none'; img-src data:; style-src {_hash(style)};"
    f" script-src {_hash(script)}"
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="jamsface_jax {__version__}">
<title>{html.escape(title)}: jamsface_jax</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
<nav aria-label="Sections"><ul>{items}</ul></nav>
</header>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


@functools.cache
def _asset(name: str) -> str:
  files = importlib.resources.files(__package__)
  return files.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _anchor(name: str) -> str:
  return name.lower().replace(" ", "-")
