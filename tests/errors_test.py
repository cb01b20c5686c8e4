"""How a command ends, and the two flags that every command has."""

import errno
import logging
import os
import subprocess
import sys

import pytest

from jamsface_jax import errors
from jamsface_jax.errors import InputError, RunError


def end(monkeypatch, error, *flags):
  """The exit code of a command that ends like this."""
  seen = []

  def command():
    seen.append(list(sys.argv))
    if error:
      raise error

  monkeypatch.setattr(sys, "argv", ["x", *flags])
  monkeypatch.setattr(logging, "basicConfig", lambda level: None)
  with pytest.raises(SystemExit) as ended:
    errors.run_command(command)
  return ended.value.code, seen


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
  ("error", "code", "says"),
  [
    (InputError("a is b: do c."), 2, "error: a is b: do c."),
    (RunError("a is b."), 1, "error: a is b."),
    (OSError(errno.ENOSPC, "full"), 1, "make room and run it again."),
    (KeyboardInterrupt(), 130, ""),
    (None, 0, ""),
  ],
)
def test_codes(monkeypatch, capsys, error, code, says, debug):
  flags = ["--debug"] if debug else []
  assert end(monkeypatch, error, "--a=1", *flags) == (code, [["x", "--a=1"]])
  text = capsys.readouterr().err
  assert says in text
  assert ("Traceback" in text) == (debug and bool(says))
  if not debug:
    assert text.count("\n") == bool(says)


def test_defects_keep_their_traceback(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["x"])
  with pytest.raises(ZeroDivisionError):
    errors.run_command(lambda: 1 // 0)


def test_what_nobody_can_raise():
  """Raised as by TensorStore, which does it in checkpoint_test's full disk."""
  code = (
    "from jamsface_jax.errors import run_command\n"
    "class Thing:\n"
    "  def __init__(self, text):\n"
    "    self.text = text\n"
    "  def __del__(self):\n"
    "    raise RuntimeError(self.text)\n"
    "def command():\n"
    "  Thing('Event loop is closed')\n"
    "  Thing('other')\n"
    "run_command(command)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.returncode == 0
  name = "RuntimeError: "
  said = [line for line in done.stderr.splitlines() if line.startswith(name)]
  assert said == [f"{name}other"]


@pytest.mark.parametrize(
  ("flags", "shown"),
  [
    ([], {"other WARNING"}),
    (["--log_level=info"], {"absl INFO", "other INFO"}),
    (["--log_level=critical"], set()),
  ],
)
def test_log_level(flags, shown):
  code = (
    "import logging, sys\n"
    "from jamsface_jax.errors import run_command\n"
    "def command():\n"
    "  for name in ('absl', 'other'):\n"
    "    for level in ('INFO', 'WARNING'):\n"
    "      logging.getLogger(name).log(getattr(logging, level), level)\n"
    "run_command(command)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *flags], capture_output=True, text=True
  )
  assert done.returncode == 0
  said = {
    f"{line.split(':')[1]} {line.split(':')[0]}"
    for line in done.stderr.splitlines()
  }
  missing = shown - said
  assert not missing, done.stderr
  assert bool(said) == bool(shown)
  if not flags:
    assert said == shown  # Orbax's warnings stay unsaid.


def test_an_unknown_level(monkeypatch, capsys):
  assert end(monkeypatch, None, "--log_level=loud") == (2, [])
  assert "use one of debug, info" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "0", "-5", "1e9", "x"])
def test_a_bound_on_pixels_that_is_none(monkeypatch, capsys, text):
  monkeypatch.setenv(errors.MAX_PIXELS_VARIABLE, "7")
  assert end(monkeypatch, None, f"--max_pixels={text}")[0] == 2
  assert "is not a number of pixels" in capsys.readouterr().err
  assert os.environ[errors.MAX_PIXELS_VARIABLE] == "7"


def test_a_bound_on_pixels_reaches_the_workers(monkeypatch):
  monkeypatch.setenv(errors.MAX_PIXELS_VARIABLE, "7")
  assert end(monkeypatch, None, "--max_pixels=123") == (0, [["x"]])
  assert os.environ[errors.MAX_PIXELS_VARIABLE] == "123"


@pytest.mark.parametrize(
  ("command", "code", "traceback"),
  [
    ("print('x' * 10)", 141, False),  # Found out when it ends,
    ("print('x' * 100_000)", 141, False),  # or in the middle.
    ("raise BrokenPipeError(errno.EPIPE, 'of another pipe')", 1, True),
  ],
)
@pytest.mark.parametrize("buffered", [True, False])
def test_nobody_reads_on(command, code, traceback, buffered):
  text = (
    "import errno\n"
    "from jamsface_jax.errors import run_command\n"
    f"def command(): {command}\n"
    "input()\n"
    "run_command(command)\n"
  )
  process = subprocess.Popen(
    [sys.executable, *([] if buffered else ["-u"]), "-c", text],
    env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  if not traceback:
    process.stdout.close()
  process.stdin.write("\n")
  process.stdin.close()
  said = process.stderr.read()
  process.stderr.close()
  process.stdout.close()
  assert process.wait() == code
  assert ("Traceback" in said) == traceback == bool(said), said
