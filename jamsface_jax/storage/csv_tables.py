"""Tables in text: CSV with a header."""

import csv
from collections.abc import Iterator, Sequence

from jamsface_jax.errors import InputError
from jamsface_jax.storage.plain_file import plain


def read_csv(
  path: str, header: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
  """Yields `file:line` and the fields of each line below the header.

  Args:
    path: the file, UTF-8.
    header: the names that its first line must have, in this order.

  Raises:
    InputError: no such file, another header, or a line of other length.
  """
  try:
    with open(path, encoding="utf-8", newline="", opener=plain) as file:
      reader = csv.reader(file)
      if (found := next(reader, [])) != list(header):
        raise InputError(
          f"{path}: begins with {','.join(found)!r}; the first line must be"
          f" {','.join(header)!r}."
        )
      for fields in filter(None, reader):
        where = f"{path}:{reader.line_num}"
        if len(fields) != len(header):
          raise InputError(
            f"{where}: has {len(fields)} fields; write {','.join(header)}."
          )
        yield where, fields
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); copy the data set again."
    ) from None
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"{path}: is not CSV in UTF-8 ({error}).") from None
