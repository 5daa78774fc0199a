"""A whole soundtrack from latents, in chunks that fit in memory: 30 s at once would take gigabytes."""

import math

from torch import Tensor

from ..progress import Progress, silent
from .config import OobleckConfig
from .layers import DILATIONS, RESIDUAL_KERNEL
from .model import Oobleck

CHUNK = 128
"""Latents decoded at once; 5.1 s at the model's 25 a second."""
END_KERNEL = 7
"""Width of the decoder's first and last convolution."""


def receptive_field(config: OobleckConfig) -> int:
    """How many latents away something may be and still change a sample; 10 for the released decoder."""
    around = RESIDUAL_KERNEL // 2 * sum(DILATIONS)
    rate, reach = 1, float(END_KERNEL // 2)
    for stride in reversed(config.decoder_strides):
        # A transposed convolution twice as wide as its stride joins two neighbours.
        reach += 1 / rate
        rate *= stride
        reach += around / rate
    return math.ceil(reach + END_KERNEL // 2 / rate)


def decode_soundtrack(vae: Oobleck, latent: Tensor, progress: Progress = silent, chunk: int = CHUNK) -> Tensor:
    """[B, 64, A] -> [B, 2, 2048 A] at 51,200 Hz, about [-1, 1] but not clamped: what ``vae.decode`` gives.

    Each chunk is decoded with so many latents on either side that all its samples are those of the whole.
    ``progress`` counts chunks.
    """
    length, hop, context = latent.shape[-1], vae.config.samples_per_latent, receptive_field(vae.config)
    starts = range(0, length, chunk)
    waveform = latent.new_empty(*latent.shape[:-2], vae.config.audio_channels, length * hop)
    for done, start in enumerate(starts, start=1):
        before, stop = max(0, start - context), min(length, start + chunk)
        part = vae.decode(latent[..., before : stop + context])
        waveform[..., start * hop : stop * hop] = part[..., (start - before) * hop : (stop - before) * hop]
        progress(done, len(starts))
    return waveform
