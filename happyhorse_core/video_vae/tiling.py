"""Decoding in overlapping spatial tiles, so that memory is bounded by one tile and one window in time.

In time TurboVAED always runs over windows of a few latent frames; that is how it was trained, not an approximation. In
space its convolutions see zeros beyond a tile's edge, where in the whole picture there would be more picture. The
error that this makes falls off within a few latent pixels and ends exactly at the receptive field (the norms look at
one place only), which for the released decoder is 15 latent pixels. So tiles overlap, and of an overlap only the
middle is used: the tiles change over within ``RAMP`` latent pixels there, by a linear blend.

With an overlap of ``exact_overlap(config)`` every pixel that is used lies a whole receptive field inside its tile, and
the result is that of the whole picture. ``OVERLAP`` is half of that: at 7 latent pixels from an edge a decoder of
random weights, whose filters have no reason to prefer their centre, is off by about 1 of 255, at 8 by 0.2.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import SPATIAL_STRIDE, TEMPORAL_STRIDE, frames_of_latent
from ..progress import Progress, silent
from .turbo_decoder import CONTEXT, TurboDecoder, TurboVAEDConfig, plan_windows

OVERLAP = 16
"""Latent pixels (256 pixels) that neighbouring tiles share, by default."""
RAMP = 2
"""Latent pixels in the middle of an overlap within which one tile gives way to the next."""
TILE_STEP = 16
"""Latent pixels; tiles that are chosen by memory come in these steps, so that small changes of it change nothing."""
MEASURED = 3.2
"""Tensors of the largest layer that are alive at once."""
COPIES = 5
"""So many count as alive: kernels need room for their work."""


def receptive_field(config: TurboVAEDConfig) -> int:
    """How many latent pixels away something may be and still change a pixel; 15 for the released decoder."""
    # Every 3 x 3 convolution reaches one pixel, at the scale where it stands; a residual block has two.
    scale, reach, width = 1, 1.0 + 2 * config.mid_layers, config.mid_channels
    for stage in config.stages:
        if stage.channels != width:
            reach += 2 / scale
        if stage.doubles_space:
            scale *= 2
            reach += 1 / scale
        reach += 2 * stage.layers / scale
        width = stage.channels
    return math.ceil(reach + 1 / scale)


def exact_overlap(config: TurboVAEDConfig) -> int:
    """Latent pixels that tiles have to share for the result to be that of the whole picture; 32 as released."""
    return 2 * receptive_field(config) + RAMP


def plan_tiles(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """(start, stop) of the fewest tiles along one axis, none longer than ``tile``, evenly laid out, all in latents.

    Neighbours share at least ``overlap``. Raises InputError for tiles that are not longer than their overlap.
    """
    if length <= tile:
        return [(0, length)]
    if not 0 <= overlap < tile:
        raise InputError(f"tile: found {tile} latent pixels with an overlap of {overlap}, expected a larger tile.")
    count = math.ceil((length - overlap) / (tile - overlap))
    size = math.ceil((length + (count - 1) * overlap) / count)
    starts = [(length - size) * index // (count - 1) for index in range(count)]
    return [(start, start + size) for start in starts]


def decode_tiles(
    decoder: TurboDecoder,
    latent: Tensor,
    tile: tuple[int, int],
    overlap: int = OVERLAP,
    progress: Progress = silent,
) -> Iterator[Tensor]:
    """[B, 48, T, H, W] raw -> consecutive chunks [B, 3, f, 16H, 16W] about [-1, 1], as ``decode_windows`` gives.

    ``tile`` is (height, width) in latent pixels. One tile of one window is decoded at a time; of a chunk, its frames
    alone are held as a whole. ``progress`` counts tiles.
    """
    config = decoder.config
    rows, columns = (plan_tiles(latent.shape[axis], tile[axis - 3], overlap) for axis in (3, 4))
    windows = plan_windows(latent.shape[2], config.first_window, config.window)
    total = len(windows) * len(rows) * len(columns)
    done = 0
    for window in windows:
        chunk = Seam(axis=3)
        for top, bottom in rows:
            strip = Seam(axis=4)
            for left, right in columns:
                part = decoder.decode_window(latent[:, :, :, top:bottom, left:right], window)
                strip.add(part, left, latent.shape[4])
                done += 1
                progress(done, total)
            chunk.add(strip.result(), top, latent.shape[3])
        yield chunk.result()


class Seam:
    """Joins tiles along one axis as they come. A single tile is passed on as it is."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.joined: Tensor | None = None
        self.stop = 0

    def add(self, part: Tensor, start: int, length: int) -> None:
        """Adds the pixels of the tile that begins at latent pixel ``start`` of ``length``."""
        begin, size = start * SPATIAL_STRIDE, part.shape[self.axis]
        if self.joined is None and size == length * SPATIAL_STRIDE:
            self.joined = part
        elif self.joined is None:
            shape = [*part.shape]
            shape[self.axis] = length * SPATIAL_STRIDE
            self.joined = part.new_empty(shape)
            self.joined.narrow(self.axis, 0, size).copy_(part)
        else:
            shared = self.stop - begin
            ramp = min(RAMP * SPATIAL_STRIDE, shared)
            kept = (shared - ramp) // 2
            mixed = self.joined.narrow(self.axis, begin + kept, ramp)
            mixed.lerp_(part.narrow(self.axis, kept, ramp), self._weights(ramp, part))
            rest = part.narrow(self.axis, kept + ramp, size - kept - ramp)
            self.joined.narrow(self.axis, begin + kept + ramp, size - kept - ramp).copy_(rest)
        self.stop = begin + size

    def result(self) -> Tensor:
        """All tiles as one; the seam is empty afterwards, so that the caller alone decides how long they live."""
        joined, self.joined = self.joined, None
        assert joined is not None, "no tile was added"
        return joined

    def _weights(self, size: int, like: Tensor) -> Tensor:
        shape = [1] * like.ndim
        shape[self.axis] = size
        return ((torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size).to(like.dtype).view(shape)


def window_bytes(config: TurboVAEDConfig, height: int, width: int, frames: int, itemsize: int) -> int:
    """Bytes to decode a window of a clip of ``frames`` latents at ``height`` x ``width`` latent pixels, batch 1.

    The widest layer at the decoder's full size decides.
    """
    latents = max(config.first_window, config.window) + (2 * CONTEXT if frames > config.first_window else 0)
    return _layer_bytes(config, height, width, itemsize) * latents * COPIES


def _layer_bytes(config: TurboVAEDConfig, height: int, width: int, itemsize: int) -> int:
    """Bytes of the widest layer at the decoder's full size, for one latent frame of ``height`` x ``width``."""
    scale, widest = 1, 1
    for stage in config.stages:
        scale *= 2 if stage.doubles_space else 1
        if scale * config.patch_size == SPATIAL_STRIDE:
            widest = max(widest, stage.channels)
    return widest * TEMPORAL_STRIDE * height * width * scale**2 * itemsize


def least_bytes(config: TurboVAEDConfig, frames: int, height: int, width: int, itemsize: int) -> int:
    """Bytes without which no clip of ``frames`` x ``height`` x ``width`` latent pixels is decoded, batch 1.

    A window of the smallest tile, or the pixels of a window: as they are decoded, as float32 and as bytes.
    """
    tile = min(height, 2 * OVERLAP), min(width, 2 * OVERLAP)
    window = max(config.first_window, config.window)
    least = _layer_bytes(config, *tile, itemsize) * min(frames, window + CONTEXT) * MEASURED
    decoded = min(frames_of_latent(frames), window * TEMPORAL_STRIDE)
    return int(max(least, 3 * decoded * height * width * SPATIAL_STRIDE**2 * (itemsize + 5)))


def fitting_tile(
    height: int, width: int, budget: int, bytes_for: Callable[[int, int], int], overlap: int = OVERLAP
) -> tuple[int, int]:
    """The largest tile (height, width) in latent pixels whose ``bytes_for(height, width)`` are within ``budget``.

    The whole picture where it fits; never less than two overlaps a side, below which tiles would mostly be overlap.
    """
    least = 2 * overlap
    if bytes_for(height, width) <= budget:
        return height, width
    largest = max(height, width) // TILE_STEP * TILE_STEP
    sides = range(max(largest, least), least, -TILE_STEP)
    for side in sides:
        tile = min(height, side), min(width, side)
        if bytes_for(*tile) <= budget:
            return tile
    return min(height, least), min(width, least)
