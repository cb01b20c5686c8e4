"""Reads pickles of plain data, and only those, without running anything.

A pickle is a program for a small stack machine, and Python's own reader lets it
import and call whatever it likes. This reader interprets the program itself:
nothing that a pickle names is ever imported or called. It knows lists, tuples,
bytes, text, booleans, integers and None; the few globals by which NumPy writes
arrays and scalars, and Python 3 writes bytes in old protocols, are cases in
this file. Every other global and every other instruction is refused by name.

Memory stays proportional to the file: lengths are checked against the bytes
that are there, and no more is copied than twice the file.
Protocols 0 to 5, of Python 2 and 3; text of Python 2 is read as bytes.
"""

import dataclasses
import math
import pickle
import pickletools
import re
import struct

import numpy as np

PROTOCOL = 5  # The newest one.

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

# The escapes of Python 2's repr of a string.
_ESCAPE = re.compile(rb"""\\(?:x([0-9a-f]{2})|([\\'"nrt]))""")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_INTEGER = re.compile(rb"-?[0-9]{1,20}")


class PickleRefusedError(ValueError):
  """A damaged pickle, or one with more than plain data; says what and where."""


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that a pickle may use, by what it stands for."""

  meaning: str


@dataclasses.dataclass
class _Dtype:
  """A NumPy type; its byte order arrives after the type."""

  code: str
  order: str = "|"

  def numpy(self) -> np.dtype:
    return np.dtype(self.code).newbyteorder(self.order)


def loads(data: bytes) -> object:
  """Reads a pickle.

  Args:
    data: the whole pickle; what follows its end is ignored.

  Returns:
    None, bool, int, bytes, str, lists and tuples of them, and NumPy arrays of
    integers or booleans. NumPy scalars come back as bool or int, a global that
    was named but not used as an inert object. Parts may be shared, and a list
    may hold itself.

  Raises:
    PickleRefusedError: the pickle names a global or has an instruction that
      plain data do not need, or it is damaged. Nothing has run.
  """
  return Machine(data).run()


class Machine:
  """The stack machine; `run` once.

  A reader of another kind of file extends it: more instructions in `_step`,
  more names in `_find`, `_reduce` and `_build`.

  Args:
    data: the whole pickle.
  """

  def __init__(self, data: bytes):
    self.start = 0  # Of the instruction being run.
    self._data = data
    self._position = 0
    self._stack: list[object] = []
    self._marks: list[list[object]] = []  # Stacks below the open marks.
    self._memo: dict[int, object] = {}
    self._copied = 0

  def run(self) -> object:
    """Interprets the pickle; see `loads`."""
    try:
      return self._run()
    except (IndexError, struct.error, UnicodeError):
      # Of a stack or memo that holds less than is asked for, or broken text.
      raise PickleRefusedError(
        f"the pickle is damaged at byte {self.start}"
      ) from None

  def _run(self) -> object:
    while True:
      self.start = self._position
      code = self._take(1)
      if code == pickle.STOP:
        return self._stack.pop()
      self._step(code)

  def _step(self, code: bytes) -> None:
    push = self._stack.append
    match code:
      # Bytes and text. Python 2's strings are bytes.
      case pickle.BINBYTES | pickle.BINSTRING:
        push(self._take(self._unsigned(4)))
      case pickle.SHORT_BINBYTES | pickle.SHORT_BINSTRING:
        push(self._take(self._unsigned(1)))
      case pickle.BINBYTES8 | pickle.BYTEARRAY8:
        push(self._take(self._unsigned(8)))
      case pickle.STRING:
        push(self._unquote(self._line()))
      case pickle.SHORT_BINUNICODE:
        push(self._take(self._unsigned(1)).decode("utf-8", "surrogatepass"))
      case pickle.BINUNICODE:
        push(self._take(self._unsigned(4)).decode("utf-8", "surrogatepass"))
      case pickle.BINUNICODE8:
        push(self._take(self._unsigned(8)).decode("utf-8", "surrogatepass"))
      case pickle.UNICODE:
        push(self._line().decode("raw-unicode-escape"))
      # None, booleans, integers.
      case pickle.NONE:
        push(None)
      case pickle.NEWTRUE:
        push(True)
      case pickle.NEWFALSE:
        push(False)
      case pickle.BININT1:
        push(self._unsigned(1))
      case pickle.BININT2:
        push(self._unsigned(2))
      case pickle.BININT:
        push(struct.unpack("<i", self._take(4))[0])
      case pickle.LONG1:
        size = self._unsigned(1)
        push(int.from_bytes(self._take(size), "little", signed=True))
      case pickle.INT:
        line = self._line()  # Protocol 0 has its booleans here.
        is_bool = line in (b"00", b"01")
        push(line == b"01" if is_bool else self._integer(line))
      case pickle.LONG:
        push(self._integer(self._line().removesuffix(b"L")))
      # Lists and tuples.
      case pickle.MARK:
        self._marks.append(self._stack)
        self._stack = []
      case pickle.EMPTY_LIST:
        push([])
      case pickle.EMPTY_TUPLE:
        push(())
      case pickle.LIST:
        items = self._pop_mark()
        self._stack.append(items)
      case pickle.TUPLE:
        items = self._pop_mark()
        self._stack.append(tuple(items))
      case pickle.TUPLE1:
        push((self._stack.pop(),))
      case pickle.TUPLE2:
        last = self._stack.pop()
        push((self._stack.pop(), last))
      case pickle.TUPLE3:
        last, middle = self._stack.pop(), self._stack.pop()
        push((self._stack.pop(), middle, last))
      case pickle.APPEND:
        item = self._stack.pop()
        self._top_list().append(item)
      case pickle.APPENDS:
        items = self._pop_mark()
        self._top_list().extend(items)
      # The memo.
      case pickle.BINPUT:
        self._memo[self._unsigned(1)] = self._stack[-1]
      case pickle.LONG_BINPUT:
        self._memo[self._unsigned(4)] = self._stack[-1]
      case pickle.PUT:
        self._memo[self._integer(self._line())] = self._stack[-1]
      case pickle.MEMOIZE:
        self._memo[len(self._memo)] = self._stack[-1]
      case pickle.BINGET:
        push(self._recall(self._unsigned(1)))
      case pickle.LONG_BINGET:
        push(self._recall(self._unsigned(4)))
      case pickle.GET:
        push(self._recall(self._integer(self._line())))
      # NumPy.
      case pickle.GLOBAL | pickle.INST:
        module = self._line().decode("utf-8")
        push(self._find(module, self._line().decode("utf-8")))
        if code == pickle.INST:
          self._refuse("instruction INST")
      case pickle.STACK_GLOBAL:
        name, module = self._stack.pop(), self._stack.pop()
        push(self._find(_text(module), _text(name)))
      case pickle.REDUCE:
        arguments = self._stack.pop()
        push(self._reduce(self._stack.pop(), arguments))
      case pickle.BUILD:
        state = self._stack.pop()
        self._build(self._stack[-1], state)
      # Framing.
      case pickle.PROTO:
        if (version := self._unsigned(1)) > PROTOCOL:
          self._refuse(f"protocol {version}")
      case pickle.FRAME:
        self._take(8)  # A hint for reading ahead.
      case _:
        known = pickletools.code2op.get(code.decode("latin-1"))
        self._refuse(f"instruction {known.name if known else code!r}")

  def _take(self, size: int) -> bytes:
    end = self._position + size
    if end > len(self._data):
      raise PickleRefusedError(
        f"the pickle is cut off: at byte {self.start} it promises {size} bytes"
        f" but has {len(self._data) - self._position}"
      )
    taken = self._data[self._position : end]
    self._position = end
    return taken

  def _unsigned(self, size: int) -> int:
    return int.from_bytes(self._take(size), "little")

  def _line(self) -> bytes:
    end = self._data.find(b"\n", self._position)
    if end < 0:
      raise PickleRefusedError(
        f"the pickle is cut off: the line at byte {self.start} has no end"
      )
    return self._take(end + 1 - self._position)[:-1]

  def _integer(self, line: bytes) -> int:
    if not _INTEGER.fullmatch(line):
      self._refuse("damaged integer")
    return int(line)

  def _unquote(self, line: bytes) -> bytes:
    quote = line[:1]
    if len(line) < 2 or quote not in (b"'", b'"') or line[-1:] != quote:
      self._refuse("damaged string")

    def unescape(match: re.Match[bytes]) -> bytes:
      if match[1]:
        return bytes.fromhex(match[1].decode())
      return _ESCAPED.get(match[2], match[2])

    return _ESCAPE.sub(unescape, line[1:-1])

  def _pop_mark(self) -> list[object]:
    items = self._stack
    self._stack = self._marks.pop()
    return items

  def _top_list(self) -> list[object]:
    if type(self._stack[-1]) is not list:
      self._refuse("append to something that is not a list")
    return self._stack[-1]

  def _recall(self, key: int) -> object:
    if key not in self._memo:
      self._refuse(f"reference to nothing ({key})")
    return self._memo[key]

  def _find(self, module: str | None, name: str | None) -> Global:
    if (module, name) not in _GLOBALS:
      self._refuse(f"global {ascii(f'{module}.{name}'[:100])}")
    return Global(_GLOBALS[module, name])

  def _refuse(self, what: str) -> None:
    raise PickleRefusedError(
      f"the pickle has a {what} at byte {self.start}, which plain data do not"
      " need"
    )

  def _reduce(self, function: object, arguments: object) -> object:
    """What calling the global would give; nothing is called."""
    match function, arguments:
      case Global("encode"), (str(text), coding):
        if _text(coding) in ("latin1", "latin-1"):
          self._count_copy(len(text))
          return text.encode("latin-1")
      case Global("dtype"), (code, *_):
        if found := _DTYPE.fullmatch(_text(code) or ""):
          return _Dtype(found[1])
        self._refuse(f"NumPy type {ascii(code)[:40]}")
      case Global("array"), (Global("ndarray"), *_):
        return np.empty(0, np.uint8)
      case Global("scalar"), (_Dtype() as dtype, bytes(data)):
        return self._array(data, dtype, (1,)).item()
      case Global("frombuffer"), (
        bytes(data),
        _Dtype() as dtype,
        shape,
        order,
      ):
        self._count_copy(len(data))  # Whoever reads the array may copy it.
        return self._array(data, dtype, shape, _text(order) == "F")
    self._refuse("call in an unknown form")

  def _build(self, target: object, state: object) -> None:
    """Completes an array or a type that `_reduce` has begun, in place."""
    match target, state:
      case _Dtype(), (int(), order, None, None, None, *_):
        if _text(order) in ("<", ">", "=", "|"):
          target.order = _text(order)
          return
      case np.ndarray(), (
        int(),
        shape,
        _Dtype() as dtype,
        fortran,
        bytes(data),
      ):
        array = self._array(data, dtype, shape, bool(fortran))
        self._count_copy(len(data))
        # The memo refers to `target` already, so it must become the array.
        target.__setstate__((1, array.shape, array.dtype, bool(fortran), data))
        return
    self._refuse("state in an unknown form")

  def _array(
    self, data: bytes, dtype: _Dtype, shape: object, fortran: bool = False
  ) -> np.ndarray:
    """A view of the bytes."""
    is_shape = type(shape) is tuple and all(
      type(size) is int and 0 < size <= len(data) for size in shape
    )
    kind = dtype.numpy()
    if (
      not is_shape
      or len(shape) > _MAX_DIMENSIONS
      or math.prod(shape) * kind.itemsize != len(data)
    ):
      self._refuse("NumPy array whose shape does not fit its bytes")
    return np.frombuffer(data, kind).reshape(
      shape, order="F" if fortran else "C"
    )

  def _count_copy(self, size: int) -> None:
    # An honest pickle writes every byte once, and old protocols copy it as
    # bytes and as an array; a bomb has the same part copied over and over.
    self._copied += size
    if self._copied > 2 * len(self._data):
      self._refuse("copy that makes the data larger than the file")


def _text(value: object) -> str | None:
  """Text as it is, Python 2's as latin-1, and nothing else."""
  if isinstance(value, bytes):
    return value.decode("latin-1")
  return value if isinstance(value, str) else None
