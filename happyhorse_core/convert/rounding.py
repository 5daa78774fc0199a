"""Rounding a tensor to the dtype that it is written in, a block at a time.

Plain float8 keeps values as they are and drops digits. Scaled float8 first divides by a scale that brings the largest
value near the largest that float8 holds: nothing overflows, and small weights stay out of the range where float8 has
few digits or none. Scales are powers of two. Multiplying by one is exact in every dtype, so ComfyUI, which multiplies
in bfloat16, and this package, which does in float32, get the same weights; any other scale would be rounded itself and
shift a whole layer. For nvfp4 the tensor's scale is one too: times a block's scale and a number it is exact as well.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..weights.formats import FLOAT8

BLOCK = 2**20
"""Numbers that are worked on at once: 4 MiB of float32."""


def blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Any shape -> its numbers in order, in spans of at most BLOCK."""
    yield from tensor.contiguous().flatten().split(BLOCK)


def largest(tensor: Tensor) -> float:
    """The largest magnitude in a tensor of floating-point numbers; inf where one is infinite or NaN."""
    found = [0.0]
    for block in filter(Tensor.numel, blocks(tensor)):
        found += map(float, torch.aminmax(block.float() if block.dtype.itemsize < 2 else block))
    return max(map(abs, found)) if all(map(math.isfinite, found)) else math.inf


def scale_for(magnitude: float, most: float = torch.finfo(FLOAT8).max) -> float:
    """The smallest power of two by which numbers up to ``magnitude`` are at most ``most`` once divided."""
    if magnitude == 0.0:
        return 1.0
    fraction, exponent = math.frexp(magnitude / most)
    # Within the exponents of bfloat16, of which float32 has the same.
    return 2.0 ** max(exponent - (fraction == 0.5), -126)


def rounded(tensor: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Iterator[Tensor]:
    """The numbers of ``tensor`` divided by ``scale``, in order and in blocks of ``dtype``."""
    for block in blocks(tensor):
        if scale != 1.0:
            block = block.to(torch.float32) / scale
        yield block.to(dtype)


def row_scales(scales: list[float], rows: int) -> Tensor:
    """One scale for each row, [rows, 1] float32, of experts stacked along the rows."""
    return torch.tensor(scales, dtype=torch.float32).repeat_interleave(rows // len(scales)).unsqueeze(1)
