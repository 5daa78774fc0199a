"""Oobleck: the convolutional autoencoder of Stable Audio Open, encoder and decoder.

Waveforms are [B, audio_channels, N] in [-1, 1], latents [B, latent_channels, N / samples_per_latent]. Names equal those
of the released checkpoint without its prefix, except that the weight norm (``weight_g``, ``weight_v``) is folded into
``weight`` when a file is loaded.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import Device, DType, LayerArguments, Operations
from .config import OobleckConfig
from .layers import DecoderBlock, EncoderBlock, Snake


class OobleckEncoder(nn.Module):
    """[B, audio_channels, N] -> [B, 2 * latent_channels, N / samples_per_latent]: mean and scale, stacked."""

    def __init__(self, config: OobleckConfig, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        factory = LayerArguments(dtype=dtype, device=device)
        widths = config.encoder_widths
        blocks = [
            EncoderBlock(*sizes, operations=operations, **factory)
            for sizes in zip(widths[:-1], widths[1:], config.encoder_strides, strict=True)
        ]
        self.layers = nn.Sequential(
            operations.Conv1d(config.audio_channels, widths[0], 7, padding=3, **factory),
            *blocks,
            Snake(widths[-1], **factory),
            operations.Conv1d(widths[-1], 2 * config.latent_channels, 3, padding=1, **factory),
        )

    def forward(self, waveform: Tensor) -> Tensor:
        return self.layers(waveform)


class OobleckDecoder(nn.Module):
    """[B, latent_channels, A] -> [B, audio_channels, A * samples_per_latent], not limited to [-1, 1]."""

    def __init__(self, config: OobleckConfig, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        factory = LayerArguments(dtype=dtype, device=device)
        widths = config.decoder_widths[::-1]
        blocks = [
            DecoderBlock(*sizes, operations=operations, **factory)
            for sizes in zip(widths[:-1], widths[1:], config.decoder_strides[::-1], strict=True)
        ]
        self.layers = nn.Sequential(
            operations.Conv1d(config.latent_channels, widths[0], 7, padding=3, **factory),
            *blocks,
            Snake(widths[-1], **factory),
            operations.Conv1d(widths[-1], config.audio_channels, 7, padding=3, bias=False, **factory),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


class Oobleck(nn.Module):
    """Encoder and decoder. Computes in the dtype of its input; float32 is what the released model runs it in."""

    def __init__(
        self, config: OobleckConfig, *, operations: Operations, dtype: DType = None, device: Device = None
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = OobleckEncoder(config, operations=operations, dtype=dtype, device=device)
        self.decoder = OobleckDecoder(config, operations=operations, dtype=dtype, device=device)

    def encode_distribution(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2, N] -> mean and scale, each [B, 64, ceil(N / 2048)]; the end is padded with silence to a whole latent.

        The standard deviation that the bottleneck was trained with is softplus(scale) + 1e-4.
        """
        padding = -waveform.shape[-1] % self.config.samples_per_latent
        mean, scale = self.encoder(F.pad(waveform, (0, padding))).chunk(2, dim=1)
        return mean, scale

    def encode(self, waveform: Tensor) -> Tensor:
        """[B, 2, N] at 51,200 Hz -> [B, 64, ceil(N / 2048)]: the mean, so that the same sound gives the same latent."""
        return self.encode_distribution(waveform)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """[B, 64, A] -> [B, 2, 2048 * A] at 51,200 Hz, about [-1, 1] but not clamped."""
        return self.decoder(latent)
