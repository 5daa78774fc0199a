"""NVIDIA's 4-bit floating point, in the form in which ComfyUI keeps matrices and cuBLAS multiplies them.

A matrix is filled up with zeros to multiples of 16 rows and 16 columns. Then it becomes

| tensor | dtype and shape | content |
| --- | --- | --- |
| numbers | uint8 [rows, columns / 2] | two e2m1 numbers a byte, the left one in its upper half |
| block scales | float8_e4m3fn [rows, columns / 16], up to multiples of [128, 4] | one for each 16 numbers of a row |
| tensor scale | float32 [] | one for all |

and a number is its e2m1 value times its block's scale times the tensor scale. e2m1 is one bit of sign, two of exponent
and one of fraction (OCP Microscaling Formats 1.0). Block scales lie in tiles of 128 x 4, one tile after another from
left to right and then down; in a tile that of row 32 a + b and column c is byte 16 b + 4 a + c (cuBLAS, "Block scaling
factors layout"). So each 128 rows of a matrix have a span of their own in both tensors.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import FLOAT8, rounded_up

BLOCK = 16
TILE_ROWS, TILE_COLUMNS = 128, 4
SCALE_DTYPE = FLOAT8
MAX_E2M1 = 6.0
LARGEST = MAX_E2M1 * torch.finfo(SCALE_DTYPE).max
"""The largest number that can be written with a tensor scale of one."""

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, MAX_E2M1)
"""Of the codes 0 to 7; with 8 added they are negative."""
_SIGN = 8


def padded(shape: tuple[int, ...]) -> tuple[int, int]:
    """A matrix's shape with the zeros that fill it up."""
    rows, columns = shape
    return rounded_up(rows), rounded_up(columns)


def stored_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of the numbers and of the block scales of a matrix of ``shape``."""
    rows, columns = padded(shape)
    return (rows, columns // 2), (rounded_up(rows, TILE_ROWS), rounded_up(columns // BLOCK, TILE_COLUMNS))


def quantise(weight: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Finite numbers [rows, columns] of at most LARGEST x ``scale`` -> 128 rows at a time of both tensors, in order."""
    columns = rounded_up(weight.shape[1])
    for group in weight.split(TILE_ROWS):
        rows = rounded_up(len(group))
        numbers = F.pad(group.float(), (0, columns - group.shape[1], 0, rows - len(group)))
        numbers = numbers.unflatten(1, (-1, BLOCK))
        scales = (numbers.abs().amax(-1) / MAX_E2M1 / scale).clamp_(max=torch.finfo(SCALE_DTYPE).max).to(SCALE_DTYPE)
        factors = (scales.float() * scale).unsqueeze(-1)
        # A block so small that its scale is rounded to zero becomes zeros.
        numbers = torch.where(factors == 0, 0.0, numbers / factors)
        codes = _codes(numbers).flatten(1)
        yield codes[:, ::2] << 4 | codes[:, 1::2], _tiled(scales)


def dequantise(numbers: Tensor, block_scales: Tensor, scale: Tensor, shape: tuple[int, int]) -> Tensor:
    """The upper left part [rows, columns] of a stored matrix, float32; ``shape`` is at most that of all of it."""
    rows, columns = shape
    values = torch.tensor(_VALUES + tuple(-value for value in _VALUES))
    block_scales = block_scales.view(SCALE_DTYPE)  # some programs write its bytes as uint8
    out = torch.empty(shape)
    for start in range(0, rows, TILE_ROWS):
        packed = numbers[start : start + TILE_ROWS]
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1)
        tile = _untiled(block_scales[start : start + TILE_ROWS])[: len(packed), : codes.shape[1] // BLOCK]
        factors = (tile.float() * scale.float()).unsqueeze(-1)
        part = (values[codes.int()].unflatten(1, (-1, BLOCK)) * factors).flatten(1)
        out[start : start + TILE_ROWS] = part[: rows - start, :columns]
    return out


def _codes(numbers: Tensor) -> Tensor:
    """The e2m1 codes, uint8, of numbers: each of the nearest value, of two as near the one with an even code."""
    magnitudes = numbers.abs()
    codes = numbers.signbit().to(torch.uint8) * _SIGN
    for code, (below, above) in enumerate(pairwise(_VALUES)):
        middle = (below + above) / 2
        codes += magnitudes >= middle if code % 2 else magnitudes > middle
    return codes


def _tiled(scales: Tensor) -> Tensor:
    """Up to 128 rows of block scales, filled up with zeros, in the order of their tiles; shape [128, columns]."""
    rows, columns = scales.shape
    # Not every kernel for padding knows float8, so its bytes are moved.
    filled = F.pad(scales.view(torch.uint8), (0, rounded_up(columns, TILE_COLUMNS) - columns, 0, TILE_ROWS - rows))
    tiles = filled.view(4, TILE_ROWS // 4, -1, TILE_COLUMNS).permute(2, 1, 0, 3)
    return tiles.reshape(filled.shape).view(SCALE_DTYPE)


def _untiled(scales: Tensor) -> Tensor:
    """What ``_tiled`` was given, with the zeros."""
    tiles = scales.view(torch.uint8).reshape(-1, TILE_ROWS // 4, 4, TILE_COLUMNS).permute(2, 1, 0, 3)
    return tiles.reshape(scales.shape).view(SCALE_DTYPE)
