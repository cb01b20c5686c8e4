"""Faces that nobody has: the identity, many weak cues and no giveaway.

An identity is a fixed set of 3-D polygons (outline, eyes, brows, nose, mouth,
ears, hair, moles) with colours, a skin texture and a relief for the light to
fall on. `photos.py` takes pictures of it.

Lengths are in units of the face's own frame: the eyes about 35 apart, x to the
right, y down, z towards the viewer, origin between the eyes.
"""

import dataclasses
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from jaxtyping import Float, Float32

Vector = Float32[np.ndarray, " 3"]  # A place, or a colour.
Color = Float[np.ndarray, " 3"]  # RGB in [0, 255].
# Numbers at some points, or one for all of them.
Numbers = np.ndarray | np.floating | list[float] | float
Moves = Mapping[str, tuple[Numbers, Numbers]]

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
  "face_width": (39.0, 3.49),  # Half of it, at the cheekbones.
  "face_depth": (42.0, 4.03),
  "skull_height": (47.0, 3.36),
  "chin": (63.0, 4.57),
  "jaw_power": (2.25, 0.38),  # Exponent of the superellipse: 2 is round.
  "jaw_taper": (0.13, 0.11),
  "eye_x": (17.0, 1.75),
  "eye_width": (7.0, 1.08),
  "eye_height": (3.0, 0.74),
  "eye_tilt": (0.06, 0.15),
  "eye_skew": (0.0, 0.4),  # Where the upper lid is highest.
  "eye_depth": (0.0, 2.69),
  "iris": (3.1, 0.34),
  "lid": (2.6, 1.48),  # Height of the skin fold above the eye.
  "lash": (0.9, 0.4),
  "brow_gap": (10.0, 2.15),
  "brow_length": (9.5, 1.61),
  "brow_arch": (2.2, 1.88),
  "brow_tilt": (0.8, 2.02),
  "brow_thickness": (1.7, 0.87),
  "nose_length": (22.0, 2.96),
  "nose_width": (7.2, 1.61),
  "nose_height": (11.0, 3.36),
  "bridge_width": (3.2, 1.08),
  "nostril": (1.5, 0.47),
  "mouth_y": (40.5, 2.55),
  "mouth_width": (12.5, 2.02),
  "upper_lip": (2.9, 1.21),
  "lower_lip": (3.9, 1.34),
  "cupid_bow": (0.35, 0.27),
  "mouth_curve": (0.0, 1.21),
  "ear_size": (14.0, 2.42),
  "ear_out": (7.0, 2.69),
  "ear_y": (9.0, 2.69),
  "hairline": (-33.0, 6.05),
  "hairline_arch": (7.0, 4.7),  # How far it falls at the temples.
  "parting": (0.0, 0.81),
  "hair_top": (6.0, 4.03),
  "hair_side": (4.0, 2.96),
  "hair_length": (12.0, 34.94),
  "fold": (0.05, 0.07),  # Darkness of the lines from nose to mouth.
  "bag": (0.06, 0.07),  # The same under the eyes.
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

# What an identity draws, by the names of GEOMETRY.
Geometry = dict[str, float]

# Texture and relief cover this square of the (x, y) plane.
FIELD = 128
FIELD_CORNER = (-64.0, -52.0)


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


class _Sketch:
  """Collects the polygons of a face."""

  def __init__(self, surface: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    self.surface = surface
    self.points: list[np.ndarray] = []
    self.moves: list[np.ndarray] = []
    self.parts: list[Part] = []
    self._count = 0

  def add(
    self,
    name: str,
    x: Numbers,
    y: Numbers,
    color: Color | tuple[float, float, float],
    *,
    lift: Numbers = 0.0,
    z: Numbers | None = None,
    hull: bool = False,
    moves: Moves | None = None,
  ) -> None:
    """Adds a polygon on the surface (lifted from it) or at depth z.

    Args:
      name: what it is.
      x: where its vertices are, from the front.
      y: likewise.
      color: RGB in [0, 255].
      lift: how far they lie before the surface.
      z: their depth, if they do not lie on the surface.
      hull: draw the convex hull of the vertices.
      moves: how far each expression moves them to the right and down.
    """
    x, y = np.broadcast_arrays(
      np.asarray(x, np.float32), np.asarray(y, np.float32)
    )
    z = self.surface(x, y) + lift if z is None else np.broadcast_to(z, x.shape)
    self.points.append(np.stack([x, y, z], 1))
    move = np.zeros((len(EXPRESSIONS), len(x), 3), np.float32)
    for expression, (dx, dy) in (moves or {}).items():
      row = move[EXPRESSIONS.index(expression)]
      row[:, 0], row[:, 1] = dx, dy
    self.moves.append(move)
    first, self._count = self._count, self._count + len(x)
    red, green, blue = (float(value) for value in color)
    part = Part(name, first, self._count, (red, green, blue), hull)
    self.parts.append(part)


def draw_face(rng: np.random.Generator) -> Face:
  """Draws the parameters of an identity and builds its face."""
  cut = np.clip(rng.standard_normal(len(GEOMETRY)), -2, 2)
  g = {
    name: mean + spread * float(z)
    for (name, (mean, spread)), z in zip(GEOMETRY.items(), cut, strict=True)
  }
  skin = _between(SKIN, rng.random()) * (1 + 0.03 * rng.standard_normal(3))
  hair = _between(HAIR, rng.random()) * (1 + 0.06 * rng.standard_normal(3))
  iris = _between(IRIS, rng.random() ** 1.5)
  lips = 0.45 * skin + 0.55 * _between(LIPS, rng.random()) * (skin[0] / 215)
  axes = np.asarray(
    [
      g["face_width"],
      (g["skull_height"] + g["chin"]) / 2,
      g["face_depth"],
    ],
    np.float32,
  )
  center = np.asarray(
    [0, (g["chin"] - g["skull_height"]) / 2, -axes[2]], np.float32
  )

  def surface(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The depth of the ellipsoid."""
    inside = 1 - (x / axes[0]) ** 2 - ((y - center[1]) / axes[1]) ** 2
    return center[2] + axes[2] * np.sqrt(np.maximum(inside, 0.02))

  sketch = _Sketch(surface)
  outline = _outline(g)
  _add_hair_behind(sketch, g, hair, center)
  _add_neck_and_ears(sketch, g, skin, center)
  _add_head(sketch, g, skin, outline, axes, center)
  _add_hair_above(sketch, g, rng, skin, hair, center, axes)
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
  _add_locks(sketch, g, hair, center)
  return Face(
    points=np.concatenate(sketch.points).astype(np.float32),
    moves=np.concatenate(sketch.moves, 1).reshape(len(EXPRESSIONS), -1),
    parts=tuple(sketch.parts),
    axes=axes,
    center=center,
    texture=_texture(rng),
    relief=_relief(rng, g),
    geometry=g,
    skin=skin,
    gloss=float(rng.uniform(0.02, 0.16)),
  )


def _between(colors: Float32[np.ndarray, "n 3"], at: float) -> Vector:
  """The colour at `at` in [0, 1] of a ramp."""
  at *= len(colors) - 1
  low = min(int(at), len(colors) - 2)
  return colors[low] + (at - low) * (colors[low + 1] - colors[low])


def _ellipse(
  x: float, y: float, rx: float, ry: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Vertices around a centre."""
  angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
  return x + rx * np.cos(angle), y + ry * np.sin(angle)


def _outline(g: Geometry) -> tuple[np.ndarray, np.ndarray]:
  """The face seen from the front, clockwise from the crown, x and y [40]."""
  angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
  sin, cos = np.sin(angle), -np.cos(angle)
  power = np.where(cos > 0, 2 / g["jaw_power"], 1.0)
  x = g["face_width"] * np.sign(sin) * np.abs(sin) ** power
  y = np.where(cos > 0, g["chin"], g["skull_height"]) * cos
  y = np.where(cos > 0, np.abs(cos) ** power * g["chin"], y)
  x = x * (1 - g["jaw_taper"] * np.maximum(y / g["chin"], 0) ** 2)
  return x, y


def _add_hair_behind(
  sketch: _Sketch, g: Geometry, hair: Color, center: Vector
) -> None:
  angle = np.linspace(-np.pi / 2, np.pi / 2, 16)
  x = (g["face_width"] + max(g["hair_side"], 0.0)) * np.sin(angle)
  top = g["skull_height"] + g["hair_top"]
  y = -top * np.cos(angle)
  # Down to its length: short hair ends at the ears, long hair leaves the image.
  length = max(g["hair_length"], 4.0)
  x = np.concatenate([x, x[[0, -1]] * (1 + 0.1 * (length > 25))])
  y = np.concatenate([y, [length, length]])
  rings = ((0.95, -46.0), (1.0, -26.0), (1.0, -6.0), (0.93, 10.0))
  # The ring in front is only above the ears, where hair frames the face.
  above = np.minimum(y, -12.0)
  sketch.add(
    "hair_behind",
    np.concatenate([x * r for r, _ in rings]),
    np.concatenate([(y if z < 0 else above) * r for r, z in rings]),
    hair * 0.8,
    z=np.repeat([center[2] + z for _, z in rings], len(x)),
    hull=True,
  )


def _add_neck_and_ears(
  sketch: _Sketch, g: Geometry, skin: Color, center: Vector
) -> None:
  width = 0.68 * g["face_width"]
  sketch.add(
    "neck",
    [-width, width, width * 1.15, -width * 1.15],
    [g["chin"] - 24, g["chin"] - 24, g["chin"] + 70, g["chin"] + 70],
    skin * 0.84,
    z=center[2] - 10,
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


def _add_head(
  sketch: _Sketch,
  g: Geometry,
  skin: Color,
  outline: tuple[np.ndarray, np.ndarray],
  axes: Vector,
  center: Vector,
) -> None:
  x, y = outline
  jaw = np.maximum(y / g["chin"], 0) ** 3
  rings = ((1.0, 0.0), (0.96, 0.28), (0.8, 0.6))
  middle = center[1]
  sketch.add(
    "head",
    np.concatenate([x * r for r, _ in rings]),
    np.concatenate([(y - middle) * r + middle for r, _ in rings]),
    skin,
    z=np.repeat([center[2] + axes[2] * d for _, d in rings], len(x)),
    hull=True,
    moves={"open": (0, np.tile(5.0 * jaw, len(rings)))},
  )


def _add_beard(
  sketch: _Sketch,
  g: Geometry,
  rng: np.random.Generator,
  skin: Color,
  hair: Color,
  outline: tuple[np.ndarray, np.ndarray],
) -> None:
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
      moves={
        "open": (
          0,
          np.concatenate([5.0 * (y[jaw] / g["chin"]) ** 3, np.zeros(13)]),
        )
      },
    )
  if kind < 0.3:
    t = np.linspace(-1, 1, 11)
    top = g["mouth_y"] - 8 + 6.5 * t**2
    bottom = g["mouth_y"] - 2.5 + 2 * t**2
    sketch.add(
      "moustache",
      np.concatenate([t, t[::-1]]) * (g["mouth_width"] + 2),
      np.concatenate([top, bottom[::-1]]),
      color,
      lift=2.0,
      moves={"smile": (0, np.concatenate([-2 * t**2, -2 * t**2]))},
    )


def _add_nose(sketch: _Sketch, g: Geometry, skin: Color) -> None:
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


def _add_mouth(sketch: _Sketch, g: Geometry, skin: Color, lips: Color) -> None:
  t = np.linspace(-1, 1, 15)
  half, middle = g["mouth_width"], g["mouth_y"]
  arc = 1 - t**2
  bow = g["cupid_bow"] * np.exp(-((t / 0.22) ** 2))
  # Positive curve: the corners of the resting mouth point up.
  rest = middle - g["mouth_curve"] * t**2
  upper = rest - g["upper_lip"] * np.sqrt(arc) * (1 - bow)
  lower = rest + g["lower_lip"] * np.sqrt(arc)
  smile_x, smile_y = 3.5 * t, 1.0 - 5.0 * t**2
  pucker = -0.25 * half * t
  fall = 9.0 * np.sqrt(arc)
  still = np.zeros_like(t)

  def there_and_back(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, values[::-1]])

  def band(
    name: str,
    top: np.ndarray,
    bottom: np.ndarray,
    color: Color | tuple[float, float, float],
    top_fall: np.ndarray,
    bottom_fall: np.ndarray,
    lift: float,
  ) -> None:
    moves: Moves = {
      "open": (0, np.concatenate([top_fall, bottom_fall[::-1]])),
      "smile": (there_and_back(smile_x), there_and_back(smile_y)),
      "pucker": (there_and_back(pucker), 0),
    }
    sketch.add(
      name,
      np.concatenate([t, t[::-1]]) * half,
      np.concatenate([top, bottom[::-1]]),
      color,
      lift=lift,
      moves=moves,
    )

  for side in (-1, 1):
    x0, y0 = g["nose_width"] + 2, g["nose_length"] - 1
    sketch.add(
      "fold",
      side * np.array([x0, x0 + 0.8, half + 4.8, half + 4.0, half + 3]),
      [y0, y0, middle - 4, middle + 1, middle - 4],
      skin * (1 - max(g["fold"], 0.0)),
      moves={
        "smile": (
          side * np.array([1, 1, 2, 2, 2]),
          np.array([0, 0, -2, -2, -2]),
        )
      },
    )
  band("teeth_gap", rest, rest, (60, 22, 24), -0.12 * fall, fall, 1.0)
  band("teeth", rest, rest, (232, 226, 214), -0.12 * fall, 0.35 * fall, 1.0)
  band("upper_lip", upper, rest + 0.2, lips * 0.92, -0.15 * fall, still, 1.0)
  band("lower_lip", rest - 0.2, lower, lips, fall, fall * 1.05, 1.0)
  line = 0.5 * np.sqrt(arc)
  band("mouth_line", rest - line, rest + line, lips * 0.5, still, still, 1.2)


def _add_eye(
  sketch: _Sketch, g: Geometry, side: int, skin: Color, iris: Color
) -> None:
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

  def add(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    color: Color | tuple[float, float, float],
    moves: Moves | None = None,
  ) -> None:
    sketch.add(name, x, y, color, lift=lift, moves=moves)

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
    add("iris", *_ellipse(*center, size, size, 14), color, gaze)
  glint = center[0] + 0.9, center[1] - 1.1
  add("glint", *_ellipse(*glint, 0.65, 0.65, 6), (250, 250, 250), gaze)
  # The fold above and the cheek below hide what the lids cover.
  add(
    "upper_lid",
    both,
    back([crease - 0.8, upper[::-1]]),
    skin * 0.86,
    moves={"lids": (0, back([0.2 * close, close[::-1]]))},
  )
  add(
    "lower_lid",
    both,
    back([lower, bag[::-1]]),
    skin * (0.96 - max(g["bag"], 0)),
    moves={"smile": (0, back([rise, 0 * rise]))},
  )
  thick = max(g["lash"], 0.4) * (0.6 + 0.4 * t)
  add(
    "lash",
    both,
    back([upper - thick, upper[::-1] + 0.3]),
    skin * 0.22,
    moves={"lids": (0, back([close, close[::-1]]))},
  )


def _add_brow(sketch: _Sketch, g: Geometry, side: int, color: Color) -> None:
  t = np.linspace(-1, 1, 9)
  # Not so far round the temple that it would fold over in a turned head.
  reach = 0.8 * g["face_width"] - g["eye_x"]
  x = side * (g["eye_x"] + np.minimum(g["brow_length"] * t + 0.5, reach))
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
    moves={"raise": (0, -3.0), "frown": (-side * 1.5 * inner, 3.0 * inner)},
  )


def _add_hair_above(
  sketch: _Sketch,
  g: Geometry,
  rng: np.random.Generator,
  skin: Color,
  hair: Color,
  center: Vector,
  axes: Vector,
) -> None:
  angle = np.linspace(-np.pi / 2, np.pi / 2, 15)
  x = (g["face_width"] + 0.6 * max(g["hair_side"], 2.0)) * np.sin(angle)
  y = -(g["skull_height"] + g["hair_top"]) * np.cos(angle)
  rings = ((1.0, -0.1), (0.96, 0.28), (0.8, 0.6), (0.5, 0.86))
  sketch.add(
    "hair_above",
    np.concatenate([x * r for r, _ in rings]),
    np.concatenate([y * r - 5 for r, _ in rings]),
    hair,
    z=np.repeat([center[2] + axes[2] * d for _, d in rings], len(x)),
    hull=True,
  )
  # The hair covers the whole front; the skin below the hairline is put on it.
  t = np.linspace(-1, 1, 15)
  wave = rng.standard_normal(4) * [1.6, 1.3, 1.0, 0.8]
  edge = g["hairline"] + g["hairline_arch"] * np.abs(t) ** 2.5
  edge = edge + g["parting"] * 6 * t * (1 - t**2)
  edge = edge + sum(
    w * np.sin((k + 2) * (t + 0.3 * k) * np.pi / 2) for k, w in enumerate(wave)
  )
  edge[[0, -1]] = -6
  x = 0.98 * g["face_width"] * np.sin(t * np.pi / 2)
  # Strips, as a whole forehead would fold over itself in a turned head; they
  # overlap, as blended edges would show the hair between them.
  for k in range(len(t) - 2):
    strip = slice(k, k + 3)
    sketch.add(
      "forehead",
      np.concatenate([x[strip], x[strip][::-1]]),
      np.concatenate([edge[strip], [3.0] * 3]),
      skin,
    )


def _add_locks(
  sketch: _Sketch, g: Geometry, hair: Color, center: Vector
) -> None:
  if g["hair_length"] < 20:
    return
  for side in (-1, 1):
    wide = g["face_width"] + max(g["hair_side"], 0.0)
    sketch.add(
      "hair_lock",
      side * np.array([0.84, 1.0, 1.03, 0.95, 0.88]) * wide,
      [-14, -18, g["hair_length"], g["hair_length"] + 3, 16],
      hair * 0.92,
      z=center[2] + np.array([10.0, 0.0, 0.0, 4.0, 6.0]),
    )


def _grid(count: int) -> tuple[np.ndarray, np.ndarray]:
  """The x and y of a field of count x count cells."""
  at = (np.arange(count, dtype=np.float32) + 0.5) * (FIELD / count)
  return np.meshgrid(FIELD_CORNER[0] + at, FIELD_CORNER[1] + at)


def _bump(
  x: np.ndarray, y: np.ndarray, x0: float, y0: float, rx: float, ry: float
) -> np.ndarray:
  """A bell of height 1 around (x0, y0)."""
  return np.exp(-(((x - x0) / rx) ** 2) - ((y - y0) / ry) ** 2)


def _texture(rng: np.random.Generator) -> Float32[np.ndarray, "f f 3"]:
  """Blotches, blush, shadows and freckles of a skin: a factor on its colour."""
  x, y = _grid(FIELD)
  field = np.ones((FIELD, FIELD, 3), np.float32)
  for cells, amount in ((6, 0.075), (14, 0.055), (32, 0.035)):
    noise = rng.standard_normal((cells, cells, 1)) * [1, 1, 1]
    noise = noise + 0.5 * rng.standard_normal((cells, cells, 3))
    field += cv2.resize(
      (amount * noise).astype(np.float32),
      (FIELD, FIELD),
      interpolation=cv2.INTER_CUBIC,
    )
  blush = rng.uniform(0, 0.14)
  cheek = _bump(np.abs(x), y, rng.uniform(18, 25), rng.uniform(18, 26), 10, 8)
  field -= blush * cheek[..., None] * np.asarray([0.1, 1, 0.9], np.float32)
  freckles = rng.random() ** 3 * 60
  across = _bump(np.abs(x), y, 12, 16, 16, 9)
  for column, row in rng.integers(0, FIELD, (600, 2))[: int(freckles * 10)]:
    if across[row, column] > 0.3:
      field[row, column] *= np.asarray([0.8, 0.7, 0.6], np.float32)
  return np.clip(field, 0.4, 1.3)


def _relief(
  rng: np.random.Generator, g: Geometry
) -> Float32[np.ndarray, "f f 2"]:
  """Slopes of what the ellipsoid lacks: nose, brow, cheeks, chin, sockets."""
  x, y = _grid(FIELD // 4)
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
