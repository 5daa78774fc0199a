"""Finds the main thing in the pictures of a clip: where it is, how large, which colour and which shape."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..world.draw import COLOUR_RGB, EYE_RADIUS, EYE_RGB, EYES, MOUTH_RGB, MOUTH_Y, SKIN_RGB, distance
from ..world.scene import HEAD_RADIUS, SHAPES, Values

BORDER = 0.08
"""Width of the strips at the left and the right edge from which the background is read."""
CONTRAST = 50
"""How far from the background in RGB a pixel is that may belong to a thing."""
OFF_COLOUR = 70
"""How far from the mixture of background and thing a pixel of the thing may be."""
SMALLEST = 0.004
"""Part of the picture that a thing covers at least."""
FARTHEST_COLOUR = 110
ROUNDNESS = 0.88
WORST_LIKENESS = 0.72
GRID, GRID_REACH = 33, 2.0
"""Samples along, and half the width in radii, of the square on which shapes are compared."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Thing:
    """The main thing of a clip: ``cover`` [F, H, W] from 0 to 1, its ``rgb``, and x, y and radius per frame in sides
    of the picture. The radius is that of a disc of the same area. A frame without it holds NaN."""

    cover: NDArray[np.float32]
    rgb: Values
    x: Values
    y: Values
    radius: Values

    @property
    def seen(self) -> Mask:
        return np.isfinite(self.x)


def find_thing(frames: NDArray[np.uint8]) -> Thing | None:
    """The main thing in [F, H, W, 3] frames, or None where there is nothing but background."""
    pictures = frames.astype(np.float32)
    background = _background(pictures)
    contrast = np.sqrt(np.sum((pictures - background) ** 2, -1))
    rough = _largest(contrast > CONTRAST)
    if rough is None:
        return None
    rgb = np.median(pictures[_core(rough)], 0)
    # The part of a pixel that the thing covers, from its place between the background's colour and the thing's.
    towards = rgb - background
    cover = np.sum((pictures - background) * towards, -1) / np.maximum(np.sum(towards**2, -1), 1)
    off = np.sqrt(np.sum((pictures - background - cover[..., None] * towards) ** 2, -1))
    body = _largest((cover > 0.5) & (off < OFF_COLOUR))
    if body is None:
        return None
    near = ndimage.binary_dilation(body, np.ones((1, 3, 3), bool), iterations=2)
    return _measure(np.where(near, np.clip(cover, 0, 1), 0), np.median(pictures[_core(body)], 0))


def _background(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """[1, H, 1, 3]: backgrounds differ from row to row at most, and a thing leaves the edges most of the time."""
    strip = max(2, round(BORDER * pictures.shape[2]))
    edges = np.concatenate([pictures[:, :, :strip], pictures[:, :, -strip:]], 2)
    return np.median(edges, (0, 2))[None, :, None]


def _largest(mask: Mask) -> Mask | None:
    """The largest piece of the mask in space and time, if it is large enough to be a thing."""
    labels, count = ndimage.label(mask)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    return labels == 1 + np.argmax(sizes) if sizes.max() > SMALLEST * mask.size else None


def _core(mask: Mask) -> Mask:
    """The mask without its rim, whose colour is mixed with the background's."""
    inner = ndimage.binary_erosion(mask, np.ones((1, 3, 3), bool), iterations=2)
    return inner if inner.any() else mask


def _measure(cover: NDArray[np.float32], rgb: Values) -> Thing:
    height, width = cover.shape[1:]
    mass = cover.sum((1, 2))
    mass = np.where(mass > SMALLEST * height * width, mass, np.nan)
    x = np.sum(cover * (np.arange(width) + 0.5), (1, 2)) / mass / width
    y = np.sum(cover * (np.arange(height) + 0.5)[:, None], (1, 2)) / mass / height
    return Thing(cover, rgb, x, y, np.sqrt(mass / np.pi / (height * width)))


def name_colour(rgb: Values, names: dict[str, tuple[int, int, int]]) -> str | None:
    """The name of the nearest colour, or None where none is near."""
    far = {name: float(np.linalg.norm(rgb - np.array(value))) for name, value in names.items()}
    nearest = min(far, key=far.__getitem__)
    return nearest if far[nearest] <= FARTHEST_COLOUR else None


def is_face(frames: NDArray[np.uint8], thing: Thing) -> bool:
    """Whether it is a disc as large as a head, of a colour of skin rather than of a shape, with two dark eyes."""
    if name_colour(thing.rgb, SKIN_RGB | COLOUR_RGB) not in SKIN_RGB:
        return False
    head = _head(thing)
    height, width = head.shape
    y, x = (np.mean(where) + 0.5 for where in np.nonzero(head))
    radius = np.sqrt(head.mean() / np.pi)
    down, right = (np.arange(height)[:, None] + 0.5 - y) / height, (np.arange(width) + 0.5 - x) / width
    disc = np.hypot(right, down) < radius
    round_enough = np.sum(head & disc) / np.sum(head | disc) > ROUNDNESS
    light = np.median(frames, 0).mean(-1)
    dark = light < (thing.rgb.mean() + np.mean(EYE_RGB)) / 2
    eyes = [dark[np.hypot(right - across, down - along) < EYE_RADIUS].mean() > 0.5 for across, along in EYES]
    return bool(round_enough and radius > 0.75 * HEAD_RADIUS and all(eyes))


def _head(thing: Thing) -> Mask:
    """[H, W]: all that the thing covers at any time, with what lies inside of it."""
    return ndimage.binary_fill_holes(thing.cover.max(0) > 0.5)


# the shape


def name_shape(thing: Thing) -> str | None:
    """The shape that the thing is most like on average over the frames that show all of it."""
    edge = np.ones(thing.cover.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    whole = thing.seen & (thing.cover[:, edge].max(1) < 0.5)
    chosen = np.flatnonzero(whole if whole.any() else thing.seen)
    mean = np.mean([_on_grid(thing, frame) for frame in chosen], 0)
    likeness = {shape: _likeness(mean, _template(shape)) for shape in SHAPES}
    best = max(likeness, key=likeness.__getitem__)
    return best if likeness[best] >= WORST_LIKENESS else None


def _grid() -> Values:
    return np.linspace(-GRID_REACH, GRID_REACH, GRID)


def _on_grid(thing: Thing, frame: int) -> Values:
    """The cover of a frame, moved to its centre and brought to radius 1, so that frames add up to a finer picture."""
    height, width = thing.cover.shape[1:]
    steps = _grid() * thing.radius[frame]
    rows = (thing.y[frame] + steps) * height - 0.5
    columns = (thing.x[frame] + steps) * width - 0.5
    return ndimage.map_coordinates(thing.cover[frame], np.meshgrid(rows, columns, indexing="ij"), order=1)


def _template(shape: str) -> Values:
    """A shape on the grid, centred on its middle of mass and of the area of a disc of radius 1."""
    fine = np.linspace(-GRID_REACH, GRID_REACH, 401).astype(np.float32)
    inside = distance(shape, fine, fine[:, None], 1.0) < 0
    radius = np.sqrt(inside.mean() * (2 * GRID_REACH) ** 2 / np.pi)
    middle = np.sum(inside * fine[:, None]) / inside.sum()
    axis = (_grid() * radius).astype(np.float32)
    step = axis[1] - axis[0]
    return np.clip(0.5 - distance(shape, axis, axis[:, None] + np.float32(middle), 1.0) / step, 0, 1)


def _likeness(first: Values, second: Values) -> float:
    """What two soft shapes share, as part of what they cover together."""
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())


# the mouth


def mouth_opening(frames: NDArray[np.uint8], thing: Thing) -> Values:
    """Height of the dark of the mouth in sides of the picture, per frame, along the middle of the face."""
    height, width = frames.shape[1:3]
    y, x = (float(np.mean(where)) for where in np.nonzero(_head(thing)))
    half, top, low = 0.05 * width, y + (MOUTH_Y - 0.13) * height, y + (MOUTH_Y + 0.16) * height
    columns = slice(round(x - half), round(x + half) + 1)
    strip = frames[:, round(top) : round(low) + 1, columns].astype(np.float32)
    light, dark = thing.rgb.mean(), np.mean(MOUTH_RGB)
    darkness = np.clip((light - strip.mean(-1)) / (light - dark), 0, 1)
    return darkness.mean(2).sum(1) / height
