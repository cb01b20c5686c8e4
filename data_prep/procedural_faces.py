"""Draws faces that nobody has: many weak cues of identity, many nuisances.

An identity is a fixed set of 3-D polygons (outline, eyes, brows, nose, mouth,
ears, hair, moles) with colours, a skin texture and a relief that the light
falls on. An image moves the vertices by an expression, turns and projects them,
fills the polygons in order, multiplies by texture and light, covers some of it,
and passes the whole through a poor camera. Every identity and image is a pure
function of (seed, identity, image), by counters of the Philox generator.

Lengths are in units of the face's own frame: the eyes about 35 apart, x to the
right, y down, z towards the viewer, origin between the eyes.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

JPEG_QUALITY = 90

# What an expression can move; each vertex has a displacement for each.
EXPRESSIONS = (
  "open",  # Mouth, 0 to 1.
  "smile",  # Mouth corners up (or down).
  "pucker",  # Mouth narrower.
  "raise",  # Brows up.
  "frown",  # Brows together.
  "lids",  # Eyes closed, 0 to 1.
  "gaze_x",  # Iris to the right.
  "gaze_y",  # Iris down.
)

# Geometry: mean and spread over identities. An identity draws from a normal
# distribution cut at two spreads. No single one of these tells faces apart.
GEOMETRY = {
  "face_width": (39.0, 2.6),  # Half of it, at the cheekbones.
  "face_depth": (42.0, 3.0),
  "skull_height": (47.0, 2.5),
  "chin": (63.0, 3.4),
  "jaw_power": (2.25, 0.28),  # Exponent of the superellipse: 2 is round.
  "jaw_taper": (0.13, 0.08),
  "eye_x": (17.0, 1.3),
  "eye_width": (7.0, 0.8),
  "eye_height": (3.0, 0.55),
  "eye_tilt": (0.06, 0.11),
  "eye_skew": (0.0, 0.3),  # Where the upper lid is highest.
  "eye_depth": (0.0, 2.0),
  "iris": (3.1, 0.25),
  "lid": (2.6, 1.1),  # Height of the skin fold above the eye.
  "lash": (0.9, 0.3),
  "brow_gap": (10.0, 1.6),
  "brow_length": (9.5, 1.2),
  "brow_arch": (2.2, 1.4),
  "brow_tilt": (0.8, 1.5),
  "brow_thickness": (1.7, 0.65),
  "nose_length": (22.0, 2.2),
  "nose_width": (7.2, 1.2),
  "nose_height": (11.0, 2.5),
  "bridge_width": (3.2, 0.8),
  "nostril": (1.5, 0.35),
  "mouth_y": (40.5, 1.9),
  "mouth_width": (12.5, 1.5),
  "upper_lip": (2.9, 0.9),
  "lower_lip": (3.9, 1.0),
  "cupid_bow": (0.35, 0.2),
  "mouth_curve": (0.0, 0.9),
  "ear_size": (14.0, 1.8),
  "ear_out": (7.0, 2.0),
  "ear_y": (9.0, 2.0),
  "hairline": (-33.0, 4.5),
  "hairline_arch": (7.0, 3.5),  # How far it falls at the temples.
  "parting": (0.0, 0.6),
  "hair_top": (6.0, 3.0),
  "hair_side": (4.0, 2.2),
  "hair_length": (12.0, 26.0),
  "fold": (0.05, 0.05),  # Darkness of the lines from nose to mouth.
  "bag": (0.06, 0.05),  # The same under the eyes.
}

SKIN = np.array(
  [
    (250, 222, 202),
    (238, 196, 166),
    (214, 163, 128),
    (172, 120, 86),
    (118, 78, 56),
    (80, 53, 40),
  ],
  np.float32,
)
HAIR = np.array(
  [
    (24, 20, 20),
    (44, 30, 24),
    (76, 50, 34),
    (124, 82, 48),
    (120, 58, 34),
    (196, 158, 98),
    (150, 146, 142),
  ],
  np.float32,
)
IRIS = np.array(
  [
    (50, 32, 22),
    (88, 58, 34),
    (118, 100, 60),
    (96, 116, 84),
    (92, 122, 148),
    (120, 128, 132),
  ],
  np.float32,
)
LIPS = np.array([(196, 112, 104), (176, 84, 84), (150, 86, 76)], np.float32)

# Texture and relief cover this square of the (x, y) plane.
_FIELD = 128
_FIELD_X, _FIELD_Y = -64.0, -52.0
_SCALE = 0.84  # Pixels of a 112-pixel image to one unit of the face.
_CAMERA = 420.0  # Distance of the viewer.
_SHIFT = 4  # cv2 takes coordinates in 1/16 pixel.
_TEMPLATE = (56.0, 63.0)  # Where the five landmarks' mean comes to lie.


@dataclasses.dataclass(frozen=True)
class Part:
  """A polygon: rows [first, last) of the points, its colour, hull or not."""

  name: str
  first: int
  last: int
  color: tuple[float, float, float]
  hull: bool


@dataclasses.dataclass(frozen=True)
class Face:
  """An identity.

  Attributes:
    points: vertices, float32 [P, 3].
    moves: displacement of each vertex by each expression, float32 [E, P * 3].
    parts: the polygons in the order of drawing.
    axes: semi-axes of the ellipsoid that is the head, float32 [3].
    center: its centre, float32 [3].
    texture: factor on the colours over the face's plane, float32 [F, F, 3].
    relief: slope (d/dx, d/dy) of the surface over the ellipsoid's, float32
      [F / 4, F / 4, 2].
    geometry: the numbers named in GEOMETRY.
    skin: its colour, RGB in [0, 255].
    gloss: how much the skin shines.
  """

  points: np.ndarray
  moves: np.ndarray
  parts: tuple[Part, ...]
  axes: np.ndarray
  center: np.ndarray
  texture: np.ndarray
  relief: np.ndarray
  geometry: dict[str, float]
  skin: np.ndarray
  gloss: float


def generator(seed: int, identity: int, image: int = 0) -> np.random.Generator:
  """The random numbers of one image, or of the identity itself (image 0)."""
  return np.random.Generator(
    np.random.Philox(key=[seed, identity], counter=[0, 0, 0, image])
  )


class _Sketch:
  """Collects the polygons of a face."""

  def __init__(self, surface):
    self.surface = surface
    self.points, self.moves, self.parts = [], [], []
    self._count = 0

  def add(self, name, x, y, color, *, lift=0.0, z=None, hull=False, **moves):
    """Adds a polygon on the surface (lifted from it) or at depth z."""
    x, y = np.broadcast_arrays(np.float32(x), np.float32(y))
    z = self.surface(x, y) + lift if z is None else np.broadcast_to(z, x.shape)
    self.points.append(np.stack([x, y, z], 1))
    move = np.zeros((len(EXPRESSIONS), len(x), 3), np.float32)
    for expression, (dx, dy) in moves.items():
      row = move[EXPRESSIONS.index(expression)]
      row[:, 0], row[:, 1] = dx, dy
    self.moves.append(move)
    first, self._count = self._count, self._count + len(x)
    color = tuple(float(value) for value in color)
    self.parts.append(Part(name, first, self._count, color, hull))


def draw_face(seed: int, identity: int) -> Face:
  """Draws the parameters of an identity and builds its face.

  Args:
    seed: of the whole data set, at least 0.
    identity: its number, at least 0.

  Returns:
    The face; equal for equal arguments.
  """
  rng = generator(seed, identity)
  cut = np.clip(rng.standard_normal(len(GEOMETRY)), -2, 2)
  g = {
    name: mean + spread * float(z)
    for (name, (mean, spread)), z in zip(GEOMETRY.items(), cut, strict=True)
  }
  skin = _between(SKIN, rng.random()) * (1 + 0.03 * rng.standard_normal(3))
  hair = _between(HAIR, rng.random()) * (1 + 0.06 * rng.standard_normal(3))
  iris = _between(IRIS, rng.random() ** 1.5)
  lips = 0.45 * skin + 0.55 * _between(LIPS, rng.random()) * (skin[0] / 215)
  axes = np.float32(
    [
      g["face_width"],
      (g["skull_height"] + g["chin"]) / 2,
      g["face_depth"],
    ]
  )
  center = np.float32([0, (g["chin"] - g["skull_height"]) / 2, -axes[2]])

  def surface(x, y):
    inside = 1 - (x / axes[0]) ** 2 - ((y - center[1]) / axes[1]) ** 2
    return center[2] + axes[2] * np.sqrt(np.maximum(inside, 0.02))

  sketch = _Sketch(surface)
  outline = _outline(g)
  _add_hair_behind(sketch, g, hair, center)
  _add_neck_and_ears(sketch, g, skin, center)
  _add_head(sketch, g, skin, outline, axes, center)
  _add_beard(sketch, g, rng, skin, hair, outline)
  _add_nose(sketch, g, skin)
  _add_mouth(sketch, g, skin, lips)
  for side in (-1, 1):
    _add_eye(sketch, g, side, skin, iris)
    _add_brow(sketch, g, side, 0.75 * hair + 0.1 * skin)
  for _ in range(rng.integers(0, 4)):
    x, y = rng.uniform(-28, 28), rng.uniform(-20, 50)
    size = rng.uniform(0.6, 1.4)
    sketch.add("mole", *_ellipse(x, y, size, size, 8), skin * 0.45)
  _add_hair_front(sketch, g, rng, hair, axes)
  return Face(
    points=np.concatenate(sketch.points).astype(np.float32),
    moves=np.concatenate(sketch.moves, 1).reshape(len(EXPRESSIONS), -1),
    parts=tuple(sketch.parts),
    axes=axes,
    center=center,
    texture=_texture(rng, g),
    relief=_relief(rng, g),
    geometry=g,
    skin=skin,
    gloss=float(rng.uniform(0.02, 0.16)),
  )


def _between(colors: np.ndarray, at: float) -> np.ndarray:
  """The colour at `at` in [0, 1] of a ramp."""
  at *= len(colors) - 1
  low = min(int(at), len(colors) - 2)
  return colors[low] + (at - low) * (colors[low + 1] - colors[low])


def _ellipse(x, y, rx, ry, count):
  angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
  return x + rx * np.cos(angle), y + ry * np.sin(angle)


def _outline(g) -> tuple[np.ndarray, np.ndarray]:
  """The face seen from the front, clockwise from the crown, x and y [40]."""
  angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
  sin, cos = np.sin(angle), -np.cos(angle)
  power = np.where(cos > 0, 2 / g["jaw_power"], 1.0)
  x = g["face_width"] * np.sign(sin) * np.abs(sin) ** power
  y = np.where(cos > 0, g["chin"], g["skull_height"]) * cos
  y = np.where(cos > 0, np.abs(cos) ** power * g["chin"], y)
  x = x * (1 - g["jaw_taper"] * np.maximum(y / g["chin"], 0) ** 2)
  return x, y


def _add_hair_behind(sketch, g, hair, center):
  angle = np.linspace(-np.pi / 2, np.pi / 2, 16)
  x = (g["face_width"] + g["hair_side"]) * np.sin(angle)
  top = g["skull_height"] + g["hair_top"]
  y = -top * np.cos(angle)
  # Down to its length: short hair ends at the ears, long hair leaves the image.
  length = max(g["hair_length"], 4.0)
  x = np.concatenate([x, x[[0, -1]] * (1 + 0.1 * (length > 25))])
  y = np.concatenate([y, [length, length]])
  for name, depth in (("hair_back", -30.0), ("hair_middle", -6.0)):
    shrink = 0.9 if name == "hair_back" else 1.0
    sketch.add(
      name, x * shrink, y * shrink, hair * 0.8, z=center[2] + depth, hull=True
    )


def _add_neck_and_ears(sketch, g, skin, center):
  width = 0.62 * g["face_width"]
  sketch.add(
    "neck",
    [-width, width, width * 1.15, -width * 1.15],
    [g["chin"] - 24, g["chin"] - 24, g["chin"] + 40, g["chin"] + 40],
    skin * 0.78,
    z=center[2] - 4,
  )
  for side in (-1, 1):
    for size, shade in ((1.0, 0.92), (0.6, 0.76)):
      x, y = _ellipse(
        side * (g["face_width"] - 1),
        g["ear_y"],
        g["ear_out"] * size,
        g["ear_size"] * size,
        14,
      )
      z = center[2] - 2 - 0.5 * np.abs(x - side * g["face_width"])
      sketch.add("ear", x, y, skin * shade, z=z)


def _add_head(sketch, g, skin, outline, axes, center):
  x, y = outline
  jaw = np.maximum(y / g["chin"], 0) ** 3
  rings = ((1.0, 0.0), (0.96, 0.28), (0.8, 0.6), (0.97, -0.25))
  middle = center[1]
  sketch.add(
    "head",
    np.concatenate([x * r for r, _ in rings]),
    np.concatenate([(y - middle) * r + middle for r, _ in rings]),
    skin,
    z=np.repeat([center[2] + axes[2] * d for _, d in rings], len(x)),
    hull=True,
    open=(0, np.tile(5.0 * jaw, len(rings))),
  )


def _add_beard(sketch, g, rng, skin, hair, outline):
  kind, density = rng.random(), rng.uniform(0.2, 0.8)
  color = (1 - density) * skin + density * hair
  x, y = outline
  if kind < 0.2:
    jaw = np.flatnonzero(y > 14)
    t = np.linspace(-1, 1, 13)
    inner = g["mouth_y"] + 8 - (g["mouth_y"] - 14) * np.abs(t) ** 3
    sketch.add(
      "beard",
      np.concatenate([x[jaw] * 0.97, t * 0.9 * g["face_width"]]),
      np.concatenate([y[jaw] * 0.98, inner]),
      color,
      open=(0, np.concatenate([5.0 * (y[jaw] / g["chin"]) ** 3, np.zeros(13)])),
    )
  if kind < 0.3:
    t = np.linspace(-1, 1, 11)
    top = g["mouth_y"] - 9 + 4 * t**2
    bottom = g["mouth_y"] - 1.5 + 4 * t**2
    sketch.add(
      "moustache",
      np.concatenate([t, t[::-1]]) * (g["mouth_width"] + 2),
      np.concatenate([top, bottom[::-1]]),
      color,
      lift=2.0,
      smile=(0, np.concatenate([-2 * t**2, -2 * t**2])),
    )


def _add_nose(sketch, g, skin):
  length, wing = g["nose_length"], g["nose_width"]
  bridge, height = g["bridge_width"], g["nose_height"]
  for side in (-1, 1):
    x = np.array([1.5, bridge, bridge + 0.6, wing, wing * 0.9, wing * 0.25])
    x[0] += bridge
    y = [-3, 6, length - 8, length - 3, length + 2, length - 4]
    up = np.array([0, 0.2, 0.5, 0.35, 0.3, 0.9]) * height
    sketch.add("nose_side", side * x, y, skin * 0.88, lift=up)
  x, y = _ellipse(0, length - 3, wing * 0.5, 3.4, 12)
  sketch.add("nose_tip", x, y, skin * 1.05, lift=height)
  sketch.add(
    "nose_ridge",
    np.array([-0.4, 0.4, 0.5, -0.5]) * bridge,
    [-2, -2, length - 4, length - 4],
    skin * 1.05,
    lift=np.array([0.1, 0.1, 1, 1]) * height,
  )
  x = np.array([-1, -0.5, 0, 0.5, 1, 0.5, 0, -0.5]) * wing * 0.92
  y = length + np.array([0.5, 1.2, 0.8, 1.2, 0.5, 2.8, 3.2, 2.8])
  up = np.array([0.3, 0.6, 0.9, 0.6, 0.3, 0.3, 0.3, 0.3]) * height
  sketch.add("nose_under", x, y, skin * 0.74, lift=up)
  for side in (-1, 1):
    x, y = _ellipse(
      side * wing * 0.5, length + 1.5, g["nostril"], g["nostril"] * 0.6, 8
    )
    sketch.add("nostril", x, y, skin * 0.35, lift=0.6 * height)


def _add_mouth(sketch, g, skin, lips):
  t = np.linspace(-1, 1, 15)
  half, middle = g["mouth_width"], g["mouth_y"]
  arc = 1 - t**2
  bow = g["cupid_bow"] * np.exp(-((t / 0.22) ** 2))
  # Positive curve: the corners of the resting mouth point up.
  rest = middle - g["mouth_curve"] * t**2
  upper = rest - g["upper_lip"] * np.sqrt(arc) * (1 - bow)
  lower = rest + g["lower_lip"] * np.sqrt(arc)
  smile = (3.5 * t, 1.0 - 5.0 * t**2)
  pucker = -0.25 * half * t
  fall = 9.0 * np.sqrt(arc)
  still = np.zeros_like(t)

  def band(name, top, bottom, color, top_fall, bottom_fall, lift):
    moves = {
      "open": (0, np.concatenate([top_fall, bottom_fall[::-1]])),
      "smile": tuple(np.concatenate([m, m[::-1]]) for m in smile),
      "pucker": (np.concatenate([pucker, pucker[::-1]]), 0),
    }
    sketch.add(
      name,
      np.concatenate([t, t[::-1]]) * half,
      np.concatenate([top, bottom[::-1]]),
      color,
      lift=lift,
      **moves,
    )

  for side in (-1, 1):
    x0, y0 = g["nose_width"] + 2, g["nose_length"] - 1
    sketch.add(
      "fold",
      side * np.array([x0, x0 + 0.8, half + 4.8, half + 4.0, half + 3]),
      [y0, y0, middle - 4, middle + 1, middle - 4],
      skin * (1 - max(g["fold"], 0.0)),
      smile=(side * np.array([1, 1, 2, 2, 2]), np.array([0, 0, -2, -2, -2])),
    )
  band("teeth_gap", rest, rest, (60, 22, 24), -0.12 * fall, fall, 1.0)
  band("teeth", rest, rest, (232, 226, 214), -0.12 * fall, 0.35 * fall, 1.0)
  band("upper_lip", upper, rest + 0.2, lips * 0.92, -0.15 * fall, still, 1.0)
  band("lower_lip", rest - 0.2, lower, lips, fall, fall * 1.05, 1.0)
  line = 0.5 * np.sqrt(arc)
  band("mouth_line", rest - line, rest + line, lips * 0.5, still, still, 1.2)


def _add_eye(sketch, g, side, skin, iris):
  t = np.linspace(-1, 1, 11)
  x = g["eye_width"] * t
  arc = np.maximum(1 - t**2, 0) * (1 + g["eye_skew"] * t)
  tilt = -g["eye_tilt"] * x
  upper = -g["eye_height"] * arc + tilt
  lower = 0.62 * g["eye_height"] * (1 - t**2) + tilt
  crease = upper - (g["lid"] + 1.0) * (1 - t**2)
  bag = lower + 3.2 * (1 - t**2) + 0.4
  close = lower - upper
  at_x = side * (g["eye_x"] + x)
  back = np.concatenate
  lift = -g["eye_depth"]
  both = back([at_x, at_x[::-1]])
  rise = -1.2 * (1 - t**2)

  def add(name, x, y, color, **moves):
    sketch.add(name, x, y, color, lift=lift, **moves)

  socket_x, socket_y = _ellipse(
    side * g["eye_x"], -1.5, g["eye_width"] + 4, 7.5, 16
  )
  add("socket", socket_x, socket_y, skin * 0.93)
  add("bag", both, back([lower, bag[::-1]]), skin * (1 - max(g["bag"], 0)))
  # The ball, with the lids drawn over it.
  add("sclera", both, back([upper, lower[::-1]]), (226, 222, 216))
  gaze = {"gaze_x": (1.6, 0), "gaze_y": (0, 1.0)}
  center = side * g["eye_x"], -0.15 * g["eye_height"]
  radius = g["iris"]
  for size, color in ((radius, iris), (0.45 * radius, (12, 10, 10))):
    add("iris", *_ellipse(*center, size, size, 14), color, **gaze)
  glint = center[0] + 0.9, center[1] - 1.1
  add("glint", *_ellipse(*glint, 0.65, 0.65, 6), (250, 250, 250), **gaze)
  # The fold above and the cheek below hide what the lids cover.
  add(
    "upper_lid",
    both,
    back([crease - 0.8, upper[::-1]]),
    skin * 0.86,
    lids=(0, back([0.2 * close, close[::-1]])),
  )
  add(
    "lower_lid",
    both,
    back([lower, bag[::-1]]),
    skin * (0.96 - max(g["bag"], 0)),
    smile=(0, back([rise, 0 * rise])),
  )
  thick = max(g["lash"], 0.4) * (0.6 + 0.4 * t)
  add(
    "lash",
    both,
    back([upper - thick, upper[::-1] + 0.3]),
    skin * 0.22,
    lids=(0, back([close, close[::-1]])),
  )


def _add_brow(sketch, g, side, color):
  t = np.linspace(-1, 1, 9)
  x = side * (g["eye_x"] + 0.5 + g["brow_length"] * t)
  y = -g["brow_gap"] - g["brow_arch"] * (1 - (t - 0.3) ** 2)
  y = y - g["brow_tilt"] * t
  half = max(g["brow_thickness"], 0.5) * (1 - 0.55 * (t + 1) / 2)
  inner = np.concatenate([1 - t, (1 - t)[::-1]]) / 2
  sketch.add(
    "brow",
    np.concatenate([x, x[::-1]]),
    np.concatenate([y - half, (y + half)[::-1]]),
    color,
    lift=1.0,
    **{"raise": (0, -3.0), "frown": (-side * 1.5 * inner, 3.0 * inner)},
  )


def _add_hair_front(sketch, g, rng, hair, axes):
  t = np.linspace(-1, 1, 21)
  wave = rng.standard_normal(4) * [1.6, 1.3, 1.0, 0.8]
  edge = g["hairline"] + g["hairline_arch"] * np.abs(t) ** 2.5
  edge = edge + g["parting"] * 6 * t * (1 - t**2)
  edge = edge + sum(
    w * np.sin((k + 2) * (t + 0.3 * k) * np.pi / 2) for k, w in enumerate(wave)
  )
  edge[[0, -1]] = -6
  line = 0.98 * g["face_width"] * np.sin(t * np.pi / 2)
  angle = np.linspace(np.pi / 2, -np.pi / 2, 15)
  top_x = (g["face_width"] + 0.6 * g["hair_side"]) * np.sin(angle)
  top_y = -(g["skull_height"] + g["hair_top"]) * np.cos(angle) - 4
  inside = 1 - np.minimum(np.abs(np.sin(angle)) ** 2, 1)
  top_z = -axes[2] * (1 - 0.45 * np.sqrt(inside))
  sketch.add(
    "hair_front",
    np.concatenate([line, top_x]),
    np.concatenate([edge, top_y]),
    hair,
    z=np.concatenate([sketch.surface(line, edge) + 2, top_z]),
  )
  if g["hair_length"] > 20:
    for side in (-1, 1):
      wide = g["face_width"] + g["hair_side"]
      sketch.add(
        "lock",
        side * np.array([0.86, 1.0, 1.05, 0.95, 0.88]) * wide,
        [-14, -16, g["hair_length"], g["hair_length"] + 3, 16],
        hair * 0.92,
        z=-axes[2] + np.array([8.0, 0.0, 0.0, 4.0, 6.0]),
      )


def _grid(count: int) -> tuple[np.ndarray, np.ndarray]:
  """The x and y of a field of count x count cells."""
  at = (np.arange(count, dtype=np.float32) + 0.5) * (_FIELD / count)
  return np.meshgrid(_FIELD_X + at, _FIELD_Y + at)


def _bump(x, y, x0, y0, rx, ry):
  return np.exp(-(((x - x0) / rx) ** 2) - ((y - y0) / ry) ** 2)


def _texture(rng, g) -> np.ndarray:
  """Blotches, blush, shadows and freckles of a skin: a factor on its colour."""
  x, y = _grid(_FIELD)
  field = np.ones((_FIELD, _FIELD, 3), np.float32)
  for cells, amount in ((6, 0.055), (14, 0.04), (32, 0.03)):
    noise = rng.standard_normal((cells, cells, 1)) * [1, 1, 1]
    noise = noise + 0.5 * rng.standard_normal((cells, cells, 3))
    field += cv2.resize(
      (amount * noise).astype(np.float32),
      (_FIELD, _FIELD),
      interpolation=cv2.INTER_CUBIC,
    )
  blush = rng.uniform(0, 0.14)
  cheek = _bump(np.abs(x), y, rng.uniform(18, 25), rng.uniform(18, 26), 10, 8)
  field -= blush * cheek[..., None] * np.float32([0.1, 1, 0.9])
  freckles = rng.random() ** 3 * 60
  across = _bump(np.abs(x), y, 12, 16, 16, 9)
  for column, row in rng.integers(0, _FIELD, (600, 2))[: int(freckles * 10)]:
    if across[row, column] > 0.3:
      field[row, column] *= np.float32([0.8, 0.7, 0.6])
  return np.clip(field, 0.4, 1.3)


def _relief(rng, g) -> np.ndarray:
  """Slopes of what the ellipsoid lacks: nose, brow, cheeks, chin, sockets."""
  x, y = _grid(_FIELD // 4)
  side = np.abs(x)
  height = (
    g["nose_height"] * 0.8 * _bump(x, y, 0, g["nose_length"] - 4, 7, 12)
    + rng.uniform(1, 5) * _bump(side, y, 14, -9, 14, 5)
    - rng.uniform(1, 4) * _bump(side, y, g["eye_x"], 0, 9, 6)
    + rng.uniform(0, 6) * _bump(side, y, rng.uniform(20, 28), 16, 10, 9)
    + rng.uniform(0, 5) * _bump(x, y, 0, g["chin"] - 8, 12, 8)
    + rng.uniform(0, 3) * _bump(x, y, 0, g["mouth_y"], 15, 9)
  )
  bumps = rng.standard_normal((8, 8)).astype(np.float32) * 1.2
  height += cv2.resize(bumps, x.shape, interpolation=cv2.INTER_CUBIC)
  dy, dx = np.gradient(height.astype(np.float32), 4.0)
  return np.stack([dx, dy], -1)


# ---------------------------------------------------------------------------
# One image.


def draw_image(face: Face, rng: np.random.Generator, size: int) -> np.ndarray:
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
  zoom = _SCALE * scale * float(np.exp(0.05 * rng.standard_normal()))
  pivot = face.center + np.float32([0, 0, 0.3 * face.axes[2]])
  g = face.geometry
  mouth = g["mouth_width"]
  landmarks = np.float32(
    [
      (-g["eye_x"], 0, -3),
      (g["eye_x"], 0, -3),
      (0, g["nose_length"], g["nose_height"]),
      (-mouth, g["mouth_y"], -3),
      (mouth, g["mouth_y"], -3),
    ]
  )

  def turn(xyz):
    xyz = (xyz - pivot) @ rotation.T
    return xyz[:, :2] * (_CAMERA / (_CAMERA - xyz[:, 2:]))

  # As an aligned crop would: the landmarks' mean lies where it should, nearly.
  jitter = 2.2 * rng.standard_normal(2)
  offset = scale * (np.float32(_TEMPLATE) + jitter)
  offset = np.float32(offset - zoom * turn(landmarks).mean(0))

  def project(xyz):
    xy = zoom * turn(xyz) + offset
    return np.rint(xy * 2**_SHIFT).astype(np.int32)

  canvas = _background(rng, size)
  xy = project(points)
  hair_change = float(np.exp(0.15 * rng.standard_normal()))
  for part in face.parts:
    polygon = xy[part.first : part.last]
    if part.hull:
      polygon = cv2.convexHull(polygon)
    color = part.color
    if part.name.startswith("hair") or part.name == "lock":
      color = tuple(hair_change * value for value in color)
    cv2.fillPoly(canvas, [polygon], color, cv2.LINE_AA, _SHIFT)

  light = _light(face, rng, rotation, pivot, zoom, offset, size)
  pixels = canvas.astype(np.float32) * light
  canvas = np.clip(pixels, 0, 255).astype(np.uint8)
  _cover(canvas, face, rng, project)
  return _camera(canvas, rng)


def _rotation(rng) -> np.ndarray:
  """Yaw, pitch and roll, in this order, float32 [3, 3]."""
  yaw, pitch, roll = np.clip(rng.standard_normal(3), -2.2, 2.2) * np.deg2rad(
    [19, 9, 5]
  )
  cos, sin = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
  about_y = [[cos[0], 0, sin[0]], [0, 1, 0], [-sin[0], 0, cos[0]]]
  about_x = [[1, 0, 0], [0, cos[1], -sin[1]], [0, sin[1], cos[1]]]
  about_z = [[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]]
  return np.float32(np.array(about_z) @ about_x @ about_y)


def _expression(rng) -> np.ndarray:
  """How much of each expression, float32 [E]."""
  amount = np.float32(rng.standard_normal(len(EXPRESSIONS)))
  amount *= np.float32([0.5, 0.55, 0.5, 0.8, 0.6, 0.35, 0.8, 0.6])
  amount[0] = min(max(amount[0], 0), 1)
  amount[5] = min(max(amount[5], -0.15), 1)
  return amount


def _background(rng, size) -> np.ndarray:
  """Blurred blobs and a few shapes, uint8 [size, size, 3]."""
  cells = int(rng.integers(2, 7))
  base = rng.uniform(20, 220, 3) + rng.uniform(10, 50) * rng.standard_normal(
    (cells, cells, 3)
  )
  canvas = cv2.resize(
    np.clip(base, 0, 255).astype(np.uint8),
    (size, size),
    interpolation=cv2.INTER_LINEAR,
  )
  for _ in range(rng.integers(0, 3)):
    corner, extent = rng.uniform(-0.2, 1, 2), rng.uniform(0.1, 0.8, 2)
    low = np.int32(corner * size).tolist()
    high = np.int32((corner + extent) * size).tolist()
    cv2.rectangle(canvas, low, high, rng.uniform(10, 240, 3).tolist(), -1)
  shirt = np.float32([(0.05, 1.1), (0.25, 0.93), (0.75, 0.93), (0.95, 1.1)])
  shirt = np.int32(shirt * size * 2**_SHIFT)
  color = rng.uniform(10, 240, 3).tolist()
  cv2.fillPoly(canvas, [shirt], color, cv2.LINE_AA, _SHIFT)
  return canvas


def _light(face, rng, rotation, pivot, zoom, offset, size) -> np.ndarray:
  """Texture times light, a factor on colours, float32 [size, size, 3]."""
  cells = 40
  at = (np.arange(cells, dtype=np.float32) + 0.5) * (size / cells)
  column, row = np.meshgrid(at, at)
  # Rays of an orthographic camera meet the ellipsoid: |(p + s d) / axes| = 1.
  seen = np.stack([(column - offset[0]) / zoom, (row - offset[1]) / zoom], -1)
  start = (seen @ rotation[:2] + (pivot - face.center)) / face.axes
  along = rotation[2] / face.axes
  a, b = along @ along, start @ along
  c = (start**2).sum(-1) - 1
  inside = b**2 - a * c
  s = (-b + np.sqrt(np.maximum(inside, 0))) / a
  hit = start + s[..., None] * along
  normal = hit / face.axes
  normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6
  place = hit[..., :2] * face.axes[:2] + face.center[:2]
  place -= np.float32([_FIELD_X, _FIELD_Y])
  relief = cv2.remap(
    face.relief,
    np.ascontiguousarray(place[..., 0] / 4 - 0.5),
    np.ascontiguousarray(place[..., 1] / 4 - 0.5),
    cv2.INTER_LINEAR,
  )
  normal[..., :2] -= relief
  normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
  normal = normal @ rotation.T

  direction = rng.standard_normal(3) * [1.0, 0.7, 0] + [0, -0.5, 1.0]
  direction = np.float32(direction / np.linalg.norm(direction))
  tint = np.float32(np.exp(0.1 * rng.standard_normal((2, 3))))
  ambient = rng.uniform(0.35, 0.75)
  key = (1.05 - ambient) * np.maximum(normal @ direction, 0)
  half = direction + np.float32([0, 0, 1])
  half /= np.linalg.norm(half)
  shine = 2 * face.gloss * np.maximum(normal @ half, 0) ** 12
  light = (key + shine)[..., None] * tint[0] * 1.25 + ambient * tint[1]
  light = cv2.resize(light, (size, size), interpolation=cv2.INTER_LINEAR)
  place = cv2.resize(place, (size, size), interpolation=cv2.INTER_LINEAR)
  texture = cv2.remap(
    face.texture, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
  )
  return light * texture


def _cover(canvas, face, rng, project) -> None:
  """Puts on some of: glasses, a mask, a hat, a hand or another object."""
  glasses, mask, hat, hand = rng.random(4)
  color = rng.uniform(0, 200, 3)
  g = face.geometry

  def fill(x, y, z, color):
    xyz = np.stack(np.broadcast_arrays(x, y, z), 1).astype(np.float32)
    color = tuple(float(value) for value in color)
    cv2.fillPoly(canvas, [project(xyz)], color, cv2.LINE_AA, _SHIFT)

  if glasses < 0.24:
    rx, ry = rng.uniform(9, 13), rng.uniform(6, 10)
    power = rng.uniform(0.5, 1.0)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ring_x = rx * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    ring_y = ry * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
    frame = tuple((color * 0.5).tolist())
    thick = 1 + int(glasses > 0.16)
    lines = []
    for side in (-1, 1):
      x = side * 17.5 + ring_x
      xyz = np.stack([x, ring_y + 1, np.full_like(x, 4)], 1)
      if glasses < 0.05:
        fill(*xyz.T, color * 0.25)
      lines.append(project(xyz))
    cv2.polylines(canvas, lines, True, frame, thick, cv2.LINE_AA, _SHIFT)
    arms = [(-17.5 - rx, 0, 4), (-g["face_width"] - 2, 0, -35)]
    arms += [(17.5 + rx, 0, 4), (g["face_width"] + 2, 0, -35)]
    arms += [(-17.5 + rx, -1, 5), (17.5 - rx, -1, 5)]
    lines = project(np.float32(arms)).reshape(3, 2, 2)
    cv2.polylines(canvas, lines, False, frame, thick, cv2.LINE_AA, _SHIFT)
  if mask < 0.06:
    t = np.linspace(-1, 1, 9)
    x = np.concatenate([t, t[::-1] * 0.8]) * g["face_width"]
    y = np.concatenate(
      [
        g["nose_length"] - 14 + 8 * t**2,
        g["chin"] + 2 - 16 * np.abs(t) ** 3,
      ]
    )
    z = np.concatenate([8 - 44 * np.abs(t) ** 3, 2 - 40 * np.abs(t) ** 2])
    fill(x, y, z, 0.5 * color + 110)
  if hat < 0.08:
    t = np.linspace(-1, 1, 9)
    edge = rng.uniform(-32, -20)
    width = g["face_width"] + 6
    x = np.concatenate([t * width, [0.9 * width, 0, -0.9 * width]])
    y = np.concatenate([edge - 4 * (1 - t**2), [-62, -75, -62]])
    z = np.concatenate([-40 + 44 * (1 - t**2), [-30, -20, -30]])
    fill(x, y, z, color)
  if hand < 0.12:
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = rng.uniform(9, 20) * (1 + 0.25 * rng.standard_normal(12))
    x0, y0 = rng.uniform(-40, 40), rng.uniform(-20, 70)
    shade = face.skin * 0.85 if hand < 0.06 else color
    fill(x0 + radius * np.cos(angle), y0 + radius * np.sin(angle), 15, shade)


def _camera(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Colour balance, exposure, lost resolution, noise, uint8 like `canvas`."""
  size = len(canvas)
  gain = np.exp(0.22 * rng.standard_normal() + 0.08 * rng.standard_normal(3))
  saturation = 0.0 if rng.random() < 0.08 else rng.uniform(0.5, 1.2)
  grey = np.full((3, 3), (1 - saturation) / 3) + saturation * np.eye(3)
  contrast = rng.uniform(0.7, 1.15)
  shift = (1 - contrast) * 110 + 12 * rng.standard_normal()
  matrix = np.empty((3, 4), np.float32)
  matrix[:, :3] = contrast * gain[:, None] * grey
  matrix[:, 3] = shift
  pixels = cv2.transform(canvas, matrix).astype(np.float32)
  blur = rng.random()
  if blur < 0.35:
    less = int(size * rng.uniform(0.25, 0.6))
    pixels = cv2.resize(pixels, (less, less), interpolation=cv2.INTER_AREA)
    pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
  elif blur < 0.7:
    pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.3))
  # The sum of two uniform numbers is close to normal and costs a tenth.
  noise = rng.integers(0, 256, (2, *canvas.shape), dtype=np.uint8)
  noise = cv2.add(noise[0], noise[1], dtype=cv2.CV_32F) - 255
  pixels += noise * (rng.random() ** 2 * 0.14)
  return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(image: np.ndarray) -> bytes:
  """JPEG bytes of an RGB image, uint8 [H, W, 3]."""
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
  return cv2.imencode(".jpg", bgr, options)[1].tobytes()


def draw_identity(
  seed: int, identity: int, images: Sequence[int], size: int
) -> list[bytes]:
  """Draws images of one identity.

  Args:
    seed: of the whole data set.
    identity: its number.
    images: their numbers, from 1.
    size: height and width in pixels.

  Returns:
    The JPEG bytes of each.
  """
  face = draw_face(seed, identity)
  return [
    encode(draw_image(face, generator(seed, identity, image), size))
    for image in images
  ]
