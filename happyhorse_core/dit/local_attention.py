"""Attention in which a video frame sees only the frames near it, by slices of the keys and without a mask."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .layout import PackedLayout


def frame_groups(frames: int, radius: int) -> list[tuple[int, int, int, int]]:
    """(first, end, window first, window end) of neighbouring frames that see the same window, in order."""
    windows = [(max(0, i - radius), min(frames, i + radius + 1)) for i in range(frames)]
    groups = []
    first = 0
    for (low, high), members in groupby(windows):
        end = first + len(list(members))
        groups.append((first, end, low, high))
        first = end
    return groups


def local_attention(
    attend: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    radius: int,
    options: dict[str, Any],
) -> Tensor:
    """Video tokens of frame i see frames i - radius to i + radius and all audio and text; audio and text see all.

    q [B, Hq, S, D], k and v [B, Hkv, S, D] -> [B, S, Hq * D]. Source: the block ranges of the released 1080p model.
    """
    groups = frame_groups(layout.frames, radius)
    if len(groups) == 1:
        return attend(q, k, v, options)
    size, video = layout.tokens_per_frame, layout.video
    parts = []
    for first, end, low, high in groups:
        near = [torch.cat([x[:, :, low * size : high * size], x[:, :, video:]], dim=2) for x in (k, v)]
        parts.append(attend(q[:, :, first * size : end * size], *near, options))
    parts.append(attend(q[:, :, video:], k, v, options))
    return torch.cat(parts, dim=1)
