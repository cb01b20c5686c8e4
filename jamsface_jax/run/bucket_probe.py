"""Tries all that a run does in a bucket, and takes it away again."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import jax
import numpy as np
import orbax.checkpoint as ocp

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.storage.bucket import (
  Bucket,
  ChangedError,
  account,
  require_packages,
)
from jamsface_jax.storage.lease import LOCK, Lease, find_holder
from jamsface_jax.storage.paths import check_address

_BYTES = 2**23
_ROLE = "give this account the role Storage Object User for the bucket"


class BucketProbe:
  """A place in a bucket that is tried; what that writes goes at the end.

  Args:
    address: gs://BUCKET/RUN, as --workdir has it.

  Raises:
    InputError: it is no such address, or a package is missing.
  """

  def __init__(self, address: str):
    address = check_address(address, "--workdir")
    require_packages(address)
    self._run = Bucket(address)
    # Beside what a run has there: nobody takes it for a part of one.
    self._place = self._run.below(f"doctor-{secrets.token_hex(8)}")
    self._wrote = False

  def __enter__(self) -> "BucketProbe":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if not self._wrote:
      return
    # The first error is what counts.
    with contextlib.suppress(*((OSError, InputError) if kind else ())):
      self._place.delete(self._place.blobs())

  def looks(self) -> Iterator[tuple[str, Callable[[], str]]]:
    """What to try in this order, a word for each: it says what was found.

    Each raises InputError where something is missing, and OSError where the
    service does not answer.
    """
    yield "bucket", self._reach
    yield "objects", self._write_and_read
    yield "locking", self._lock
    yield "checkpoint", self._save_and_restore

  def holder(self) -> str | None:
    """Who has locked the run, in words; None for nobody."""
    return find_holder(self._run)

  def _reach(self) -> str:
    self._run.list_files()  # The first one finds credentials, and connects.
    begin = time.monotonic()
    count = len(self._run.list_files())
    seconds = time.monotonic() - begin
    return (
      f"{self._run.address} answered {account()} in {1000 * seconds:.0f} ms:"
      f" {count} files are there"
    )

  def _write_and_read(self) -> str:
    self._wrote = True
    data, begin = os.urandom(_BYTES), time.monotonic()
    self._place.write("probe", data)
    middle = time.monotonic()
    if self._place.read("probe") != data:
      raise InputError(
        f"{self._run.address!r} gives back other bytes than were written: look"
        " at what lies between this machine and the bucket."
      )
    end = time.monotonic()
    self._place.delete(["probe"])
    if "probe" in self._place.blobs():
      raise InputError(f"{self._run.address!r} keeps what is removed: {_ROLE}.")
    rates = [_BYTES / 2**20 / s for s in (middle - begin, end - middle)]
    return f"written at {rates[0]:.0f} MiB/s, read at {rates[1]:.0f}, removed"

  def _lock(self) -> str:
    """Whether of two writers one is refused, which a lock lives on."""
    with contextlib.closing(Lease(self._place)):
      with contextlib.suppress(ChangedError):
        self._place.write(LOCK, b"", replaces=0)
        raise InputError(
          f"{self._run.address!r} does not heed preconditions: two runs there"
          " would not see each other; use Google Cloud Storage itself."
        )
    return "taken, refused to a second process, given back"

  def _save_and_restore(self) -> str:
    """By Orbax, whose two clients find credentials by themselves."""
    numbers = jax.numpy.arange(1024, dtype=jax.numpy.float32)
    path = f"{self._place.address}/checkpoint"
    begin = time.monotonic()
    try:
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
        orbax.save(path, args=ocp.args.StandardSave({"numbers": numbers}))
        found = orbax.restore(path, args=ocp.args.StandardRestore())
    except Exception as error:  # Of any of its libraries.
      raise InputError(
        f"{self._run.address!r}: Orbax cannot save there"
        f" ({one_line(error)}): set GOOGLE_APPLICATION_CREDENTIALS to a file"
        " that 'gcloud auth application-default login' makes, or use a machine"
        " with a service account."
      ) from None
    if not np.array_equal(found["numbers"], np.asarray(numbers)):
      raise InputError(
        f"{self._run.address!r}: Orbax restored other numbers than it saved:"
        " compare its version with that in setup.cfg."
      )
    return f"saved and restored by Orbax in {time.monotonic() - begin:.1f} s"
