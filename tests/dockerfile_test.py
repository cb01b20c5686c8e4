"""The Dockerfile, as far as it can be checked without Docker."""

import fnmatch
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
LINES = (
  (ROOT / "Dockerfile")
  .read_text(encoding="utf-8")
  .replace("\\\n", " ")
  .splitlines()
)


def test_its_linter_finds_nothing():
  hadolint = os.path.join(os.path.dirname(sys.executable), "hadolint")
  done = subprocess.run(
    [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_copies_is_sent_to_it():
  """Of all that .dockerignore leaves out, nothing is needed."""
  rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
  assert "*" in rules
  sent = {rule[1:] for rule in rules if rule.startswith("!")}
  copied = {
    os.path.normpath(word)
    for line in LINES
    if line.startswith("COPY ") and "--from" not in line
    for word in line.split()[1:-1]
  }
  assert copied == sent and len(copied) == 8
  for name in copied:
    assert (ROOT / name).exists(), name
    assert not any(
      fnmatch.fnmatch(name, rule.removeprefix("**/"))
      for rule in rules
      if rule.startswith("**/")
    )


def test_it_ends_as_an_ordinary_user_on_a_pinned_base():
  users = [line.split()[1] for line in LINES if line.startswith("USER ")]
  assert users and users[-1] not in ("0", "root")
  (base,) = (line for line in LINES if line.startswith("ARG PYTHON="))
  assert re.fullmatch(r"ARG PYTHON=3\.\d+(\.\d+)?-slim-\w+", base)
