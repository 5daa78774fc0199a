"""What a clip of the world shows, how it moves, and which combinations are kept out of training.

Lengths are fractions of the side of the square picture, x to the right and y down; times are in seconds. Picture k
stands for the time k / 25, and the sound begins with it at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FPS = 25
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
MOTIONS = ("bouncing", "sliding left", "sliding right", "orbiting", "pulsing")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("black", "grey", "navy", "maroon", "teal")
SKINS = ("pale", "tan", "brown")
VOICES = ("woman", "man")
VOWELS = ("a", "e", "o")

RADIUS = {"small": 0.14, "medium": 0.1875, "large": 0.225}
REACH = {"circle": 1.0, "square": 0.886, "triangle": 1.35, "star": 1.3}
"""Centre to edge of a square and to the tips of a triangle and a star, in radii: all cover about the same area."""
FOOT = {"circle": 1.0, "square": 0.886, "triangle": 0.675, "star": 1.3 * float(np.cos(np.pi / 5))}
"""From the centre down to the lowest point, in radii."""
FLOOR = 0.9
GRAVITY = 3.0
TEMPO = {"small": 0.66, "medium": 0.78, "large": 0.9}
"""Seconds between touches of the floor: large ones bounce higher and slower."""
DROP, DRIVEN_DROPS = 0.5, (0.35, 0.65)
"""The part of a bounce that has passed at the start: a shape falls from its full height as a clip begins. Where a sound
tells when it touches the floor, that may come sooner or later."""
ORBIT = {"small": 0.32, "medium": 0.25, "large": 0.2}
SWELL = 0.3
STILL_RADIUS = 0.09
HEAD_RADIUS = 0.36
BEAT = {2: 0.6, 3: 0.5, 4: 0.4}
"""Seconds from vowel to vowel, by their number."""
OPENNESS = {"a": 1.0, "e": 0.6, "o": 0.8}
"""How far the mouth opens for a vowel, and so how loud it is."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Still:
    """A second shape that stands still."""

    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Speech:
    """Vowels that a face says: the first begins at ``start``, one follows the other after ``beat`` seconds."""

    voice: str
    vowels: tuple[str, ...]
    start: float
    beat: float


@dataclass(frozen=True)
class Scene:
    """A clip. ``kind`` is "shape" or "face"; a face has shape "face", its skin as colour, and motion "speaking".

    ``background`` names the colours at the top and the bottom, the same one twice where it is plain. ``x`` and ``y``
    are where a shape is at rest or, sliding, where it starts; the y of a bouncing shape follows from the floor.
    ``phase`` is the part of a period that has passed at the start, and ``pace`` the length of a period in seconds, or
    for a sliding shape its speed in sides per second.
    """

    kind: str
    shape: str
    colour: str
    size: str
    motion: str
    background: tuple[str, str]
    x: float = 0.5
    y: float = 0.5
    phase: float = 0.0
    pace: float = 1.0
    second: Still | None = None
    speech: Speech | None = None


@dataclass(frozen=True)
class Track:
    """The truth about a clip, per time asked for: centre, radius, opening of the mouth (0 to 1) and ``beat``, how far
    a syllable has come up (0 to 1); and ``touches``, when a bouncing shape meets the floor, in seconds."""

    x: Values
    y: Values
    radius: Values
    opening: Values
    beat: Values
    touches: tuple[float, ...] = ()


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether a combination is kept out of training: one in eight, while every pair of its words is trained."""
    return (COLOURS.index(colour) + 2 * SHAPES.index(shape) + 3 * MOTIONS.index(motion)) % 8 == 0


def sample_scene(
    rng: np.random.Generator,
    *,
    held_out: bool | None = False,
    kind: str | None = None,
    motion: str | None = None,
    driven: bool = False,
) -> Scene:
    """Draws a scene.

    ``held_out`` False gives trained combinations only, True only those kept out (shapes, since faces have none), None
    any. ``kind`` and ``motion`` ask for one kind or one motion; without them one clip in six is a face. ``driven`` asks
    for a scene whose moments only its sound tells: bounces do not begin with a drop from the full height.
    """
    if kind is None:
        kind = "shape" if motion in MOTIONS or held_out else "face"
        if motion is None and not held_out and rng.random() >= 1 / 6:
            kind = "shape"
    if kind == "face":
        return _sample_face(rng)
    motions = MOTIONS if motion is None else (motion,)
    while True:
        words = (_pick(rng, COLOURS), _pick(rng, SHAPES), _pick(rng, motions))
        if held_out is None or is_held_out(*words) == held_out:
            return _sample_shape(rng, *words, driven)


def _sample_shape(rng: np.random.Generator, colour: str, shape: str, motion: str, driven: bool) -> Scene:
    size = _pick(rng, SIZES)
    # Inside the orbit of a larger shape there is no room.
    with_second = rng.random() < 1 / 6 and (motion != "orbiting" or size == "small")
    place = _place(rng, motion, size, with_second, driven)
    still = None
    if with_second:
        other = _pick(rng, [name for name in COLOURS if name != colour])
        still = Still(_pick(rng, SHAPES), other, *_still_place(rng, motion, place.get("x", 0.5)))
        if motion == "bouncing":
            still = Still(still.shape, still.colour, still.x, FLOOR - STILL_RADIUS * FOOT[still.shape])
    return Scene("shape", shape, colour, size, motion, _sample_background(rng), second=still, **place)


def _place(rng: np.random.Generator, motion: str, size: str, with_second: bool, driven: bool) -> dict[str, float]:
    """The two or three free numbers of a motion; a second shape needs the moving one out of its way."""
    phase = float(rng.random())
    if motion == "bouncing":
        x = rng.uniform(0.28, 0.36) if with_second else rng.uniform(0.28, 0.72)
        if with_second and rng.random() < 0.5:
            x = 1 - x
        low, high = DRIVEN_DROPS
        return {"x": float(x), "phase": low + (high - low) * phase if driven else DROP, "pace": TEMPO[size]}
    if motion == "orbiting":
        return {"phase": phase, "pace": float(rng.uniform(1.2, 2.0))}
    if motion == "pulsing":
        x = rng.choice([0.41, 0.59]) if with_second else rng.uniform(0.4, 0.6)
        return {
            "x": float(x),
            "y": 0.6 if with_second else 0.52,
            "phase": phase,
            "pace": float(rng.uniform(0.6, 1.2)),
        }
    start, end = rng.uniform(0.12, 0.3), rng.uniform(0.7, 0.88)
    if motion == "sliding left":
        start, end = 1 - start, 1 - end
    y = rng.uniform(0.62, 0.66) if with_second else rng.uniform(0.36, 0.64)
    return {"x": float(start), "y": float(y), "pace": float(abs(end - start) / (48 / FPS))}


def _still_place(rng: np.random.Generator, motion: str, x: float) -> tuple[float, float]:
    if motion == "orbiting":
        return 0.5, 0.5
    if motion in ("bouncing", "pulsing"):
        return (0.84 if x < 0.5 else 0.16), 0.15
    return float(rng.uniform(0.2, 0.8)), 0.15


def _sample_background(rng: np.random.Generator) -> tuple[str, str]:
    top = _pick(rng, BACKGROUNDS)
    if rng.random() < 0.6:
        return top, top
    return top, _pick(rng, [name for name in BACKGROUNDS if name != top])


def _sample_face(rng: np.random.Generator) -> Scene:
    vowels = tuple(_pick(rng, VOWELS) for _ in range(int(rng.integers(2, 5))))
    speech = Speech(_pick(rng, VOICES), vowels, float(rng.uniform(0.08, 0.28)), BEAT[len(vowels)])
    x = float(rng.uniform(0.45, 0.55))
    return Scene("face", "face", _pick(rng, SKINS), "large", "speaking", _sample_background(rng), x=x, speech=speech)


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


# how it moves


def track(scene: Scene, frames: int = 49) -> Track:
    """The truth about the pictures 0 to ``frames`` - 1, with the touches of the floor in that time."""
    return track_at(scene, np.arange(frames) / FPS)


def track_at(scene: Scene, times: Values) -> Track:
    """The truth at the given times, which rise; the touches are those from the first to the last of them."""
    still = np.zeros_like(times)
    x, y, radius = still + scene.x, still + scene.y, still + RADIUS[scene.size]
    if scene.kind == "face":
        opening, beat = _mouth(scene.speech, times)
        return Track(x, y, still + HEAD_RADIUS, opening, beat)
    turns = times / scene.pace + scene.phase
    touches: tuple[float, ...] = ()
    if scene.motion == "bouncing":
        passed = turns % 1
        height = 4 * passed * (1 - passed) * GRAVITY * scene.pace**2 / 8
        y = FLOOR - FOOT[scene.shape] * radius - height
        numbers = np.arange(np.ceil(turns[0]), np.floor(turns[-1]) + 1)
        touches = tuple(float((number - scene.phase) * scene.pace) for number in numbers)
    elif scene.motion == "orbiting":
        x = x + ORBIT[scene.size] * np.cos(2 * np.pi * turns)
        y = y + ORBIT[scene.size] * np.sin(2 * np.pi * turns)
    elif scene.motion == "pulsing":
        radius = radius * (1 + SWELL * np.sin(2 * np.pi * turns))
    else:
        x = x + times * scene.pace * (1 if scene.motion == "sliding right" else -1)
    return Track(x, y, radius, still, still, touches)


def _mouth(speech: Speech, times: Values) -> tuple[Values, Values]:
    """The opening of the mouth and the rise and fall of the syllable, shut for a short while between syllables."""
    number, passed = syllable(speech, times)
    beat = np.sin(np.pi * np.clip(passed / 0.85, 0, 1)) ** 2 * (number >= 0)
    open_by = np.array([*(OPENNESS[vowel] for vowel in speech.vowels), 0.0])
    return beat * open_by[number], beat


def syllable(speech: Speech, times: Values) -> tuple[NDArray[np.int64], Values]:
    """Which vowel is being said at each time, -1 for none, and the part of its beat that has passed."""
    turns = (times - speech.start) / speech.beat
    number = np.floor(turns).astype(np.int64)
    return np.where((number >= 0) & (number < len(speech.vowels)), number, -1), turns - np.floor(turns)
