"""A lock in a bucket: who gets it, when, and who is told."""

import json
import queue
import threading
import time

import pytest

from jamsface_jax.errors import InputError, RunError
from jamsface_jax.storage import lease as lease_file
from jamsface_jax.storage.bucket import Bucket
from jamsface_jax.storage.lease import Lease

SHORT = 0.9


@pytest.fixture
def place(gcs, request):
  return Bucket(f"gs://locks/{request.node.name}")


def leave(place, **changes):
  """Leaves the lock of a process of another machine; returns its version."""
  holder = {"host": "far", "pid": 7, "token": "t", "machine": "other"}
  return place.write("lock", json.dumps(holder | changes).encode())


def test_the_second_is_refused_and_told_who_holds_it(place):
  lease = Lease(place)
  begin = time.monotonic()
  with pytest.raises(InputError, match=r"in use by process \d+ on host"):
    Lease(place)
  assert time.monotonic() - begin < 5  # Of this machine: nothing to wait for.
  lease.close()
  Lease(place).close()  # Given back: nobody waits.
  assert place.read_version("lock") is None


def test_it_is_renewed(place):
  lease = Lease(place, SHORT)
  first = place.read_version("lock")
  time.sleep(SHORT)
  lease.check()
  assert place.read_version("lock")[1] != first[1]
  lease.close()


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_at_once(place):
  begun = lease_file._identity()
  leave(place, **begun | {"started": "0"})  # Its number is another's now.
  begin = time.monotonic()
  lease = Lease(place)
  assert time.monotonic() - begin < 5
  lease.close()


def test_the_lock_of_a_silent_process_is_taken_after_the_stated_time(
  place, capfd
):
  leave(place)
  begin = time.monotonic()
  lease = Lease(place, SHORT)
  assert SHORT < time.monotonic() - begin < 10 * SHORT
  assert "process 7 on host far: waiting up to 0.9 s" in capfd.readouterr().err
  lease.close()


def test_the_lock_of_a_living_process_of_another_machine_is_not(place):
  generation = leave(place)

  def live():
    time.sleep(SHORT / 2)
    place.write("lock", b'{"pid": 7, "host": "far"}', replaces=generation)

  thread = threading.Thread(target=live)
  thread.start()
  with pytest.raises(InputError, match="in use by process 7 on host far"):
    Lease(place, SHORT * 2)
  thread.join()


def test_one_of_two_takes_what_is_left(place):
  """Both have seen the same silent lock; the precondition decides."""
  generation = leave(place)
  lease = Lease.__new__(Lease)
  lease._place, lease._seconds, lease._pause = place, SHORT, SHORT / 6
  lease._me, lease._beat = lease_file._identity(), 0
  leave(place, token="u")  # The other was faster.
  with pytest.raises(Exception, match="another version"):
    lease._write(generation, 1.0)


@pytest.mark.parametrize("how", ["taken", "removed"])
def test_who_has_lost_it_is_told(place, how):
  lost = queue.Queue()
  lease = Lease(place, SHORT, lost.put)
  place.delete(["lock"])
  if how == "taken":
    leave(place)
  assert f"was {how}" in lost.get(timeout=10)
  lease.close()
  assert (place.read_version("lock") is None) == (how == "removed")


def test_who_cannot_renew_it_is_told_before_others_may_take_it(
  place, monkeypatch
):
  lost = queue.Queue()
  lease = Lease(place, 2.0, lost.put)
  begin = time.monotonic()

  def fail(*arguments, **more):
    raise OSError(5, "no network")

  with monkeypatch.context() as patch:
    patch.setattr(Bucket, "write", fail)
    assert "could not be renewed (" in lost.get(timeout=10)
  assert time.monotonic() - begin < 2.0
  lease._renewed -= 2.0
  with pytest.raises(RunError, match="not renewed"):
    lease.check()
  lease.close()


def test_an_answer_that_was_lost_is_no_loss(place):
  lease = Lease(place, SHORT)
  # Written by this process, and it never heard so.
  data, generation = place.read_version("lock")
  place.write("lock", data, replaces=generation)
  time.sleep(SHORT / 2)
  lease.check()
  lease.close()
  assert place.read_version("lock") is None
