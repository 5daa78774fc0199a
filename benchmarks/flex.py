"""Local attention by FlexAttention, to be timed beside the core's slices: one call with a block mask."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from happyhorse_core.dit.layout import PackedLayout


def block_mask(layout: PackedLayout, radius: int, device: torch.device) -> BlockMask:
    """Which blocks of tokens see each other; made once for a size."""
    size, video = layout.tokens_per_frame, layout.video
    tokens = video + layout.audio + layout.text

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query // size - key // size).abs() <= radius
        return (query >= video) | (key >= video) | near

    # Not compiled, it would write the whole mask: 4 GiB for a clip at 1920x1088.
    return create_block_mask(sees, None, None, tokens, tokens, device=device, _compile=device.type == "cuda")


def flex_local(layout: PackedLayout, radius: int, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What ``local_attention`` computes, [B, Hq, S, D] and twice [B, Hkv, S, D] -> [B, S, Hq * D]."""
    mask = block_mask(layout, radius, device)
    # On a CPU as it is, slow and without a compiler: to be tested.
    attend = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2).flatten(2)

    return run
