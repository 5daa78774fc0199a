"""Pictures of a scene, from signed distances with an edge one pixel wide."""

import numpy as np
from numpy.typing import NDArray

from .scene import FLOOR, FPS, HEAD_RADIUS, REACH, STILL_RADIUS, Scene, Track, syllable, track

Array = NDArray[np.float32]

COLOUR_RGB = {
    "red": (225, 30, 40),
    "orange": (255, 128, 0),
    "yellow": (255, 235, 40),
    "green": (40, 190, 60),
    "cyan": (40, 220, 230),
    "blue": (45, 85, 255),
    "purple": (170, 50, 225),
    "white": (245, 245, 245),
}
BACKGROUND_RGB = {
    "black": (10, 10, 12),
    "grey": (56, 56, 58),
    "navy": (12, 18, 66),
    "maroon": (62, 12, 22),
    "teal": (6, 52, 54),
}
SKIN_RGB = {"pale": (248, 210, 180), "tan": (212, 152, 96), "brown": (140, 86, 52)}
EYE_RGB = (24, 18, 28)
MOUTH_RGB = (64, 8, 20)
FLOOR_LIGHT = 28
"""How much lighter than the background the floor is."""

STAR_NOTCH = 0.45
"""Centre to notch of a star, as part of centre to tip."""
EYES = ((-0.13, -0.1), (0.13, -0.1))
EYE_RADIUS = 0.048
MOUTH_Y = 0.16
MOUTH_SHUT = (0.11, 0.012)
"""Half the width and half the height of a closed mouth."""
MOUTH_HEIGHT = 0.11
MOUTH_WIDTH = {"a": 0.13, "e": 0.17, "o": 0.085}


def draw(scene: Scene, frames: int = 49, size: int = 64) -> NDArray[np.uint8]:
    """The pictures of a scene, [frames, size, size, 3]."""
    truth = track(scene, frames)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size).astype(np.float32)
    canvas = _background(scene, axis)
    if scene.second is not None:
        still = scene.second
        edge = distance(still.shape, axis - still.x, (axis - still.y)[:, None], STILL_RADIUS)
        canvas = _paint(canvas, edge, size, COLOUR_RGB[still.colour])
    if scene.kind == "face":
        pictures = _face(scene, truth, axis, canvas)
    else:
        x = axis - truth.x.astype(np.float32)[:, None, None]
        y = axis[:, None] - truth.y.astype(np.float32)[:, None, None]
        radius = truth.radius.astype(np.float32)[:, None, None]
        pictures = _paint(canvas, distance(scene.shape, x, y, radius), size, COLOUR_RGB[scene.colour])
    pictures += 0.5
    return pictures.astype(np.uint8)


def _background(scene: Scene, axis: Array) -> Array:
    """[size, size, 3]: one colour, or a gradient from top to bottom; with a floor where something bounces."""
    top, bottom = (np.array(BACKGROUND_RGB[name], np.float32) for name in scene.background)
    column = top + (bottom - top) * axis[:, None]
    if scene.motion == "bouncing":
        column = column + FLOOR_LIGHT * np.clip((axis[:, None] - FLOOR) * len(axis) + 0.5, 0, 1)
    return np.broadcast_to(column[:, None], (len(axis), len(axis), 3)).astype(np.float32)


def _paint(canvas: Array, edge: Array, size: int, colour: tuple[int, int, int]) -> Array:
    """Lays a colour over the canvas where the distance to the edge, in sides, is negative."""
    cover = np.clip(0.5 - edge * np.float32(size), 0, 1)[..., None]
    return canvas + cover * (np.array(colour, np.float32) - canvas)


def distance(shape: str, x: Array, y: Array, radius: Array | float) -> Array:
    """Signed distance to the edge of an upright shape, negative inside; exact on its edges, near enough at its tips."""
    reach = np.float32(REACH[shape]) * radius
    if shape == "circle":
        return np.sqrt(x * x + y * y) - reach
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - reach
    x = np.abs(x)
    if shape == "triangle":
        return np.maximum(x * np.float32(np.sqrt(0.75)) - y * np.float32(0.5), y) - reach / 2
    return _star_distance(x, -y, reach)


def _star_distance(x: Array, up: Array, reach: Array | float) -> Array:
    """Folds a star onto half of its upper point, in whose sector a single straight edge is left.

    The mirrors stand at 108 and at 36 degrees from the vertical, halfway between neighbouring points.
    """
    for degrees in (108, 36):
        across, along = (np.float32(f(np.radians(degrees))) for f in (np.cos, np.sin))
        beyond = 2 * np.maximum(across * x - along * up, 0)
        x, up = x - across * beyond, up + along * beyond
    notch = STAR_NOTCH * np.exp(1j * np.pi / 5)
    slope = np.array([1 - notch.real, notch.imag])
    right, above = (slope / np.hypot(*slope)).astype(np.float32)
    return right * np.abs(x) + above * (up - reach)


def _face(scene: Scene, truth: Track, axis: Array, canvas: Array) -> Array:
    """[frames, size, size, 3]: everything stands still but the mouth, which is drawn over a strip of the picture."""
    size = len(axis)
    x, y = axis - np.float32(scene.x), (axis - np.float32(scene.y))[:, None]
    canvas = _paint(canvas, distance("circle", x, y, HEAD_RADIUS), size, SKIN_RGB[scene.colour])
    for right, down in EYES:
        canvas = _paint(canvas, distance("circle", x - right, y - down, EYE_RADIUS), size, EYE_RGB)
    number, _ = syllable(scene.speech, np.arange(len(truth.beat)) / FPS)
    widths = np.array([*(MOUTH_WIDTH[vowel] for vowel in scene.speech.vowels), MOUTH_SHUT[0]])[number]
    half_width = MOUTH_SHUT[0] + truth.beat * (widths - MOUTH_SHUT[0])
    half_height = MOUTH_SHUT[1] + truth.opening * MOUTH_HEIGHT
    axes = [half.astype(np.float32)[:, None, None] for half in (half_width, half_height)]
    return _paint(canvas, _ellipse(x, y - np.float32(MOUTH_Y), *axes), size, MOUTH_RGB)


def _ellipse(x: Array, y: Array, half_width: Array, half_height: Array) -> Array:
    """Distance to an ellipse to first order: the value of its equation over the length of the gradient."""
    x, y = x / half_width, y / half_height
    value = np.sqrt(x * x + y * y)
    slope = np.sqrt((x / half_width) ** 2 + (y / half_height) ** 2)
    return value * (value - 1) / np.maximum(slope, 1e-6)
