"""Outputs for a bucket: made on a local disk, sent when they are whole.

What commands write is made by appending, renaming and locking, which a bucket
cannot. So `--output=gs://BUCKET/NAME` is a directory in the user's cache until
it is whole. Then its files are sent, one of them last: before that is there,
nobody takes what is there for the whole.
"""

import base64
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable

from tqdm import tqdm

from jamsface_jax.errors import InputError, RunError
from jamsface_jax.storage.bucket import (
  SCHEME,
  Bucket,
  ChangedError,
  require_packages,
)
from jamsface_jax.storage.lease import Lease
from jamsface_jax.storage.lock import LOCK_FILE
from jamsface_jax.storage.paths import check_address, require_local
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.user_cache import cache_directory
from jamsface_jax.storage.whole_file import written_whole

_READ_BYTES = 2**23


def write_folder(
  output: str, make: Callable[[str], None], *, last: str, what: str
) -> None:
  """Makes a directory, or for an address one that is sent there.

  What was interrupted goes on when the same command is given again, sending
  too. The local directory stays, for this machine and for who asks again.

  Args:
    output: --output, a path or gs://BUCKET/NAME.
    make: writes all to the directory that it is given.
    last: name of the file that makes it whole.
    what: it is, for messages, such as "a data set".

  Raises:
    InputError: one is there, or the place cannot be used.
    RunError: the bucket did not answer.
  """
  address = _address(output)
  if address is None:
    make(output)
    return
  place = Bucket(address)
  if last in place.list_files():
    raise _not_empty(address, what)
  directory = _directory(address)
  _check_command(directory)
  if os.path.exists(os.path.join(directory, last)):
    print(f"{directory} is whole since an earlier attempt: it is sent.")
  else:
    make(directory)
  try:
    with contextlib.closing(Lease(place, flag="--output")):
      _send(directory, place, last)
  except ChangedError:
    raise _not_empty(address, what) from None
  except OSError as error:
    raise RunError(
      f"--output={address!r}: {error.strerror or error}: give the same command"
      f" again, {what} is whole in {directory!r}."
    ) from None
  print(f"sent to {address}; {directory} is needed no longer")


def write_file(output: str, make: Callable[[str], None]) -> None:
  """Makes a new file, or for an address one that is sent there.

  Args:
    output: --output, a path or gs://BUCKET/NAME.
    make: writes the file to the path that it is given.

  Raises:
    InputError: one is there, or the place cannot be used.
    RunError: the bucket did not answer.
  """
  address = _address(output)
  if address is None:
    make(output)
    return
  above, _, name = address.rpartition("/")
  place = Bucket(above)
  if name in place.blobs(name):
    raise _not_empty(address, "a file")
  with tempfile.TemporaryDirectory(dir=cache_directory("uploads")) as directory:
    path = os.path.join(directory, name)
    make(path)
    try:
      with open(path, "rb", opener=plain) as file:
        place.write(name, file.read(), replaces=0)
    except ChangedError:
      raise _not_empty(address, "a file") from None
    except OSError as error:
      raise RunError(
        f"--output={address!r}: {error.strerror or error}: give the same"
        " command again."
      ) from None
  print(f"sent to {address}")


def _address(output: str) -> str | None:
  """The address that an output has in a bucket; None for a path.

  Raises:
    InputError: it is neither, or a package is missing.
  """
  if not output.startswith(SCHEME):
    require_local(output, "--output")
    return None
  address = check_address(output, "--output")
  require_packages(address)
  return address


def _directory(address: str) -> str:
  """Where what goes to an address is made."""
  name = address.rpartition("/")[2]
  digest = hashlib.sha256(address.encode()).hexdigest()[:16]
  return os.path.join(cache_directory("uploads"), f"{name}-{digest}")


def _check_command(directory: str) -> None:
  """Sees that what is in a directory was begun by this command.

  Raises:
    InputError: another command began it.
  """
  path = f"{directory}.command"
  command = json.dumps([os.getcwd(), *sys.argv])
  if os.path.isdir(directory) and os.path.exists(path):
    with open(path, encoding="utf-8", opener=plain) as file:
      if file.read() != command:
        raise InputError(
          f"{directory!r} holds what another command began for the same"
          " --output: give that one again, or delete the directory."
        )
  else:
    with written_whole(path) as file:
      file.write(command)


def _send(directory: str, place: Bucket, last: str) -> None:
  """Sends what is not there yet, one file last.

  Raises:
    ChangedError: somebody else has sent that one.
    OSError: the bucket did not answer, or a file cannot be read.
  """
  there = place.blobs()
  sizes = {
    name: os.path.getsize(os.path.join(directory, name))
    for name in _files(directory)
  }
  with tqdm(
    total=sum(sizes.values()),
    unit="B",
    unit_scale=True,
    desc=place.address,
    disable=None,
  ) as bar:
    for name in sorted(sizes):
      path = os.path.join(directory, name)
      if name != last:
        if name not in there or there[name].md5 != _md5(path):
          place.upload({name: path})
        bar.update(sizes[name])
    with open(os.path.join(directory, last), "rb", opener=plain) as file:
      place.write(last, file.read(), replaces=0)


def _files(directory: str) -> Iterable[str]:
  """Names of the files of an output, which has no folders."""
  for entry in os.scandir(directory):
    if entry.is_file(follow_symlinks=False) and entry.name != LOCK_FILE:
      yield entry.name


def _md5(path: str) -> str:
  """MD5 as buckets write it."""
  digest = hashlib.md5(usedforsecurity=False)
  with open(path, "rb", opener=plain) as file:
    while data := file.read(_READ_BYTES):
      digest.update(data)
  return base64.b64encode(digest.digest()).decode()


def _not_empty(address: str, what: str) -> InputError:
  return InputError(
    f"--output={address!r} holds {what} already: choose another address or"
    " delete it first."
  )
