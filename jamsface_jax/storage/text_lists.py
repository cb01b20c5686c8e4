"""Lists in text: a line an entry, UTF-8."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from jamsface_jax.storage.plain_file import plain


class Line(NamedTuple):
  """A line without its end, and its number in the file, from 1."""

  number: int
  text: str


class NotTextError(ValueError):
  """A line is not UTF-8, or too long; the message says which and why.

  Attributes:
    line: its number, from 1.
  """

  def __init__(self, line: int, why: str):
    super().__init__(f"line {line}: {why}")
    self.line = line


def read_lines(
  path: str | os.PathLike[str], *, longest: int = -1
) -> Iterator[Line]:
  r"""Yields the lines of a text file, blank ones too.

  A line ends with \n or \r\n; a byte order mark before the first is left out.

  Args:
    path: the file.
    longest: bytes that no line has; -1: a line may have any length.

  Raises:
    OSError: the file cannot be read.
    NotTextError: a line is not UTF-8, or too long.
  """
  with open(path, "rb", opener=plain) as file:
    number = 0
    while data := file.readline(longest):
      number += 1
      if len(data) == longest:
        raise NotTextError(number, "it is too long")
      try:
        text = data.decode("utf-8-sig" if number == 1 else "utf-8")
      except UnicodeDecodeError as error:
        raise NotTextError(number, str(error)) from None
      yield Line(number, text.removesuffix("\n").removesuffix("\r"))


def is_plain(text: str) -> bool:
  """Whether a name can stand in a list: UTF-8, without a tab or a line break.

  What is not UTF-8 in the name of a file comes as surrogates.
  """
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return "\t" not in text and len(f"{text}.".splitlines()) == 1


def escape(text: str) -> str:
  r"""A name as it can stand in a list: `\xff` for a byte, `\n` for a break."""
  if is_plain(text):
    return text
  readable = text.encode(errors="surrogateescape").decode(
    errors="backslashreplace"
  )
  return "".join(
    one if is_plain(one) else one.encode("unicode_escape").decode()
    for one in readable
  )


def split_fields(text: str) -> list[str]:
  """Splits a line at tabs if it has any, else at commas, else at blanks."""
  for separator in "\t", ",":
    if separator in text:
      return [field.strip() for field in text.split(separator)]
  return text.split()
