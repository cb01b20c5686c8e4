"""Addresses of buckets, as Google's documentation of their names has them."""

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.storage.paths import check_address, require_local


@pytest.mark.parametrize(
  "address",
  ["gs://abc/r", "gs://my-runs_1/a/b", "gs://runs.example.com/r", "gs://0a9/r"],
)
def test_addresses_of_buckets(address):
  assert check_address(f"{address}//", "--workdir") == address
  with pytest.raises(InputError, match="is an address and not a path"):
    require_local(address, "--workdir")


@pytest.mark.parametrize(
  "address",
  [
    "gs://ab/r",  # Of three letters at least: TensorStore says so at a save.
    "gs://Runs/r",
    "gs://-runs/r",
    "gs://runs_/r",
    f"gs://{'a' * 223}/r",
    "gs://runs",
    "gs://runs/",
    "gs://runs//r",
    "gs://runs/a/../b",
    "gs:/runs/r",
  ],
)
def test_what_is_no_address_of_a_bucket(address):
  with pytest.raises(InputError, match="--workdir=.* is not an address of the"):
    check_address(address, "--workdir")
