"""A whole soundtrack to latents, in windows that the autoencoder can hold in memory."""

import torch
from torch import Tensor

from ..geometry import MODEL_SAMPLE_RATE
from ..progress import Progress, silent
from .model import Oobleck

WINDOW_SECONDS = 29


def encode_soundtrack(vae: Oobleck, waveform: Tensor, progress: Progress = silent) -> Tensor:
    """[B, 2, N] at 51,200 Hz -> [B, 64, ceil(N / 2048)].

    Up to 29 s are encoded at once, more in windows of 29 s of which each starts in the middle of the one before; where
    two windows overlap, their latents are cross-faded linearly. Windows start on whole latents: half of 29 s lies
    between two, and rounding only the place of the latents, not of the samples, would shift the later windows by
    20 ms. ``progress`` counts windows.
    """
    hop = vae.config.samples_per_latent
    window = WINDOW_SECONDS * MODEL_SAMPLE_RATE // hop
    overlap = window // 2
    starts = window_starts(-(-waveform.shape[-1] // hop), window, overlap)
    latent = vae.encode(waveform[..., : window * hop])
    progress(1, len(starts))
    for done, start in enumerate(starts[1:], start=2):
        part = vae.encode(waveform[..., start * hop : (start + window) * hop])
        latent = crossfade(latent, part, overlap)
        progress(done, len(starts))
    return latent


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows of ``window`` latents start so that they cover ``length`` and each overlaps the next."""
    step = window - overlap
    return list(range(0, max(0, length - window) + step, step))


def crossfade(before: Tensor, after: Tensor, overlap: int) -> Tensor:
    """Joins [..., X] and [..., Y] to [..., X + Y - overlap], fading from one to the other over ``overlap`` latents."""
    weight = torch.arange(overlap, device=after.device, dtype=after.dtype) / overlap
    mixed = torch.lerp(before[..., before.shape[-1] - overlap :], after[..., :overlap], weight)
    return torch.cat([before[..., : before.shape[-1] - overlap], mixed, after[..., overlap:]], dim=-1)
