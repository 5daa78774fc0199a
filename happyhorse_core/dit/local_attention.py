"""Attention in which a video frame sees only the frames near it, by slices of the keys and without a mask."""

from itertools import groupby

import torch
from torch import Tensor

from ..ops import Attend, Options
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
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    radius: int,
    options: Options,
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
        keys, values = (torch.cat([x[:, :, low * size : high * size], x[:, :, video:]], dim=2) for x in (k, v))
        parts.append(attend(q[:, :, first * size : end * size], keys, values, options))
    parts.append(attend(q[:, :, video:], k, v, options))
    return torch.cat(parts, dim=1)
