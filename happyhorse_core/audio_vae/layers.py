"""The parts that the audio encoder and decoder share. Everything is [B, channels, time]."""

import torch
from torch import Tensor, nn

from ..ops import Device, DType, LayerArguments, ModuleArguments, Operations

DILATIONS = (1, 3, 9)
RESIDUAL_KERNEL = 7
SNAKE_EPSILON = 1e-9
"""Keeps the division finite where a trained beta has underflowed."""


class Snake(nn.Module):
    """x + sin(a x)^2 / b with a and b per channel, both stored as logarithms (SnakeBeta of BigVGAN)."""

    def __init__(self, channels: int, *, dtype: DType = None, device: Device = None) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels, dtype=dtype, device=device))
        self.beta = nn.Parameter(torch.empty(channels, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        # exp in float32: half precision logarithms are fine, half precision results are not.
        frequency = self.alpha.float().exp().to(x.dtype)[:, None]
        strength = (1 / (self.beta.float().exp() + SNAKE_EPSILON)).to(x.dtype)[:, None]
        return x + strength * torch.sin(x * frequency).square()


class ResidualUnit(nn.Module):
    """A dilated convolution and a pointwise one around the skip; the length is kept."""

    def __init__(self, channels: int, dilation: int, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        factory = LayerArguments(dtype=dtype, device=device)
        self.layers = nn.Sequential(
            Snake(channels, **factory),
            operations.Conv1d(
                channels,
                channels,
                RESIDUAL_KERNEL,
                dilation=dilation,
                padding=dilation * (RESIDUAL_KERNEL // 2),
                **factory,
            ),
            Snake(channels, **factory),
            operations.Conv1d(channels, channels, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def residual_units(channels: int, *, operations: Operations, dtype: DType, device: Device) -> list[ResidualUnit]:
    module = ModuleArguments(operations=operations, dtype=dtype, device=device)
    return [ResidualUnit(channels, dilation, **module) for dilation in DILATIONS]


class EncoderBlock(nn.Module):
    """[B, in, N] -> [B, out, N / stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__()
        factory = LayerArguments(dtype=dtype, device=device)
        self.layers = nn.Sequential(
            *residual_units(in_channels, operations=operations, **factory),
            Snake(in_channels, **factory),
            operations.Conv1d(
                in_channels, out_channels, 2 * stride, stride=stride, padding=(stride + 1) // 2, **factory
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderBlock(nn.Module):
    """[B, in, N] -> [B, out, N * stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__()
        factory = LayerArguments(dtype=dtype, device=device)
        self.layers = nn.Sequential(
            Snake(in_channels, **factory),
            operations.ConvTranspose1d(
                in_channels, out_channels, 2 * stride, stride=stride, padding=(stride + 1) // 2, **factory
            ),
            *residual_units(out_channels, operations=operations, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
