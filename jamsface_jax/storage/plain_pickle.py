"""Reads pickles of plain data, and only those, without running anything.

A pickle is a program for a small stack machine, and Python's own reader lets it
import and call whatever it likes. Here the program is first read through: each
instruction must be one that plain data need (lists, tuples, bytes, text,
booleans, integers, None), and no length may promise more than is there. Then
Python's machine runs it, but what a pickle names is never imported: it gets a
stand-in, of this file, for the few globals by which NumPy writes arrays and
scalars, and Python 3 writes bytes in old protocols.

Memory stays proportional to the file: no more is copied than twice the file.
Protocols 0 to 5, of Python 2 and 3; text of Python 2 is read as bytes.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

_INSTRUCTIONS = frozenset(
  "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG"
  " LONG1 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8"
  " BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST"
  " APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT"
  " LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE"
  " BUILD".split()
)
_OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}
# Bytes in which the length of an argument is written.
_LENGTHS = {
  pickletools.TAKEN_FROM_ARGUMENT1: 1,
  pickletools.TAKEN_FROM_ARGUMENT4: 4,
  pickletools.TAKEN_FROM_ARGUMENT4U: 4,
  pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
# Names are lines.
_LINES = {"GLOBAL": 2, "INST": 2, "PERSID": 1}
# A line of Python 2's repr. Python's machine would take more.
_STRING = re.compile(
  rb"""(['"])(?:[^\\'"]++|(?!\1)['"]|\\(?:x[0-9a-f]{2}|[\\'"nrt]))*+\1\n"""
)

# What a pickle may name, by what it stands for; NumPy 2 moved its modules.
_GLOBALS = {
  ("_codecs", "encode"): "encode",
  ("numpy", "dtype"): "dtype",
  ("numpy", "ndarray"): "ndarray",
  ("numpy.core.multiarray", "_reconstruct"): "array",
  ("numpy._core.multiarray", "_reconstruct"): "array",
  ("numpy.core.multiarray", "scalar"): "scalar",
  ("numpy._core.multiarray", "scalar"): "scalar",
  ("numpy.core.numeric", "_frombuffer"): "frombuffer",
  ("numpy._core.numeric", "_frombuffer"): "frombuffer",
}
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248])")  # No objects, no text, no voids.
_MAX_DIMENSIONS = 8
_ORDERS = ("<", ">", "=", "|")
_LATIN_1 = ("latin1", "latin-1")


class PickleRefusedError(ValueError):
  """A damaged pickle, or one with more than plain data; says what."""


def refuse(what: str) -> NoReturn:
  """Raises the error of a pickle that has `what`."""
  raise PickleRefusedError(
    f"the pickle has a {what}, which plain data do not need"
  )


class Copies:
  """How many more bytes a pickle may have copied.

  An honest pickle writes every byte once, and old protocols copy it as bytes
  and as an array; a bomb has the same part copied over and over.
  """

  def __init__(self, left: int):
    self._left = left

  def count(self, size: int) -> None:
    """Refuses the pickle if `size` bytes more are too many."""
    self._left -= size
    if self._left < 0:
      refuse("copy that makes the data larger than the file")


class Global:
  """Stands for a name of a pickle; calling it gives plain data.

  It has no attribute that a pickle could set.

  Attributes:
    meaning: what the name stands for.
  """

  __slots__ = ("_call", "_copies", "meaning")
  __match_args__ = ("meaning",)

  def __init__(
    self,
    meaning: str,
    call: Callable[[str, tuple, Copies], object],
    copies: Copies,
  ):
    self.meaning, self._call, self._copies = meaning, call, copies

  def __call__(self, *arguments: object) -> object:
    """Does what the machine takes for a call; see `PlainUnpickler.call`."""
    return self._call(self.meaning, arguments, self._copies)

  def __setstate__(self, state: object) -> NoReturn:
    refuse("state in an unknown form")


def loads(data: bytes) -> object:
  """Reads a pickle.

  Args:
    data: the whole pickle; what follows its end is ignored.

  Returns:
    None, bool, int, bytes, bytearray, str, lists and tuples of them, and NumPy
    arrays of integers or booleans. NumPy scalars come back as bool or int, a
    global that was named but not used as an inert object. Parts may be shared,
    and a list may hold itself.

  Raises:
    PickleRefusedError: the pickle names a global or has an instruction that
      plain data do not need, or it is damaged. Nothing has run.
  """
  return PlainUnpickler(data).load()


class PlainUnpickler(pickle.Unpickler):
  """Python's machine behind allow-lists; `load` once.

  A reader of another kind of file extends them.

  Args:
    data: what holds the whole pickle.
    start: where in it the pickle begins.

  Attributes:
    instructions: the names, of `pickletools`, of those that may occur.
    globals: maps (module, name) to what it stands for.
    call: makes plain data of a meaning and its arguments, see `call`.
    texts: how text of Python 2 is read, a name of `codecs`, or "bytes".
    end: where the pickle ends, once it is loaded.
  """

  instructions = _INSTRUCTIONS
  globals = _GLOBALS
  texts = "bytes"

  def __init__(self, data: bytes, start: int = 0):
    self._stream = io.BytesIO(data)
    self._start = self._stream.seek(start)
    self._size = len(data)
    self._copies = Copies(2 * len(data))
    self.end = start
    super().__init__(self._stream, encoding=self.texts)

  def load(self) -> Any:
    """Checks the pickle, then runs it; see `loads`."""
    refused = self._check()
    self.end = self._stream.tell()
    self._stream.seek(self._start)
    try:
      found = super().load()
    except PickleRefusedError:
      raise
    except Exception:  # Damage may raise any, by the documentation of `pickle`.
      refused = refused or PickleRefusedError(
        f"the pickle is damaged at byte {self._stream.tell()} or before"
      )
    if refused:
      raise refused
    return found

  def find_class(self, module: str, name: str) -> Global:
    """Gives what stands for a name; nothing is imported."""
    if (module, name) not in self.globals:
      refuse(f"global {ascii(f'{module}.{name}'[:100])}")
    return Global(self.globals[module, name], self.call, self._copies)

  @staticmethod
  def call(meaning: str, arguments: tuple, copies: Copies) -> object:
    """What calling the global would give; nothing of NumPy's is called."""
    match meaning, arguments:
      case "encode", (str(text), coding) if _text(coding) in _LATIN_1:
        copies.count(len(text))
        return text.encode("latin-1")
      case "dtype", (code, *_):
        if found := _DTYPE.fullmatch(_text(code)):
          return _Dtype(found[1])
        refuse(f"NumPy type {ascii(code)[:40]}")
      case "array", (Global("ndarray"), *_):
        return _Array(copies)
      case "scalar", (_Dtype() as dtype, bytes(data)):
        return _view(data, dtype, (1,), fortran=False).item()
      case "frombuffer", (data, _Dtype() as dtype, shape, order) if isinstance(
        data, bytes | bytearray
      ):
        copies.count(len(data))  # Whoever reads the array may copy it.
        return _view(data, dtype, shape, fortran=_text(order) == "F")
    refuse("call in an unknown form")

  def _check(self) -> PickleRefusedError | None:
    """Reads the program through; says why it is refused, if it is.

    Then it stops there: what runs until then may tell more.
    """
    name = ""
    while name != "STOP":
      at = self._stream.tell()
      try:
        name = self._check_instruction(at)
      except PickleRefusedError as error:
        self._stream.seek(at)
        self._stream.write(pickle.STOP)
        return error
    return None

  def _read_line(self) -> str:
    """The text of the next line, which must end."""
    line = self._stream.readline()
    if not line.endswith(b"\n"):
      raise ValueError
    return line[:-1].decode("utf-8")

  def _check_instruction(self, at: int) -> str:
    """Reads an instruction and refuses it, or returns its name.

    As `pickletools.genops` does, which cannot read strings of Python 2 unless
    they are ASCII, and takes backslashes in names for escapes, as pickle does
    not.
    """
    code = self._stream.read(1)
    op = _OPCODES.get(code)
    name = op.name if op else repr(code)
    argument: Any = None
    names: list[str] = []
    try:
      if name == "STRING":
        if not _STRING.fullmatch(self._stream.readline()):
          raise ValueError
      elif name in _LINES:
        names = [self._read_line() for _ in range(_LINES[name])]
      elif op and op.arg and op.arg.n in _LENGTHS:
        self._skip(_LENGTHS[op.arg.n])
      elif op and op.arg:
        argument = op.arg.reader(self._stream)
      elif not code:
        raise ValueError
    except ValueError:
      raise PickleRefusedError(
        f"the pickle is damaged or cut off at byte {at}"
      ) from None
    if name in ("GLOBAL", "INST"):
      self.find_class(*names)
    if name not in self.instructions:
      refuse(f"instruction {name} at byte {at}")
    if name == "PROTO" and argument > pickle.HIGHEST_PROTOCOL:
      refuse(f"protocol {argument} at byte {at}")
    # The machine makes room for all numbers up to this; honest pickles count.
    if name in ("PUT", "LONG_BINPUT") and argument > at - self._start:
      refuse(f"reference ({argument}) at byte {at}")
    return name

  def _skip(self, width: int) -> None:
    """Skips bytes or text, whose length is written in `width` bytes."""
    head = self._stream.read(width)
    end = self._stream.tell() + int.from_bytes(head, "little")
    if len(head) < width or end > self._size:
      raise ValueError
    self._stream.seek(end)


class _Dtype:
  """A NumPy type; its byte order arrives after the type."""

  __slots__ = ("_code", "_order")

  def __init__(self, code: str):
    self._code, self._order = code, "|"

  def __setstate__(self, state: object) -> None:
    match state:
      case (int(), order, None, None, None, *_) if _text(order) in _ORDERS:
        self._order = _text(order)
      case _:
        refuse("state in an unknown form")

  def numpy(self) -> np.dtype:
    """The type itself."""
    return np.dtype(self._order + self._code)


class _Array(np.ndarray):
  """An array whose numbers arrive after it, once; others refer to it before."""

  copies: Copies

  def __new__(cls, copies: Copies) -> "_Array":
    array = super().__new__(cls, 0, np.uint8)
    array.copies = copies
    return array

  def __setstate__(self, state: object) -> None:
    match state:
      case (int(), shape, _Dtype() as dtype, fortran, data) if isinstance(
        data, bytes | bytearray
      ):
        array = _view(data, dtype, shape, fortran=bool(fortran))
        self.copies.count(len(data))
        del self.copies
        super().__setstate__(
          # ty: ignore[invalid-argument-type] the stub's bool is NumPy's own.
          (1, array.shape, array.dtype, bool(fortran), bytes(data))
        )
      case _:
        refuse("state in an unknown form")


def _view(
  data: bytes | bytearray, dtype: _Dtype, shape: object, *, fortran: bool
) -> np.ndarray:
  """The bytes as an array, not copied."""
  kind = dtype.numpy()
  if (
    not isinstance(shape, tuple)
    or len(shape) > _MAX_DIMENSIONS
    # Of an empty array too: its sides are 0 and 1.
    or not all(
      type(size) is int and 0 <= size <= max(len(data), 1) for size in shape
    )
    or math.prod(shape) * kind.itemsize != len(data)
  ):
    refuse("NumPy array whose shape does not fit its bytes")
  return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def _text(value: object) -> str:
  """Text as it is, Python 2's as latin-1, and nothing of all else."""
  if isinstance(value, bytes):
    return value.decode("latin-1")
  return value if isinstance(value, str) else ""
