import pytest

from jamsface_jax.storage.text_lists import (
  NotTextError,
  read_lines,
  split_fields,
)


def lines(path, data, **how):
  path.write_bytes(data)
  return [(line.number, line.text) for line in read_lines(path, **how)]


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    (b"", []),
    (b"a", [(1, "a")]),
    (b"a\n", [(1, "a")]),
    (b"a\n\n b \n", [(1, "a"), (2, ""), (3, " b ")]),
    (b"a\r\nb\r\n", [(1, "a"), (2, "b")]),
    ("\ufeffa\n\ufeffb".encode(), [(1, "a"), (2, "\ufeffb")]),
    # What only some readers take for the end of a line.
    ("a\x85b\u2028c\x0bd".encode(), [(1, "a\x85b\u2028c\x0bd")]),
    ("\u00e4\n".encode(), [(1, "\u00e4")]),
  ],
)
def test_lines(tmp_path, data, expected):
  assert lines(tmp_path / "list.txt", data) == expected


def test_the_line_that_is_not_utf8_is_named(tmp_path):
  with pytest.raises(NotTextError, match="line 3.*codec can't decode") as error:
    lines(tmp_path / "list.txt", b"a\n\nb\xff\n")
  assert error.value.line == 3


def test_lines_that_are_too_long(tmp_path):
  path = tmp_path / "list.txt"
  assert lines(path, b"abc\nabc", longest=5) == [(1, "abc"), (2, "abc")]
  with pytest.raises(NotTextError, match="line 2: it is too long") as error:
    lines(path, b"abc\nabcde", longest=5)
  assert error.value.line == 2


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError):
    list(read_lines(tmp_path / "none"))


@pytest.mark.parametrize(
  ("text", "fields"),
  [
    ("a b  c", ["a", "b", "c"]),
    ("a b, c", ["a b", "c"]),
    ("a, b\tc d ", ["a, b", "c d"]),
    ("a,,b", ["a", "", "b"]),
    ("", []),
  ],
)
def test_fields(text, fields):
  assert split_fields(text) == fields
