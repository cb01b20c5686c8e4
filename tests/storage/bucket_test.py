"""Objects of a bucket, by the real client against the stand-in."""

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.storage.bucket import Bucket, ChangedError


@pytest.fixture
def place(gcs, request):
  return Bucket(f"gs://objects/{request.node.name}")


def test_objects_are_written_read_listed_copied_removed(place, tmp_path):
  place.write("a", b"one")
  (tmp_path / "file").write_bytes(bytes(300_000))
  place.upload({"d/b": str(tmp_path / "file"), "d/c": str(tmp_path / "file")})
  assert place.read("a") == b"one"
  blobs = place.blobs()
  assert list(blobs) == ["a", "d/b", "d/c"]
  assert blobs["d/b"].bytes == 300_000 and blobs["d/b"].md5
  assert list(place.blobs("d/")) == ["d/b", "d/c"]
  assert place.list_files() == ["a"] and place.below("d").list_files()
  place.download({"d/b": str(tmp_path / "again")})
  assert (tmp_path / "again").read_bytes() == bytes(300_000)
  place.copy({"a": "e/a"})
  assert place.below("e").read("a") == b"one"
  place.delete(["a", "d/b", "d/c", "none"])
  assert list(place.blobs()) == ["e/a"]


def test_versions_decide(place):
  first = place.write("x", b"1", replaces=0)
  with pytest.raises(ChangedError):
    place.write("x", b"2", replaces=0)
  second = place.write("x", b"2", replaces=first)
  with pytest.raises(ChangedError):
    place.write("x", b"3", replaces=first)
  assert place.read_version("x") == (b"2", second)
  place.delete_version("x", first)
  assert place.read("x") == b"2"
  place.delete_version("x", second)
  assert place.read_version("x") is None


def test_what_is_missing_is_named(place, tmp_path):
  with pytest.raises(FileNotFoundError, match=f"{place.address}/x"):
    place.read("x")
  with pytest.raises(FileNotFoundError):
    place.download({"x": str(tmp_path / "x")})
  for ask in (lambda b: b.blobs(), lambda b: b.write("x", b"")):
    with pytest.raises(InputError, match="there is no bucket 'missing'"):
      ask(Bucket("gs://missing/run"))
    with pytest.raises(InputError, match="may not be used by this account"):
      ask(Bucket("gs://forbidden/run"))


def test_a_server_in_trouble_is_asked_again(gcs, place):
  place.write("x", b"1")
  gcs.fail_next.extend([503])
  assert place.read("x") == b"1"
  gcs.fail_next.extend([503, 429])
  assert list(place.blobs()) == ["x"]
