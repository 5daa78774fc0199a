"""What a clip shows and sounds like, and whether that is what its scene asked for."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from ..world.draw import COLOUR_RGB, SKIN_RGB
from ..world.scene import FPS, Scene, Values
from .pictures import find_thing, is_face, mouth_opening, name_colour, name_shape
from .sounds import SILENCE, find_clicks, levels, loudness, side

IN_TIME = 1 / FPS
"""Seconds that a click may be away from its touch."""
HITS, CORRELATION = 0.9, 0.8
"""Share of touches with a click, and correlation of picture and sound, from which a clip is in time."""
FEWEST_SEEN = 0.8
"""Share of frames that have to show the thing."""


@dataclass(frozen=True)
class Findings:
    """What was found in a clip; None where nothing was, or nothing that has a name in this world.

    Per frame, in sides of the picture: the centre ``x`` and ``y``, the ``radius`` of a disc of the same area, the
    ``opening`` of the mouth (0 without a face); and of the sound, the ``loudness`` and the ``side`` from -1 (left) to
    1 (right). ``touches`` of the floor and ``clicks`` are times in seconds; ``seconds`` is the length of the pictures.
    A face has shape "face", the colour of its skin, and motion "speaking" if its mouth moves.
    """

    shape: str | None
    colour: str | None
    motion: str | None
    x: Values
    y: Values
    radius: Values
    opening: Values
    loudness: Values
    side: Values
    touches: tuple[float, ...]
    clicks: tuple[float, ...]
    seconds: float


def judge_clip(frames: NDArray[np.uint8], waveform: NDArray[np.float32], rate: int) -> Findings:
    """Analyses pictures [F, H, W, 3] at 25 a second and a waveform [2, N] at ``rate`` Hz, which begin together."""
    count = len(frames)
    level = levels(waveform, rate, count)
    heard = {"loudness": loudness(level), "side": side(level), "clicks": find_clicks(waveform, rate)}
    thing = find_thing(frames)
    if thing is None or thing.seen.mean() < FEWEST_SEEN:
        nothing = np.full(count, np.nan)
        seen = dict.fromkeys(("x", "y", "radius", "opening"), nothing)
        return Findings(None, None, None, **seen, **heard, touches=(), seconds=count / FPS)
    x, y, radius = (_filled(values) for values in (thing.x, thing.y, thing.radius))
    opening, touches = np.zeros(count), ()
    if is_face(frames, thing):
        opening = mouth_opening(frames, thing)
        names = ("face", name_colour(thing.rgb, SKIN_RGB), "speaking" if np.ptp(opening) > 0.04 else None)
    else:
        motion = name_motion(x, y, radius)
        names = (name_shape(thing), name_colour(thing.rgb, COLOUR_RGB), motion)
        touches = find_touches(y) if motion == "bouncing" else ()
    return Findings(*names, x, y, radius, opening, touches=touches, seconds=count / FPS, **heard)


def _filled(values: Values) -> Values:
    """The values with those of frames that don't show the thing put in between their neighbours'."""
    good = np.isfinite(values)
    return np.interp(np.arange(len(values)), np.flatnonzero(good), values[good])


def name_motion(x: Values, y: Values, radius: Values) -> str | None:
    """The motion that tracks of the centre and the radius show."""
    across, down, swell = (np.ptp(np.percentile(values, (3, 97))) for values in (x, y, radius))
    swell /= np.median(radius)
    if across > 0.25 and down > 0.25:
        turned = np.unwrap(np.arctan2(y - (y.min() + y.max()) / 2, x - (x.min() + x.max()) / 2))
        return "orbiting" if abs(turned[-1] - turned[0]) > 1.4 * np.pi else None
    if across > 0.25 and down < 0.12:
        steps = np.diff(x)
        onward = np.mean(steps * np.sign(x[-1] - x[0]) > -0.004)
        return ("sliding right" if x[-1] > x[0] else "sliding left") if onward > 0.9 else None
    if across < 0.12 and down > 0.08 and swell < 0.3:
        return "bouncing" if find_touches(y) else None
    if across < 0.12 and down < 0.12 and swell > 0.3:
        smooth = np.convolve(radius, np.ones(3) / 3, "valid")
        crossings = sum(a != b for a, b in pairwise(smooth > (smooth.min() + smooth.max()) / 2))
        return "pulsing" if crossings >= 2 else None
    return None


def find_touches(y: Values) -> tuple[float, ...]:
    """When the centre is lowest, in seconds: where the lines of its way down and of its way up meet.

    Those within two frames of either end are left out, since their ways are not seen.
    """
    lowest, _ = signal.find_peaks(y, prominence=0.25 * np.ptp(y), distance=6)
    touches = []
    for frame in lowest:
        if 2 <= frame < len(y) - 2:
            down, up = y[frame - 1] - y[frame - 2], y[frame + 2] - y[frame + 1]
            # down * (t + 1) + y[-1] = up * (t - 1) + y[1], t in frames from the lowest one
            meet = (y[frame + 1] - y[frame - 1] - up - down) / (down - up) if down > up else 0.0
            touches.append(float(frame + np.clip(meet, -1, 1)) / FPS)
    return tuple(touches)


def agreement(findings: Findings, motion: str) -> float:
    """How well sound and picture go together for a motion, from its rule; 0 where one of them is missing.

    Bouncing: the share of touches that have a click within one frame and of clicks that have a touch, whichever is
    smaller. Otherwise the correlation over the frames of mouth or radius with the loudness, or of x with the side.
    """
    if motion == "bouncing":
        return _clicks_on_touches(findings)
    if motion in ("speaking", "pulsing"):
        return _correlation(findings.opening if motion == "speaking" else findings.radius, findings.loudness)
    return _correlation(findings.x, findings.side)


def meetings(findings: Findings) -> tuple[list[bool], list[bool]]:
    """For each touch whether a click is within one frame, and for each click whether a touch is."""
    touches, clicks = np.array(findings.touches), np.array(findings.clicks)
    # At either end of the clip a touch may be out of sight while its click is heard.
    seen = clicks[(clicks > 3 / FPS) & (clicks < findings.seconds - 4 / FPS)]
    return [_meets(time, clicks) for time in touches], [_meets(time, touches) for time in seen]


def _meets(time: float, others: Values) -> bool:
    return bool((np.abs(others - time) <= IN_TIME).any())


def _clicks_on_touches(findings: Findings) -> float:
    touches, clicks = meetings(findings)
    return float(min(np.mean(touches), np.mean(clicks) if clicks else 1.0)) if touches else 0.0


def _correlation(seen: Values, heard: Values) -> float:
    good = np.isfinite(seen) & np.isfinite(heard)
    if good.sum() < len(seen) / 2 or np.std(seen[good]) < 1e-4 or np.std(heard[good]) < SILENCE:
        return 0.0
    return float(np.corrcoef(seen[good], heard[good])[0, 1])


def in_time(findings: Findings, motion: str) -> bool:
    """Whether the sound belongs to the picture, for clips that were to show this motion."""
    return agreement(findings, motion) >= (HITS if motion == "bouncing" else CORRELATION)


def matches(findings: Findings, scene: Scene) -> dict[str, bool]:
    """Whether colour, shape and motion are those of the scene, and the sound in time with the picture."""
    return {
        "colour": findings.colour == scene.colour,
        "shape": findings.shape == scene.shape,
        "motion": findings.motion == scene.motion,
        "sync": in_time(findings, scene.motion),
    }
