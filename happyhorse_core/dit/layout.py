"""Where each token stands in the sequence and in space and time, worked out once per forward pass.

Sequence order: video tokens (time, then height, then width), audio, text. Batch items share one layout.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .config import COORDS_BASE, PATCH, TransformerConfig
from .parallel import Share, share_of
from .rope import grid_angles, line_angles


@dataclass(frozen=True)
class PackedLayout:
    """Spans of the packed sequence and its rotary angles.

    ``cos`` and ``sin`` are [S, 1, 3 * bands] float32, ready to broadcast over heads. Where the sequence is split over
    processes, ``share`` is the part of this one, and ``cos`` and ``sin`` are those of its tokens alone.
    """

    frames: int
    height: int
    width: int
    audio: int
    text: int
    cos: Tensor
    sin: Tensor
    share: Share | None = None

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def video(self) -> int:
        return self.frames * self.tokens_per_frame

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of video, audio and text that this process holds: all, unless the sequence is split."""
        return (self.video, self.audio, self.text) if self.share is None else self.share.lengths


def build_layout(
    config: TransformerConfig,
    video: Tensor,
    audio: Tensor,
    text: Tensor,
    bands: Tensor,
    group: "dist.ProcessGroup | None" = None,
) -> PackedLayout:
    """Layout of one call: video [B, C, T, H, W] in latent pixels, audio [B, C, A], text [B, L, C].

    With a ``group`` its processes share the sequence; raises InputError if they can't share the heads.
    """
    frames, height, width = video.shape[2], video.shape[3] // PATCH, video.shape[4] // PATCH
    audio_tokens, text_tokens = audio.shape[2], text.shape[1]
    if config.coords_style == COORDS_BASE:
        audio_ref, text_ref, text_start = (audio_tokens - 1) // 4 + 1, 1, -text_tokens
    else:
        audio_ref, text_ref, text_start = frames, 2, 0
    angles = torch.cat(
        [
            grid_angles(frames, height, width, bands),
            line_angles(audio_tokens, audio_ref, 0, bands),
            line_angles(text_tokens, text_ref, text_start, bands),
        ]
    ).unsqueeze(1)
    share = None
    if group is not None:
        share = share_of(config, (frames * height * width, audio_tokens, text_tokens), group)
        angles = angles[share.tokens]
    return PackedLayout(frames, height, width, audio_tokens, text_tokens, angles.cos(), angles.sin(), share)


def patchify(video: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, T * H/2 * W/2, C * 4], the channel slowest within a token."""
    b, c, t, h, w = video.shape
    patches = video.reshape(b, c, t, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t * (h // PATCH) * (w // PATCH), c * PATCH * PATCH)


def unpatchify(tokens: Tensor, layout: PackedLayout) -> Tensor:
    """[B, T * H/2 * W/2, 4 * C] with the channel fastest within a token -> [B, C, T, H, W]."""
    b, _, size = tokens.shape
    c = size // (PATCH * PATCH)
    patches = tokens.reshape(b, layout.frames, layout.height, layout.width, PATCH, PATCH, c)
    return patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(
        b, c, layout.frames, layout.height * PATCH, layout.width * PATCH
    )
