"""The start of the super-resolution stage: the first stage's latents, enlarged and made noisy again.

Source: the released pipeline. The noise formula is that of a variance-preserving diffusion, not of the flow that the
steps afterwards follow; the full schedule of five steps runs all the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError

STEPS = 5
NOISE_INDEX = 220
AUDIO_NOISE = 0.7
TABLE_LENGTH = 1000


def zero_snr_table() -> Tensor:
    """[1000] float32, falling from almost 1 to 0: how much of the signal is left at each entry.

    sqrt of the cumulative product of 1 - beta, betas a squared line from sqrt(0.00085) to sqrt(0.012), rescaled to end
    at zero signal (Lin et al., arXiv 2305.08891, algorithm 1).
    """
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, TABLE_LENGTH, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0).float().sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    return (signal - last) * (first / (first - last))


def enlarge(video: Tensor, height: int, width: int) -> Tensor:
    """Video latent [B, 48, T, H, W] -> [B, 48, T, height, width], trilinear with aligned corners, in latent pixels.

    Raises InputError for a target smaller than the source.
    """
    if height < video.shape[3] or width < video.shape[4]:
        raise InputError(
            f"target size: found {width * 16} x {height * 16} pixels, expected at least the source's "
            f"{video.shape[4] * 16} x {video.shape[3] * 16}."
        )
    return F.interpolate(video, size=(video.shape[2], height, width), mode="trilinear", align_corners=True)


def renoise(video: Tensor, noise: Tensor, signal: float | None = None) -> Tensor:
    """signal * video + sqrt(1 - signal^2) * noise; ``signal`` is 0.8389 of the released table unless given."""
    signal = float(zero_snr_table()[NOISE_INDEX]) if signal is None else signal
    return signal * video + (1 - signal**2) ** 0.5 * noise


def mix_audio(audio: Tensor, noise: Tensor, amount: float = AUDIO_NOISE) -> Tensor:
    """Audio latent [B, 64, A] as the super-resolution model hears it: 0.7 noise and 0.3 sound. It is never stepped."""
    return amount * noise + (1 - amount) * audio
