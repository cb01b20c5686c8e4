"""HTML in elements: every text is escaped here and nowhere else."""

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"img", "link", "meta"})  # Elements without an end tag.


class Html(str):
  """Text that is HTML. All other text is escaped where an element takes it."""

  __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float) -> Html:
  """Makes an element.

  Args:
    tag: its name.
    *children: what stands in it, in order: HTML as it is, other text escaped.
    **attributes: values by name, escaped. In the names "_" stands for "-", and
      one at the end is there for Python: `class_`, `aria_label`.
  """
  named = "".join(
    f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for name, value in attributes.items()
  )
  if tag in _VOID:
    return Html(f"<{tag}{named}>")
  return Html(f"<{tag}{named}>{''.join(map(_escaped, children))}</{tag}>")


def joined(parts: Iterable[str]) -> Html:
  """Puts what is not empty below each other."""
  return Html("\n".join(_escaped(one) for one in parts if one))


def sentence(text: str) -> Html:
  """A paragraph that explains."""
  return element("p", text, class_="soft")


def folded(summary: str, *content: str) -> Html:
  """What is shown when its summary is clicked."""
  return element("details", element("summary", summary), *content)


def grid(figures: Sequence[str]) -> Html:
  """Figures beside each other, as many as there is room for."""
  return element("div", joined(figures), class_="grid")


def table(
  caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> Html:
  """A table that scrolls by itself where it is too wide.

  Args:
    caption: what it shows.
    columns: their headings.
    rows: texts; the first of each is its heading.
  """
  head = [element("th", one, scope="col") for one in columns]
  body = [
    element(
      "tr",
      element("th", first, scope="row"),
      *(element("td", one) for one in rest),
    )
    for first, *rest in rows
  ]
  return element(
    "div",
    element(
      "table",
      element("caption", caption),
      element("thead", element("tr", *head)),
      element("tbody", *body),
    ),
    class_="scroll",
    role="region",
    tabindex="0",
    aria_label=caption,
  )


def _escaped(text: str) -> str:
  return text if isinstance(text, Html) else html.escape(text)
