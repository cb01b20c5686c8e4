"""An HTML page that needs nothing else and fetches nothing."""

import base64
import functools
import hashlib
import importlib.resources

from jamsface_jax.reports.markup import Html, element, joined
from jamsface_jax.version import __version__


def document(title: str, body: Html, *, script: Html | None = None) -> str:
  """The whole page.

  Args:
    title: that a browser shows.
    body: the element.
    script: the one that stands in it and may run; None: none may.
  """
  parts = [_head(title, script), body]
  return f"<!DOCTYPE html>\n{element('html', joined(parts), lang='en')}\n"


def _head(title: str, script: Html | None) -> Html:
  style = asset("report.css")
  # Whatever a name or a setting may hold: nothing but one style and one script
  # runs here, and nothing is fetched.
  policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}"
  if script is not None:
    policy += f"; script-src {_hash(script)}"
  viewport = "width=device-width, initial-scale=1"
  parts = [
    element("meta", charset="utf-8"),
    element("meta", http_equiv="Content-Security-Policy", content=policy),
    element("meta", name="viewport", content=viewport),
    element("meta", name="generator", content=f"jamsface_jax {__version__}"),
    element("title", f"{title}: jamsface_jax"),
    element("link", rel="icon", href="data:,"),
    element("style", style),
  ]
  return element("head", joined(parts))


@functools.cache
def asset(name: str) -> Html:
  """A style or a script of this folder, in which HTML escapes nothing."""
  files = importlib.resources.files("jamsface_jax.reports")
  return Html(files.joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
