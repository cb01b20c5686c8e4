"""A fixed dose of damaged files for every reader; `make fuzz` gives more."""

import random

import fuzz_readers
import peak_memory
import pytest

DOSE = 120  # Files a reader; make fuzz tries millions.
MOST_BYTES = 64 * 2**20  # No file here is larger than a few kilobytes.
_PIECES = (
  b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0",
  b"null", b"-1", b"1e999", b"[[[[", b'"', b"}", b"\n", b"NaN", b"2147483648",
)  # fmt: skip


def damaged(data, rng):
  """A copy with a few bytes changed, left out, repeated or put in."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 4))):
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 2, 4, 16)))
    piece = rng.choice(_PIECES)
    data[at:end] = rng.choice(
      (b"", piece, bytes(data[at:end]) * 2, rng.randbytes(end - at))
    )
  cut = rng.randrange(len(data) + 1)
  return bytes(data[: rng.choice((len(data), len(data), cut))])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz_readers.READERS)
def test_any_file_is_read_or_refused(name):
  rng = random.Random(name)
  seeds = fuzz_readers.seeds(name)
  for seed in seeds:
    fuzz_readers.read(name, seed)

  def dose():
    for number in range(DOSE):
      fuzz_readers.read(name, damaged(seeds[number % len(seeds)], rng))

  assert peak_memory.peak_above(dose) < MOST_BYTES
