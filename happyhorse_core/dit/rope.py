"""Rotary positions in three axes, as the released model computes them (float32 throughout).

A token at (t, h, w) of a grid is rotated by coordinate * scale * band for each axis and band. ``scale`` stretches a
grid onto a reference size: (ref - 1) / (size - 1). Height and width are counted from the grid's centre, time is not.
"""

import torch
from torch import Tensor


def frequency_bands(count: int) -> Tensor:
    """[count] float32: 10000^(-i / count)."""
    return 10000.0 ** -(torch.arange(count, dtype=torch.float32) / count)


def grid_angles(frames: int, height: int, width: int, bands: Tensor) -> Tensor:
    """[frames * height * width, 3 * bands]: angles of video tokens, whose reference is their own grid (scale 1)."""
    device = bands.device
    t = torch.arange(frames, dtype=torch.float32, device=device)
    h = torch.arange(height, dtype=torch.float32, device=device) - (height - 1) / 2
    w = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2
    axes = [axis.unsqueeze(-1) * bands for axis in (t, h, w)]
    shape = (frames, height, width, bands.shape[0])
    return torch.cat(
        [
            axes[0][:, None, None].expand(shape),
            axes[1][None, :, None].expand(shape),
            axes[2][None, None, :].expand(shape),
        ],
        dim=-1,
    ).reshape(frames * height * width, -1)


def line_angles(length: int, reference: int, start: int, bands: Tensor) -> Tensor:
    """[length, 3 * bands]: angles of tokens that stand on the time axis alone, counted from ``start``."""
    # A line of one token has no extent to stretch.
    scale = (reference - 1) / (length - 1) if length > 1 else 1.0
    t = torch.arange(start, start + length, dtype=torch.float32, device=bands.device)
    angles = t.unsqueeze(-1) * scale * bands
    return torch.cat([angles, angles.new_zeros(length, 2 * bands.shape[0])], dim=-1)
