"""A place in a bucket of Google Cloud Storage: objects by their names below it.

The client is google-cloud-storage, which gcsfs brings, and gcsfs is what Orbax
asks for when it writes there. Of the two it is the one whose calls are plain:
it keeps no listings that another process could have changed, and it takes
preconditions. It finds credentials as Google's tools do.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from jamsface_jax import interruption
from jamsface_jax.errors import InputError, one_line

if TYPE_CHECKING:
  from google.cloud import storage

SCHEME = "gs://"
_AT_ONCE = 8  # Requests under way; the client keeps ten connections.
_READ_BYTES = 2**23
_PATIENCE = 120.0  # Seconds in which a request is tried again.
_LOGIN = (
  "type 'gcloud auth application-default login', or give the machine a service"
  " account"
)
_FIELDS = "items(name,size,md5Hash,crc32c,generation),nextPageToken"


class ChangedError(Exception):
  """An object is not, or no longer, of the version that was to be replaced."""


@dataclasses.dataclass(frozen=True)
class Blob:
  """What a listing says of an object.

  Attributes:
    bytes: its size.
    generation: number of this version, which no other version has.
    md5: of its content, in base64; None of one that was composed of others.
    crc32c: CRC-32C of its content, in base64.
  """

  bytes: int
  generation: int
  md5: str | None
  crc32c: str


@dataclasses.dataclass(frozen=True)
class Bucket:
  """A place in a bucket.

  Every method asks the service; what could not be had after two minutes of
  trying raises an OSError. InputError is raised where credentials, permission,
  the bucket or a package is missing.

  Attributes:
    address: "gs://BUCKET" or "gs://BUCKET/PREFIX", no slash at its end.
  """

  address: str

  @property
  def name(self) -> str:
    """Name of the bucket."""
    return self.address.removeprefix(SCHEME).split("/")[0]

  def below(self, name: str) -> "Bucket":
    """A place below this one."""
    return Bucket(f"{self.address}/{name}")

  def key(self, name: str) -> str:
    """Name of an object in the bucket."""
    prefix = self.address.removeprefix(f"{SCHEME}{self.name}").lstrip("/")
    return f"{prefix}/{name}" if prefix else name

  def blobs(self, below: str = "") -> dict[str, Blob]:
    """All objects below, in the order of their names.

    Args:
      below: names that begin so.
    """
    start = len(self.key(""))
    with self._explained(None):
      found = _client().list_blobs(
        self.name, prefix=self.key(below), fields=_FIELDS
      )
      return {one.name[start:]: _describe(one) for one in found}

  def list_files(self) -> list[str]:
    """Names of the objects here that lie in no folder."""
    start = len(self.key(""))
    with self._explained(None):
      found = _client().list_blobs(
        self.name, prefix=self.key(""), delimiter="/"
      )
      return [one.name[start:] for one in found]

  def read(self, name: str) -> bytes:
    """Reads an object; its checksum is compared.

    Raises:
      FileNotFoundError: it is not there.
    """
    with self._explained(name):
      return self._blob(name).download_as_bytes()

  def read_version(self, name: str) -> tuple[bytes, int] | None:
    """Reads an object and the generation that was read; None without one."""
    try:
      with self._explained(name):
        blob = self._blob(name)
        data = blob.download_as_bytes()
    except FileNotFoundError:
      return None
    return data, blob.generation or 0

  def sha256(self, name: str) -> str:
    """Reads an object for its SHA-256."""
    with self._explained(name), self._blob(name).open("rb") as file:
      digest = hashlib.sha256()
      while data := file.read(_READ_BYTES):
        digest.update(data)
      return digest.hexdigest()

  def write(
    self,
    name: str,
    data: bytes,
    *,
    replaces: int | None = None,
    patience: float = _PATIENCE,
  ) -> int:
    """Writes an object, whole or not at all.

    Args:
      name: that of the object.
      data: its content.
      replaces: only if the object has this generation; 0: if there is none;
        None: whatever there is.
      patience: seconds in which it is tried again.

    Returns:
      The generation of what was written.

    Raises:
      ChangedError: the object has another generation than `replaces`.
    """
    with self._explained(name):
      blob = self._blob(name)
      blob.upload_from_string(
        data,
        content_type="application/octet-stream",
        if_generation_match=replaces,
        timeout=min(patience, 60.0),
        retry=_retry(patience),
      )
    return blob.generation or 0

  def upload(self, files: Mapping[str, str]) -> None:
    """Writes files as objects, several at a time.

    Args:
      files: paths by the names of the objects.
    """

    def upload_one(name: str) -> None:
      with self._explained(name):
        self._blob(name).upload_from_filename(
          files[name], retry=_retry(_PATIENCE)
        )

    _at_once(upload_one, files)

  def download(self, files: Mapping[str, str]) -> None:
    """Reads objects into files, several at a time; checksums are compared.

    Args:
      files: paths by the names of the objects.

    Raises:
      FileNotFoundError: an object is not there.
    """

    def download_one(name: str) -> None:
      with self._explained(name):
        self._blob(name).download_to_filename(files[name])

    _at_once(download_one, files)

  def copy(self, names: Mapping[str, str]) -> None:
    """Copies objects within the bucket.

    Args:
      names: the new names by the old.
    """

    def copy_one(name: str) -> None:
      with self._explained(name):
        target, token = self._blob(names[name]), None
        while True:
          token, _, _ = target.rewrite(self._blob(name), token=token)
          if token is None:
            return

    _at_once(copy_one, names)

  def delete(self, names: Iterable[str]) -> None:
    """Removes objects, several at a time; those that are gone are no error."""

    def delete_one(name: str) -> None:
      with contextlib.suppress(FileNotFoundError), self._explained(name):
        self._blob(name).delete(retry=_retry(_PATIENCE))

    _at_once(delete_one, names)

  def delete_version(self, name: str, generation: int) -> None:
    """Removes an object if it still has this generation."""
    with contextlib.suppress(FileNotFoundError, ChangedError):
      with self._explained(name):
        self._blob(name).delete(if_generation_match=generation)

  def _blob(self, name: str) -> "storage.Blob":
    return _client().bucket(self.name).blob(self.key(name))

  @contextlib.contextmanager
  def _explained(self, name: str | None) -> Generator[None, None, None]:
    """Turns the client's errors into those that the methods speak of."""
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from requests import RequestException

    address = self.address if name is None else f"{self.address}/{name}"
    try:
      yield
    except api.PreconditionFailed:
      raise ChangedError(f"{address!r} is another version") from None
    except api.NotFound as error:
      if name is not None and "bucket does not exist" not in str(error):
        text = "No such object"
        raise FileNotFoundError(errno.ENOENT, text, address) from None
      raise InputError(
        f"{address!r}: there is no bucket {self.name!r}: make it, with 'gcloud"
        f" storage buckets create gs://{self.name}', or correct the address."
      ) from None
    except (api.Forbidden, api.Unauthorized) as error:
      raise InputError(
        f"{address!r} may not be used by this account ({one_line(error)}): give"
        " it the role Storage Object User for the bucket."
      ) from None
    except auth.DefaultCredentialsError:
      raise InputError(f"{address!r} needs credentials: {_LOGIN}.") from None
    except (
      api.GoogleAPIError,
      auth.GoogleAuthError,
      RequestException,
    ) as error:
      text = f"the bucket did not answer: {one_line(error)}"
      raise OSError(errno.EIO, text, address) from error


def require_packages(address: str) -> None:
  """Refuses an address where the packages for it are missing.

  Raises:
    InputError: the extra `gcs` is not installed.
  """
  if importlib.util.find_spec("gcsfs") is None:
    raise InputError(
      f"{address!r} needs the package gcsfs: type pip install"
      " 'jamsface-jax[gcs]'."
    )
  import fsspec.config

  # Orbax asks through it what there is. Its memory of listings is of one
  # process, and others write: process 1 would see what no longer is so.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def account() -> str:
  """Whose credentials this process uses, in words.

  Raises:
    InputError: there are none.
  """
  import google.auth
  from google.auth import exceptions as auth

  if os.environ.get("STORAGE_EMULATOR_HOST"):
    return "nobody in particular (STORAGE_EMULATOR_HOST is set)"
  try:
    credentials, _ = google.auth.default()
  except auth.DefaultCredentialsError:
    raise InputError(f"no credentials: {_LOGIN}.") from None
  name = getattr(credentials, "service_account_email", None)
  return f"service account {name}" if name else "a person's account"


@functools.lru_cache(maxsize=1)
def _client() -> "storage.Client":
  """The client of this process; it may be used by threads."""
  with interruption.postponed():
    from google.cloud import storage

  # Objects belong to buckets: no project is needed, and none is looked for.
  return storage.Client(project=None)


def _retry(seconds: float) -> Callable:
  """How often to ask again: what is asked here may be asked twice."""
  from google.cloud.storage.retry import DEFAULT_RETRY

  return DEFAULT_RETRY.with_timeout(seconds)


def _describe(found: "storage.Blob") -> Blob:
  return Blob(
    found.size or 0, found.generation or 0, found.md5_hash, found.crc32c or ""
  )


def _at_once(do: Callable[[str], None], names: Iterable[str]) -> None:
  """Does it for all names, a few at a time; raises the first error."""
  with ThreadPoolExecutor(_AT_ONCE) as pool:
    for _ in pool.map(do, names):
      pass
