"""Encoded images of friends and of strangers."""

import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import peak_memory
import pytest
import simplejpeg
from PIL import Image

from jamsface_jax.data import decoding
from jamsface_jax.data.decoding import (
  DecodingError,
  decode_image,
  decode_into,
  read_size,
)
from jamsface_jax.data.image_header import stated_size
from jamsface_jax.data.images import open_folder

RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(
  RNG.integers(0, 255, (4, 5, 3), np.uint8), (41, 27), interpolation=2
)


def with_opencv(end, *flags):
  return cv2.imencode(end, SMOOTH, flags)[1].tobytes()


def with_pillow(kind, mode="RGB", **options):
  stream = io.BytesIO()
  Image.fromarray(SMOOTH).convert(mode).save(stream, kind, **options)
  return stream.getvalue()


def os2_bitmap():
  rows = np.pad(SMOOTH.reshape(27, -1), ((0, 0), (0, -3 * 41 % 4))).tobytes()
  head = struct.pack("<IHHHH", 12, 41, 27, 1, 24)
  size = 14 + len(head) + len(rows)
  return b"BM" + struct.pack("<IHHI", size, 0, 0, 26) + head + rows


IMAGES = {
  "png": with_opencv(".png"),
  "png_grey": with_pillow("PNG", "L"),
  "png_palette": with_pillow("PNG", "P"),
  "webp_lossy": with_opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
  "webp_lossless": with_opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
  "webp_alpha": with_pillow("WEBP", "RGBA", exif=b"Exif\0\0"),
  "bmp": with_opencv(".bmp"),
  "bmp_os2": os2_bitmap(),
  "gif": with_pillow("GIF", "P"),
  "tiff": with_opencv(".tiff"),
  "tiff_lzw": with_pillow("TIFF", compression="tiff_lzw"),
  "ppm": with_opencv(".ppm"),
  "pgm": b"P5\n# of a camera\n41 27\n255\n" + bytes(41 * 27),
  "pbm": b"P1\n41 27\n" + b"0 1" * 700,
  "pam": with_opencv(".pam"),
  "sun_raster": with_opencv(".ras"),
  "jpeg_2000": with_pillow("JPEG2000"),
  "jpeg_2000_bare": with_pillow("JPEG2000", no_jp2=True),
  "avif": with_opencv(".avif"),
  "avif_pillow": with_pillow("AVIF"),
  "jpeg": with_opencv(".jpg"),
  "jpeg_progressive": with_opencv(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_size_is_known_before_the_pixels(name):
  """The decoders vouch for it."""
  data = IMAGES[name]
  assert read_size(data) == decode_image(data).shape[:2] == (27, 41)
  if not name.startswith(("jpeg", "tiff")):
    head = 400 if name.startswith("avif") else 200
    assert stated_size(data[:head]) == (27, 41)


@pytest.mark.parametrize("name", IMAGES)
def test_half_an_image_is_none(name):
  """In every format, and no picture with a grey half."""
  data = IMAGES[name]
  with pytest.raises(DecodingError):
    decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("name", IMAGES)
def test_a_cut_head_is_a_bad_image(name):
  for length in (*range(30), 60):
    cut = IMAGES[name][:length]
    try:
      assert min(decode_image(cut).shape) > 0
    except DecodingError:
      pass  # And nothing else.


@pytest.mark.parametrize("mirrored_first", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("quarters", range(4))
def test_an_avif_is_turned_as_its_boxes_say(quarters, axis, mirrored_first):
  """By hand, in either order; libavif's avif.h says what the boxes mean.

  Pillow, which vouches for what Exif can say (public_reports_test), writes the
  file that is changed.
  """
  exif = Image.Exif()
  exif[0x0112] = 5
  data = bytearray(with_pillow("AVIF", exif=exif.tobytes()))
  at = data.index(b"mdat") - 6  # The end of `ipma`: which properties it has.
  assert data[at : at + 2] == b"\x85\x86"
  for name, value in ((b"irot", 0), (b"imir", 0)):
    data[data.index(name) + 4] = value
  stored = decode_image(bytes(data))[::-1]
  data[data.index(b"irot") + 4] = quarters
  data[data.index(b"imir") + 4] = axis
  mirror = np.fliplr if axis else np.flipud
  want = mirror(np.rot90(stored, quarters))
  if mirrored_first:
    data[at : at + 2] = b"\x86\x85"
    want = np.rot90(mirror(stored), quarters)
  np.testing.assert_array_equal(decode_image(bytes(data)), want)
  assert read_size(bytes(data)) == want.shape[:2]


def test_a_heic_is_called_so():
  """By the codec's name, here in boxes around another; real ones were tried."""
  data = IMAGES["avif"].replace(b"av01", b"hvc1")
  with pytest.raises(DecodingError, match="a HEIC image: convert it to JPEG"):
    decode_image(data)


def chunk(kind, data):
  crc = zlib.crc32(kind + data)
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width, height, bits=8, color=2):
  head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
  row = bytes(1 + width * bits // 8 * {0: 1, 2: 3, 6: 4}[color])
  packer = zlib.compressobj(9)
  rows = b"".join(packer.compress(row) for _ in range(min(height, 20)))
  body = chunk(b"IHDR", head) + chunk(b"IDAT", rows + packer.flush())
  return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def jpeg(width, height):
  data = bytearray(IMAGES["jpeg"])
  at = data.index(b"\xff\xc0") + 5
  data[at : at + 4] = struct.pack(">HH", height, width)
  return bytes(data)


def bmp(width, height):
  head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
  return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head + bytes(64)


def tiff(width, height, *more):
  tags = [
    (256, 4, 1, width),
    (257, 4, 1, height),
    (258, 3, 1, 8),
    (259, 3, 1, 1),
    (262, 3, 1, 1),
    (273, 4, 1, 8),
    (277, 3, 1, 1),
    (278, 4, 1, height),
    (279, 4, 1, 8),
    *more,
  ]
  entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
  return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(64)


def jpeg_2000(width, height):
  """The box keeps its size; what is in it says another."""
  data = bytearray(IMAGES["jpeg_2000"])
  at = data.index(b"\xff\x4f\xff\x51") + 8
  data[at : at + 8] = struct.pack(">II", width, height)
  return bytes(data)


def avif(width, height):
  data = bytearray(IMAGES["avif"])
  at = data.index(b"ispe") + 8
  data[at : at + 8] = struct.pack(">II", width, height)
  return bytes(data)


BOMBS = {
  "png": lambda: png(20_000, 20_000),
  "png_deep": lambda: png(20_000, 20_000, 16, 6),
  "jpeg": lambda: jpeg(65_500, 65_500),
  "bmp": lambda: bmp(2**17, 2**17),
  "bmp_upside_down": lambda: bmp(2**17, -(2**17)),
  "bmp_negative": lambda: bmp(-(2**31), 2),
  "webp": lambda: (
    IMAGES["webp_lossy"][:26]
    + struct.pack("<HH", 16_383, 16_383)
    + IMAGES["webp_lossy"][30:]
  ),
  "webp_canvas": lambda: (
    IMAGES["webp_alpha"][:24] + b"\xff" * 6 + IMAGES["webp_alpha"][30:]
  ),
  "gif": lambda: (
    IMAGES["gif"][:6] + struct.pack("<HH", 65_535, 65_535) + IMAGES["gif"][10:]
  ),
  "tiff": lambda: tiff(2**20, 2**20),
  "tiff_tile": lambda: tiff(8, 8, (322, 4, 1, 2**16), (323, 4, 1, 2**16)),
  "pgm": lambda: b"P5 65000 65000 255\n" + bytes(64),
  "pam": lambda: b"P7\nHEIGHT 65000\nWIDTH 65000\nENDHDR\n" + bytes(64),
  "sun_raster": lambda: (
    IMAGES["sun_raster"][:4]
    + struct.pack(">II", 65_000, 65_000)
    + IMAGES["sun_raster"][12:]
  ),
  "jpeg_2000": lambda: jpeg_2000(65_000, 65_000),
  "avif": lambda: avif(65_000, 65_000),
  "pbm": lambda: b"P4\n#\n999999\n999999\n" + bytes(64),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_says_it_is_huge_is_not_decoded(name):
  data = BOMBS[name]()
  pixels = np.empty((8, 8, 3), np.uint8)

  def decode():
    with pytest.raises(DecodingError, match="pixels, more than 100,000,000"):
      decode_into(data, pixels)

  decode()  # Once for what Python keeps.
  assert len(data) < 100_000 and peak_memory.peak_above(decode) < 4 * 2**20


def test_the_bound_can_be_raised(monkeypatch):
  monkeypatch.setenv("JAMSFACE_MAX_PIXELS", "1000")
  for data in IMAGES.values():
    with pytest.raises(DecodingError, match="--max_pixels=1107 if"):
      decode_image(data)
  monkeypatch.setenv("JAMSFACE_MAX_PIXELS", "1107")
  for data in IMAGES.values():
    decode_image(data)


def test_formats_without_a_head_that_is_read_are_not_decoded():
  for end in (".pfm", ".hdr"):
    data = with_opencv(end)
    with pytest.raises(DecodingError, match="not a JPEG, PNG, WebP"):
      decode_image(data)


def test_a_decoder_that_refuses_is_a_bad_image():
  """OpenCV takes no image that is wider than 2^20."""
  with pytest.raises(DecodingError, match="OpenCV cannot decode it"):
    decode_image(bmp(2**21, 1))


def test_many_scans_of_a_large_jpeg_are_refused():
  large = np.zeros((1100, 1100, 3), np.uint8)
  flags = cv2.IMWRITE_JPEG_PROGRESSIVE, 1
  data = cv2.imencode(".jpg", large, flags)[1].tobytes()
  assert decode_image(data).shape == (1100, 1100, 3)
  last = data.rindex(b"\xff\xda")
  with pytest.raises(DecodingError, match="200 scans"):
    decode_image(data[:-2] + 200 * data[last:-2] + data[-2:])


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_no_memory_is_a_bad_image(name):
  code = (
    "import resource, sys\n"
    "from jamsface_jax.data import decoding\n"
    "data = sys.stdin.buffer.read()\n"
    "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
    "resource.setrlimit(resource.RLIMIT_AS, (used + 2**25,) * 2)\n"
    "try:\n  decoding.decode_image(data)\n"
    "except decoding.DecodingError as error:\n  print(error)\n"
  )
  large = np.zeros((9_000, 9_000), np.uint8)
  done = subprocess.run(
    [sys.executable, "-c", code],
    input=cv2.imencode(f".{name}", large)[1].tobytes(),
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  assert b"emory" in done.stdout or b"decode" in done.stdout


SIZES = (20, 32, 47)  # Below, at and above what is wanted.


def test_decoding_takes_no_memory_for_ever():
  """The small dose of benchmarks/soak.py; 4.4 kB an image were lost once."""
  wanted = np.empty((32, 32, 3), np.uint8)
  encoded = []
  for size in SIZES:
    image = RNG.integers(0, 255, (size, size, 3), np.uint8)
    encoded += [simplejpeg.encode_jpeg(image)]
    encoded += [cv2.imencode(e, image)[1].tobytes() for e in (".png", ".webp")]
  encoded += [data[: len(data) // 2] for data in encoded]

  def dose(times):
    for _ in range(times):
      for data in encoded:
        try:
          decode_into(data, wanted)
        except DecodingError:
          pass

  dose(30)
  before = peak_memory.resident()
  dose(250)
  assert peak_memory.resident() - before < 2**20


def test_a_bad_image_has_its_name_and_the_others_are_read(tmp_path):
  for name in ("a", "c"):
    (tmp_path / f"{name}.png").write_bytes(IMAGES["png"])
  (tmp_path / "b.png").write_bytes(png(20_000, 20_000))
  (tmp_path / "d.bmp").write_bytes(bmp(2**21, 1))
  os.mkfifo(tmp_path / "e.png")
  block = open_folder(str(tmp_path), 8).read(0, 5)
  assert sorted(block.broken) == [1, 3, 4]
  assert "20000 x 20000 pixels" in block.broken[1]
  assert "OpenCV cannot decode it" in block.broken[3]
  assert "pipe" in block.broken[4]
  assert block.pixels[0].any() and block.pixels[2].any()


def test_what_fits_is_decoded_in_place_and_the_rest_is_scaled():
  for size in SIZES:
    image = cv2.resize(SMOOTH, (size, size))
    data = simplejpeg.encode_jpeg(image)
    pixels = np.empty((32, 32, 3), np.uint8)
    decode_into(data, pixels)
    want = np.empty_like(pixels)
    decoding.scale_into(decode_image(data), want)
    np.testing.assert_array_equal(pixels, want)
