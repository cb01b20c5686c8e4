"""Python's own pickles read back equal; anything else is refused, unrun."""

import codecs
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jamsface_jax.storage.plain_pickle import PickleRefusedError, loads

LATIN = b"\x00\x01\xff\xd8'\"\\\n\r\t binary \x80"

PLAIN = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(2**63), 2**63)
  | st.binary(min_size=1, max_size=40)
  | st.text(max_size=10),
  lambda inner: (
    st.lists(inner, max_size=5) | st.lists(inner, max_size=5).map(tuple)
  ),
  max_leaves=20,
)


@given(PLAIN, st.integers(0, 5))
def test_plain_data_read_as_python_reads_them(value, protocol):
  data = pickle.dumps(value, protocol)
  got = loads(data)
  assert got == value
  assert repr(got) == repr(value)  # Types too: True is not 1.


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
  "array",
  [
    np.arange(7, dtype=np.uint8),
    np.array([True, False, True]),
    np.arange(24, dtype=np.int64).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype=np.uint16).reshape(2, 3)),
    np.arange(5, dtype=">i4"),
  ],
  ids=["uint8", "bool", "int64", "fortran", "big-endian"],
)
def test_arrays_equal_numpys(array, protocol):
  data = pickle.dumps([array, array], protocol)
  got, again = loads(data)
  np.testing.assert_array_equal(got, pickle.loads(data)[0], strict=True)
  np.testing.assert_array_equal(got, array)
  assert again is got


@pytest.mark.parametrize("protocol", range(6))
def test_scalars_become_pythons(protocol):
  flags = [np.True_, np.False_, np.uint8(7), np.int64(-3)]
  got = loads(pickle.dumps(flags, protocol))
  assert got == [True, False, 7, -3]
  assert [type(item) for item in got] == [bool, bool, int, int]


def python2_strings(items, protocol):
  """What Python 2 writes for a list of strings; its format is documented."""
  if protocol == 0:
    escaped = [codecs.escape_encode(item)[0] for item in items]
    body = b"".join(b"S'" + item + b"'\na" for item in escaped)
    return b"(lp0\n" + body + b"."
  body = b"".join(
    (b"U" + bytes([len(item)]) if len(item) < 256 else b"T")
    + (b"" if len(item) < 256 else struct.pack("<i", len(item)))
    + item
    for item in items
  )
  return (b"\x80\x02" if protocol == 2 else b"") + b"](" + body + b"e."


@pytest.mark.parametrize("protocol", range(3))
def test_strings_of_python_2_are_bytes(protocol):
  items = [LATIN, LATIN * 40, b"x"]
  data = python2_strings(items, protocol)
  assert pickle.loads(data, encoding="bytes") == items  # It is such a pickle.
  assert loads(data) == items


def test_array_and_flags_as_python_2_wrote_them():
  array = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01bt"
    b"R(K\x01(K\x02tcnumpy\ndtype\n(U\x02b1K\x00K\x01tR(K\x03U\x01|NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x00\x01tb"
  )
  got = loads(b"\x80\x02(]U\x03abca" + array + b"t.")
  assert got[0] == [b"abc"]
  np.testing.assert_array_equal(got[1], [False, True], strict=True)
  np.testing.assert_array_equal(
    got[1], pickle.loads(b"\x80\x02" + array + b".", encoding="bytes")
  )


class Runs:
  """Pickles to a call of `function` with `arguments`."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_what_would_run_is_refused_by_name_and_does_not_run(tmp_path, protocol):
  marker = tmp_path / "ran"
  command = f"touch {marker}"
  data = pickle.dumps([b"image", Runs(os.system, command)], protocol)
  with pytest.raises(PickleRefusedError, match=r"global 'posix\.system'"):
    loads(data)
  assert not marker.exists()
  assert pickle.loads(data) == [b"image", 0]  # Python's reader does run it.
  assert marker.exists()


@pytest.mark.parametrize(
  "value, name",
  [
    (Runs(eval, "1"), "builtins.eval"),
    (Runs(codecs.decode, b"a", "hex"), "_codecs.decode"),
    (np.array([1.0], object), "'O8'"),
    (np.array([1.0]), "'f8'"),
    (np.array(["a"]), "'U1'"),
    (np.dtype([("a", "u1")]), "'V1'"),
    ({1: 2}, "EMPTY_DICT"),
    ({1}, "EMPTY_SET"),
    (1.5, "BINFLOAT"),
    (bytearray(b"x"), None),
    (complex(1), "builtins.complex"),
  ],
)
def test_refused_by_name(value, name):
  data = pickle.dumps(value, 5 if name else 2)
  with pytest.raises(PickleRefusedError) as error:
    loads(data)
  assert (name or "bytearray") in str(error.value)


@pytest.mark.parametrize(
  "data, name",
  [
    (b"(iposix\nsystem\n.", "posix.system"),
    (b"\x80\x02\x82\x01.", "EXT1"),
    (b"Pname\n.", "PERSID"),
    (b"\x80\x05\x97.", "NEXT_BUFFER"),
    (
      b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zipt\x81.",
      "NEWOBJ",
    ),
    (b"\x80\x09N.", "protocol 9"),
    (b"\xfeN.", "instruction"),
  ],
)
def test_instructions_refused_by_name(data, name):
  with pytest.raises(PickleRefusedError, match=name):
    loads(data)


def test_only_latin_1_is_encoded():
  text = b"X\x03\x00\x00\x00abcX\x03\x00\x00\x00%sR."
  with pytest.raises(PickleRefusedError):
    loads(b"c_codecs\nencode\n(" + text % b"zip" + b"tR.")
  value = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tR."
  assert loads(value) == b"a"


def bomb_of_sizes(code, size):
  return b"\x80\x05" + code + size + b"x" * 10 + b"."


def copies(inner, times):
  """Encodes one text over and over: a few bytes of pickle for each copy."""
  text = b"X" + struct.pack("<I", inner) + b"a" * inner
  return (
    b"\x80\x04(c_codecs\nencode\nq\x00" + text + b"q\x01"
    b"X\x06\x00\x00\x00latin1q\x02](" + b"h\x00h\x01h\x02\x86R" * times + b"et."
  )


@pytest.mark.parametrize(
  "data",
  [
    bomb_of_sizes(pickle.BINBYTES, b"\xff\xff\xff\xff"),
    bomb_of_sizes(pickle.BINBYTES8, b"\x00\x00\x00\x00\x00\x01\x00\x00"),
    bomb_of_sizes(pickle.BYTEARRAY8, b"\xff" * 8),
    bomb_of_sizes(pickle.BINUNICODE8, b"\xff" * 8),
    bomb_of_sizes(pickle.BINSTRING, b"\xff\xff\xff\xff"),
    bomb_of_sizes(pickle.FRAME, b"\xff" * 8),
    copies(100_000, 50_000),
    # A shape of 2**40 bytes over one byte.
    pickle.dumps(np.zeros(1, np.uint8), 2).replace(
      b"(K\x01K\x01\x85", b"(K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85"
    ),
    b"N" + b"r\xff\xff\xff\xff" + b".",  # A memo of 2**32 places.
    b"N" + b"r\x00\x00\x10\x00" + b".",  # Of as many as there is room for.
    b"Np1000000\n.",
    b"N" + b"\x85" * 50_000 + b".",  # Deeply nested.
    b"](" * 50_000 + b".",
    b"]q\x00" + b"(" + b"h\x00" * 50_000 + b"e.",  # A list of itself.
  ],
  ids=lambda data: f"{len(data)} bytes",
)
def test_memory_stays_in_proportion(data):
  tracemalloc.start()
  try:
    loads(data)
  except PickleRefusedError:
    pass
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 200 * len(data) + 100_000


def test_copies_are_counted():
  with pytest.raises(PickleRefusedError, match="larger than the file"):
    loads(copies(1000, 100))
  assert len(loads(copies(1000, 1))[-1]) == 1


SEEDS = [
  pickle.dumps(value, protocol)
  for protocol in range(6)
  for value in (
    ([b"\xff\xd8ab", b"cd"], [True, False]),
    ([np.arange(9, dtype=np.uint8)], np.array([True])),
    ([b"x"], [np.True_, 1, -70000, 2**40, None, "text"]),
  )
] + [python2_strings([LATIN, b"x"], protocol) for protocol in range(3)]


@st.composite
def damaged(draw):
  """A pickle with a few bytes changed, removed or put in."""
  data = bytearray(draw(st.sampled_from(SEEDS)))
  for _ in range(draw(st.integers(1, 5))):
    place = draw(st.integers(0, len(data)))
    end = place + draw(st.integers(0, 3))
    data[place:end] = draw(st.binary(max_size=3))
  return bytes(data)


INSTRUCTIONS = st.lists(
  st.binary(min_size=1, max_size=1)
  | st.sampled_from(
    [
      b"(",
      b"K\x01",
      b"C\x01a",
      b"q\x00",
      b"h\x00",
      b"\x94",
      b"\x85",
      b"\x86",
      b"R",
      b"b",
      b"cnumpy\ndtype\n",
      b"cnumpy\nndarray\n",
      b"cnumpy.core.multiarray\n_reconstruct\n",
      b"cnumpy.core.multiarray\nscalar\n",
      b"c_codecs\nencode\n",
      b"U\x02u1",
      b"(K\x03U\x01|NNNt",
      b"X\x06\x00\x00\x00latin1",
    ]
  ),
  max_size=40,
).map(lambda parts: b"".join(parts) + b".")

FUZZ = settings(
  max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@FUZZ
@given(damaged() | INSTRUCTIONS | st.binary(max_size=60))
@example(b"cnumpy\ndtype\n(U\x02u1tRq\x00(K\x03h\x00NNNtb.")
@example(b"cnumpy\ndtype\n.")
@example(b"S'\\q'\n.")
@example(b"c\\_codecs\nencode\n.")
@example(b"(i\\_codecs\nencode\n.")
@example(b"P\\_\n.")
@example(b"V\\u12\n.")
@example(b"]a.")
@example(b"tttt.")
def test_damaged_pickles_are_refused_or_read(data):
  try:
    loads(data)
  except PickleRefusedError as error:
    assert "\n" not in str(error)
