"""Stand-in for a session of sshd on another machine, which is this one.

As sshd(8) and OpenSSH's session.c do: the command runs by the user's shell in a
session of its own, with a terminal of its own if the client asks for one; when
the client is gone the terminal is hung up (SIGHUP), or, without one, the pipes
are closed and nothing more. ssh(1) ends with the exit status of the command,
with 255 if that was killed by a signal.
"""

import fcntl
import os
import pty
import subprocess
import sys
import termios


def run(command: str, environment: dict[str, str], *, terminal: bool) -> int:
  """Runs a command as sshd would; returns what ssh(1) ends with."""
  if not terminal:
    done = subprocess.run(
      ["bash", "-c", command],
      env=environment,
      stdin=subprocess.DEVNULL,
      start_new_session=True,
    )
    return done.returncode if done.returncode >= 0 else 255
  master, slave = pty.openpty()
  process = subprocess.Popen(
    ["bash", "-c", command],
    env=environment,
    stdin=slave,
    stdout=slave,
    stderr=slave,
    start_new_session=True,
    preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
  )
  os.close(slave)
  while True:
    try:
      text = os.read(master, 4096)
    except OSError:  # EIO: nobody has the other end any more.
      break
    if not text:
      break
    os.write(sys.stdout.fileno(), text)
  code = process.wait()
  return code if code >= 0 else 255
