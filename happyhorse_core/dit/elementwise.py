"""The float32 work between the matmuls, a few tokens at a time.

Norms, rotary positions, gates and activations are float32 while what goes in and out is mostly bfloat16. Done on a
whole sequence, each would write several float32 copies of it to memory and read them again; done in blocks, the copies
stay in the cache of a processor and small on an accelerator. The results are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

EPS = 1e-6
GATE_SLOPE = 1.702
CLAMP = 7.0

CACHED_VALUES = 1 << 19
"""Float32 values of a block on a CPU: 2 MiB, about what one core has as second-level cache."""
DEVICE_VALUES = 1 << 24
"""On an accelerator: 64 MiB, large enough to hide what it takes to start a kernel."""


def blocks(x: Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """(expert, tokens) of consecutive blocks along axis 1 that lie within one modality each; see ``whole``."""
    per_token = x[:, :1].numel()
    rows = max(1, (CACHED_VALUES if x.device.type == "cpu" else DEVICE_VALUES) // max(1, per_token))
    for expert, (start, end) in enumerate(pairwise(accumulate(lengths, initial=0))):
        for first in (start,) if whole(x) else range(start, end, rows):
            yield expert, slice(first, end if whole(x) else min(first + rows, end))


def whole(x: Tensor) -> bool:
    """Whether a modality is one block, however long.

    Compiled code makes no float32 copies, and a loop would tie it to this number of tokens, so that every prompt of
    another length would be compiled anew. Where gradients are kept so are the copies, and a block's gradient is a
    tensor as long as the sequence, empty but for the block.
    """
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad)


def in_blocks(
    x: Tensor, lengths: Sequence[int], shape: Sequence[int], dtype: torch.dtype, work: Callable[[int, slice], Tensor]
) -> Tensor:
    """[B, S, *shape] in ``dtype``, of which ``work(expert, tokens)`` makes one block of x."""
    if whole(x):
        parts = [work(expert, tokens).to(dtype) for expert, tokens in blocks(x, lengths)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    out = torch.empty(*x.shape[:2], *shape, dtype=dtype, device=x.device)
    for expert, tokens in blocks(x, lengths):
        out[:, tokens] = work(expert, tokens)
    return out


def normalised(x: Tensor, gain: Tensor) -> Tensor:
    """[..., dim] in any dtype -> float32: x / rms(x) over the last axis, times ``gain`` [dim]."""
    x = x.float()
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
    return x * torch.rsqrt(mean_square + EPS) * gain


def rms_norm(x: Tensor, gains: Sequence[Tensor], lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """[B, S, dim] -> the same in ``dtype``, each modality with the gain [dim] of its own."""
    return in_blocks(x, lengths, x.shape[2:], dtype, lambda expert, tokens: normalised(x[:, tokens], gains[expert]))


def rotated_heads(
    x: Tensor, gains: Sequence[Tensor], lengths: Sequence[int], cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """Norms every head and rotates its first three quarters, in half-split pairs; the last quarter keeps its place.

    x [B, S, heads, head_dim] -> the same in ``dtype``; gains [head_dim] per modality; cos and sin
    [S, 1, 3/8 * head_dim]. Channel j pairs with channel j + 3/8 * head_dim.
    """
    half = cos.shape[-1]

    def rotate(expert: int, tokens: slice) -> Tensor:
        c, s = cos[tokens], sin[tokens]
        first, second, still = normalised(x[:, tokens], gains[expert]).split((half, half, x.shape[-1] - 2 * half), -1)
        return torch.cat((first * c - second * s, second * c + first * s, still), -1)

    return in_blocks(x, lengths, x.shape[2:], dtype, rotate)


def gated_heads(x: Tensor, gate: Tensor, lengths: Sequence[int]) -> Tensor:
    """x [B, S, heads, head_dim] times the sigmoid of gate [B, S, heads], in float32 -> [B, S, heads * head_dim]."""

    def scale(expert: int, tokens: slice) -> Tensor:
        return (x[:, tokens] * torch.sigmoid(gate[:, tokens].float()).unsqueeze(-1)).flatten(2)

    return in_blocks(x, lengths, (x.shape[2] * x.shape[3],), x.dtype, scale)


def activated(
    x: Tensor, activation: Callable[[Tensor], Tensor], width: int, lengths: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """x [B, S, n] -> [B, S, width] in ``dtype``; ``activation`` gets and gives float32."""
    return in_blocks(x, lengths, (width,), dtype, lambda expert, tokens: activation(x[:, tokens].float()))


def gelu7(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) with x at most 7."""
    x = x.clamp(max=CLAMP)
    return x * torch.sigmoid(GATE_SLOPE * x)


def swiglu7(x: Tensor) -> Tensor:
    """[..., 2 * n] -> [..., n]: even channels gate the odd ones; gate at most 7, the other within 7, plus one."""
    gate, linear = x.unflatten(-1, (-1, 2)).unbind(-1)
    gate = gate.clamp(max=CLAMP)
    return gate * torch.sigmoid(GATE_SLOPE * gate) * (linear.clamp(-CLAMP, CLAMP) + 1)
