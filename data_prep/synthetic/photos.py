"""Pictures of procedural faces: pose, expression, light, cover and camera.

An image moves the vertices of a face by an expression, turns and projects them,
fills the polygons in order, multiplies by texture and light, covers some of it,
and passes the whole through a poor camera. Every image is a pure function of
(seed, identity, image, size), by counters of the Philox generator.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from data_prep.synthetic.faces import (
  EXPRESSIONS,
  FIELD_CORNER,
  Face,
  Geometry,
  draw_face,
)

JPEG_QUALITY = 90

_SCALE = 0.92  # Pixels of a 112-pixel image to one unit of the face.
_CAMERA = 420.0  # Distance of the viewer.
_SHIFT = 4  # cv2 takes coordinates in 1/16 pixel.
# Places in the face's frame.
Points = Float[np.ndarray, "p 3"] | Sequence[tuple[float, float, float]]
# Fills a polygon (x, y, z) with a colour; draws lines, closed or not, of that
# many pixels in an image of 112, in a colour.
Fill = Callable[[np.ndarray, np.ndarray, np.ndarray | float, np.ndarray], None]
Draw = Callable[[Sequence[Points], bool, int, np.ndarray], None]

_TEMPLATE = (56.0, 64.0)  # Where the five landmarks' mean comes to lie.


def generator(seed: int, identity: int, image: int = 0) -> np.random.Generator:
  """Random numbers of one image, or of the identity itself (image 0).

  Args:
    seed: the seed of the whole data set, at least 0.
    identity: its number, at least 0.
    image: its number, from 1.

  Returns:
    A generator that starts the same for the same arguments and shares nothing
    with that of any other arguments.
  """
  return np.random.Generator(
    np.random.Philox(key=[seed, identity], counter=[0, 0, 0, image])
  )


def draw_image(
  face: Face, rng: np.random.Generator, size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Takes a picture of a face under random conditions.

  Args:
    face: who.
    rng: the image's own random numbers.
    size: height and width in pixels.

  Returns:
    RGB, uint8 [size, size, 3].
  """
  scale = size / 112
  rotation = _rotation(rng)
  points = face.points + (_expression(rng) @ face.moves).reshape(-1, 3)
  zoom = _SCALE * scale * float(np.exp(0.04 * rng.standard_normal()))
  pivot = face.center + np.asarray([0, 0, 0.3 * face.axes[2]], np.float32)
  g = face.geometry
  mouth = g["mouth_width"]
  landmarks = np.asarray(
    [
      (-g["eye_x"], 0, -3),
      (g["eye_x"], 0, -3),
      (0, g["nose_length"], g["nose_height"]),
      (-mouth, g["mouth_y"], -3),
      (mouth, g["mouth_y"], -3),
    ],
    np.float32,
  )

  def turn(xyz: np.ndarray) -> np.ndarray:
    xyz = (xyz - pivot) @ rotation.T
    return xyz[:, :2] * (_CAMERA / (_CAMERA - xyz[:, 2:]))

  # As an aligned crop would: the landmarks' mean lies where it should, nearly.
  jitter = 1.8 * rng.standard_normal(2)
  offset = scale * (np.asarray(_TEMPLATE, np.float32) + jitter)
  offset = np.asarray(offset - zoom * turn(landmarks).mean(0), np.float32)

  def project(xyz: np.ndarray) -> np.ndarray:
    xy = zoom * turn(xyz) + offset
    return np.rint(xy * 2**_SHIFT).astype(np.int32)

  canvas = _background(rng, size)
  xy = project(points)
  hair_change = float(np.exp(0.1 * rng.standard_normal()))
  for part in face.parts:
    polygon = xy[part.first : part.last]
    if part.hull:
      polygon = cv2.convexHull(polygon)
    color = part.color
    if part.name.startswith("hair"):
      color = tuple(hair_change * value for value in color)
    cv2.fillPoly(canvas, [polygon], color, cv2.LINE_AA, _SHIFT)

  light = _light(face, rng, rotation, pivot, zoom, offset, size)
  pixels = canvas.astype(np.float32) * light
  canvas = np.clip(pixels, 0, 255).astype(np.uint8)
  _cover(canvas, face, rng, project)
  return _camera(canvas, rng)


def _rotation(rng: np.random.Generator) -> Float32[np.ndarray, "3 3"]:
  """Yaw, pitch and roll, in this order, float32 [3, 3]."""
  yaw, pitch, roll = np.clip(rng.standard_normal(3), -2, 2) * np.deg2rad(
    [14, 6, 4]
  )
  cos, sin = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
  about_y = [[cos[0], 0, sin[0]], [0, 1, 0], [-sin[0], 0, cos[0]]]
  about_x = [[1, 0, 0], [0, cos[1], -sin[1]], [0, sin[1], cos[1]]]
  about_z = [[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]]
  return np.asarray(np.array(about_z) @ about_x @ about_y, np.float32)


def _expression(rng: np.random.Generator) -> Float32[np.ndarray, " e"]:
  """How much of each expression, float32 [E]."""
  amount = np.asarray(rng.standard_normal(len(EXPRESSIONS)), np.float32)
  amount *= np.asarray([0.4, 0.45, 0.4, 0.6, 0.5, 0.3, 0.8, 0.6], np.float32)
  amount[0] = min(max(amount[0], 0), 1)
  amount[5] = min(max(amount[5], -0.15), 1)
  return amount


def _background(
  rng: np.random.Generator, size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Blurred blobs and a few shapes, uint8 [size, size, 3]."""
  cells = int(rng.integers(2, 7))
  base = rng.uniform(30, 210) + 25 * rng.standard_normal(3)
  base = base + rng.uniform(5, 30) * rng.standard_normal((cells, cells, 3))
  canvas = cv2.resize(
    np.clip(base, 0, 255).astype(np.uint8),
    (size, size),
    interpolation=cv2.INTER_LINEAR,
  )
  for _ in range(rng.integers(0, 3)):
    corner, extent = rng.uniform(-0.2, 1, 2), rng.uniform(0.1, 0.8, 2)
    low = (corner * size).astype(np.int32).tolist()
    high = ((corner + extent) * size).astype(np.int32).tolist()
    cv2.rectangle(canvas, low, high, rng.uniform(10, 240, 3).tolist(), -1)
  shirt = np.asarray(
    [(0.05, 1.1), (0.25, 0.93), (0.75, 0.93), (0.95, 1.1)], np.float32
  )
  shirt = (shirt * size * 2**_SHIFT).astype(np.int32)
  color = rng.uniform(10, 240, 3).tolist()
  cv2.fillPoly(canvas, [shirt], color, cv2.LINE_AA, _SHIFT)
  return canvas


def _light(
  face: Face,
  rng: np.random.Generator,
  rotation: Float32[np.ndarray, "3 3"],
  pivot: Float32[np.ndarray, " 3"],
  zoom: float,
  offset: Float32[np.ndarray, " 2"],
  size: int,
) -> Float32[np.ndarray, "{size} {size} 3"]:
  """Texture times light, a factor on colours, float32 [size, size, 3]."""
  # Light changes slowly: a coarse grid is enough. Rows are x, y, z.
  cells = 28
  at = (np.arange(cells, dtype=np.float32) + 0.5) * (size / cells)
  column, row = np.meshgrid(at, at)
  seen = np.stack([column.ravel() - offset[0], row.ravel() - offset[1]]) / zoom
  # Rays of an orthographic camera meet the ellipsoid: |start + s along| = 1 in
  # units of its axes. Rays that miss it take their nearest point.
  axes = face.axes[:, None]
  start = (rotation[:2].T @ seen + (pivot - face.center)[:, None]) / axes
  along = rotation[2, :, None] / axes
  a, b = (along**2).sum(), (along * start).sum(0)
  c = (start**2).sum(0) - 1
  hit = start + (np.sqrt(np.maximum(b**2 - a * c, 0)) - b) / a * along
  normal = _unit(hit / axes)
  place = hit[:2] * axes[:2] + face.center[:2, None]
  place -= np.asarray(FIELD_CORNER, np.float32)[:, None]
  where = np.ascontiguousarray(place.T).reshape(cells, cells, 2)
  relief = _look_up(face.relief, where / 4 - 0.5, cv2.BORDER_CONSTANT)
  normal[:2] -= relief.reshape(-1, 2).T
  normal = rotation @ _unit(normal)

  lamp = rng.standard_normal(3) * [1.0, 0.7, 0] + [0, -0.5, 1.0]
  lamp = _unit(np.asarray(lamp, np.float32))
  tint = np.asarray(np.exp(0.08 * rng.standard_normal((2, 3))), np.float32)
  ambient = rng.uniform(0.45, 0.8)
  diffuse = (1.05 - ambient) * np.maximum(lamp @ normal, 0)
  halfway = _unit(lamp + np.asarray([0, 0, 1], np.float32))
  shine = 2 * face.gloss * np.maximum(halfway @ normal, 0) ** 12
  light = (diffuse + shine)[:, None] * (1.25 * tint[0]) + ambient * tint[1]
  light = np.asarray(light, np.float32).reshape(cells, cells, 3)
  light = cv2.resize(light, (size, size), interpolation=cv2.INTER_LINEAR)
  where = cv2.resize(where, (size, size), interpolation=cv2.INTER_LINEAR)
  texture = _look_up(face.texture, where, cv2.BORDER_REPLICATE)
  return light * texture


def _look_up(
  field: Float32[np.ndarray, "f f c"],
  where: Float32[np.ndarray, "n n 2"],
  border: int,
) -> Float32[np.ndarray, "n n c"]:
  """The values of a field at places (x, y), between cells linearly."""
  return cv2.remap(  # ty: ignore[no-matching-overload] stubs ask for two maps.
    field,
    where,
    None,
    cv2.INTER_LINEAR,
    borderMode=border,
  )


def _unit(vectors: np.ndarray) -> np.ndarray:
  """Scales vectors to length 1; their components are the first axis."""
  return vectors / np.sqrt((vectors**2).sum(0) + 1e-12)


def _cover(
  canvas: UInt8[np.ndarray, "s s 3"],
  face: Face,
  rng: np.random.Generator,
  project: Callable[[np.ndarray], np.ndarray],
) -> None:
  """Puts on some of: glasses, a mask, a hat, a hand or another object."""

  def fill(
    x: np.ndarray, y: np.ndarray, z: np.ndarray | float, color: np.ndarray
  ) -> None:
    xyz = np.stack(np.broadcast_arrays(x, y, z), 1).astype(np.float32)
    color = color.tolist()
    cv2.fillPoly(canvas, [project(xyz)], color, cv2.LINE_AA, _SHIFT)

  def draw(
    lines: Sequence[Points], closed: bool, thickness: int, color: np.ndarray
  ) -> None:
    drawn = [project(np.asarray(line, np.float32)) for line in lines]
    cv2.polylines(
      canvas,
      drawn,
      closed,
      color.tolist(),
      max(1, round(thickness * len(canvas) / 112)),
      cv2.LINE_AA,
      _SHIFT,
    )

  glasses, mask, hat, thing = rng.random(4) < [0.16, 0.03, 0.05, 0.06]
  if glasses:
    _put_glasses(fill, draw, face.geometry, rng)
  if mask:
    _put_mask(fill, face.geometry, rng)
  if hat:
    _put_hat(fill, face.geometry, rng)
  if thing:
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = rng.uniform(9, 20) * (1 + 0.25 * rng.standard_normal(12))
    x, y = rng.uniform(-40, 40), rng.uniform(-20, 70)
    hand = rng.random() < 0.5
    color = face.skin * 0.85 if hand else rng.uniform(0, 200, 3)
    fill(x + radius * np.cos(angle), y + radius * np.sin(angle), 15, color)


def _put_glasses(
  fill: Fill, draw: Draw, g: Geometry, rng: np.random.Generator
) -> None:
  """Round to square frames, one in five with dark glass."""
  rx, ry, power = rng.uniform([9, 6, 0.5], [13, 10, 1.0])
  angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
  cos, sin = np.cos(angle), np.sin(angle)
  x = rx * np.sign(cos) * np.abs(cos) ** power
  y = ry * np.sign(sin) * np.abs(sin) ** power + 1
  color, dark = rng.uniform(0, 100, 3), rng.random() < 0.2
  rims = [np.stack([side * 17.5 + x, y, 0 * x + 4], 1) for side in (-1, 1)]
  if dark:
    for rim in rims:
      fill(*rim.T, color * 0.5)
  thickness = int(rng.integers(1, 3))
  draw(rims, True, thickness, color)
  edge, temple = 17.5 + rx, g["face_width"] + 2
  arms: list[Points] = [
    [(s * edge, 0, 4), (s * temple, 0, -35)] for s in (-1, 1)
  ]
  bridge: Points = [(rx - 17.5, -1, 5), (17.5 - rx, -1, 5)]
  draw([*arms, bridge], False, thickness, color)


def _put_mask(fill: Fill, g: Geometry, rng: np.random.Generator) -> None:
  """From the bridge of the nose to under the chin."""
  t = np.linspace(-1, 1, 9)
  x = np.concatenate([t, 0.8 * t[::-1]]) * g["face_width"]
  top = g["nose_length"] - 14 + 8 * t**2
  bottom = g["chin"] + 2 - 16 * np.abs(t) ** 3
  z = np.concatenate([8 - 44 * np.abs(t) ** 3, 2 - 40 * t**2])
  fill(x, np.concatenate([top, bottom]), z, rng.uniform(110, 210, 3))


def _put_hat(fill: Fill, g: Geometry, rng: np.random.Generator) -> None:
  """A cap over hair and part of the forehead."""
  t = np.linspace(-1, 1, 9)
  width = g["face_width"] + 6
  x = np.concatenate([t, [0.9, 0, -0.9]]) * width
  rim = rng.uniform(-32, -20) - 4 * (1 - t**2)
  z = np.concatenate([-40 + 44 * (1 - t**2), [-30, -20, -30]])
  y = np.concatenate([rim, [-62, -75, -62]])
  fill(x, y, z, rng.uniform(0, 200, 3))


def _camera(
  canvas: UInt8[np.ndarray, "s s 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
  """Colour balance, exposure, lost resolution, noise, uint8 like `canvas`."""
  size = len(canvas)
  gain = np.exp(0.14 * rng.standard_normal() + 0.06 * rng.standard_normal(3))
  saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.6, 1.2)
  mix = np.full((3, 3), (1 - saturation) / 3) + saturation * np.eye(3)
  contrast = rng.uniform(0.7, 1.15)
  shift = (1 - contrast) * 110 + 12 * rng.standard_normal()
  matrix = np.empty((3, 4), np.float32)
  matrix[:, :3] = contrast * gain[:, None] * mix
  matrix[:, 3] = shift
  pixels = cv2.transform(canvas, matrix).astype(np.float32)
  blur = rng.random()
  if blur < 0.2:
    less = int(size * rng.uniform(0.4, 0.7))
    pixels = cv2.resize(pixels, (less, less), interpolation=cv2.INTER_AREA)
    pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
  elif blur < 0.5:
    sigma = rng.uniform(0.4, 1.1) * size / 112
    pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
  amount = np.float32(0.12 * rng.random() ** 2)
  # Uniform noise costs an eighth of normal noise.
  pixels += amount * rng.integers(-128, 128, canvas.shape, dtype=np.int8)
  return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """JPEG bytes of an RGB image, uint8 [H, W, 3]."""
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
  return cv2.imencode(".jpg", bgr, options)[1].tobytes()


def draw_identity(
  seed: int, identity: int, images: Sequence[int], size: int
) -> list[bytes]:
  """Draws images of one identity.

  Args:
    seed: the seed of the whole data set.
    identity: its number.
    images: their numbers, from 1.
    size: height and width in pixels.

  Returns:
    The JPEG bytes of each.
  """
  face = draw_face(generator(seed, identity))
  return [
    encode(draw_image(face, generator(seed, identity, image), size))
    for image in images
  ]
