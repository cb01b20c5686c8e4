"""Data sets for a bucket: made on a local disk, sent when they are whole."""

from collections.abc import Callable

from jamsface_jax.data.records import INDEX_FILE
from jamsface_jax.storage.bucket import SCHEME
from jamsface_jax.storage.upload import write_folder


def write(output: str, convert: Callable[[str], None]) -> None:
  """Converts to a directory, or to an address; see `storage.upload`.

  Args:
    output: --output, a path or gs://BUCKET/NAME.
    convert: writes the data set to the directory that it is given.

  Raises:
    InputError: a data set is there, or the place cannot be used.
    RunError: the bucket did not answer.
  """
  write_folder(output, convert, last=INDEX_FILE, what="a data set")
  if output.startswith(SCHEME):
    print(f"next: --config.data.directory={output} takes it on any machine")
