"""How far a sound is from another: its waveform, and its spectra through several windows, on left, right and both."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WINDOWS = (2048, 512, 128)
"""Samples of the windows: long ones tell pitches apart, short ones onsets."""
FLOOR = 3e-4
"""Amplitude under which differences of loudness stop to matter, -70 dB."""
WAVE_FLOOR = 0.01
"""Effective value that every sound has at least where errors are taken relative to it, -40 dB."""
QUIET_PART = 0.01
"""Part of the energy of all four channels that each has at least where the error of its magnitudes is weighed."""
TAIL = 3.0
"""Size of a latent's value from which it counts as an outlier."""


def sound_loss(made: Tensor, wanted: Tensor, windows: Sequence[int] = WINDOWS) -> dict[str, Tensor]:
    """[B, 2, N] twice -> ``wave``, ``convergence`` and ``loudness``, each one number and (almost) 0 for equal sounds.

    Each is the mean over left, right, mid and side, so that a sound in the wrong place costs as much as a wrong one.
    ``wave`` is the error of the waveform relative to the sound, the mean of absolute values and of effective values
    of the two; ``convergence`` the norm of the error of the magnitudes relative to that of the magnitudes and
    ``loudness`` the mean error of their logarithms (both of Yamamoto et al., arXiv 1910.11480, over several windows).
    """
    error, sound = with_mid_and_side(made - wanted), with_mid_and_side(wanted)
    absolute = error.abs().mean((1, 2)) / (sound.abs().mean((1, 2)) + WAVE_FLOOR)
    # The root's slope is infinite at zero.
    effective = error.square().mean((1, 2)) / (sound.square().mean((1, 2)) + WAVE_FLOOR**2) + 1e-6
    wave = (absolute + effective.sqrt()).mean() / 2
    convergence, loudness = [], []
    for window in windows:
        a, b = magnitudes(made, window), magnitudes(wanted, window)
        wrong, energy = (a - b).square().sum((0, 2, 3)), b.square().sum((0, 2, 3))
        convergence.append((wrong / (energy + QUIET_PART * energy.sum() + 1e-3) + 1e-12).sqrt().mean())
        loudness.append(((a + FLOOR).log() - (b + FLOOR).log()).abs().mean())
    return {"wave": wave, "convergence": torch.stack(convergence).mean(), "loudness": torch.stack(loudness).mean()}


def with_mid_and_side(x: Tensor) -> Tensor:
    """[B, 2, ...] left and right -> [B, 4, ...] with mid and side after them, at the same power."""
    left, right = x[:, 0], x[:, 1]
    return torch.stack([left, right, (left + right) / math.sqrt(2), (left - right) / math.sqrt(2)], 1)


def magnitudes(waveform: Tensor, window: int) -> Tensor:
    """[B, 2, N] -> [B, 4, bins, frames]: amplitudes of sines in left, right, mid and side, two frames a window."""
    shape = torch.hann_window(window, device=waveform.device, dtype=waveform.dtype)
    spectrum = torch.stft(
        waveform.flatten(0, 1), window, window // 2, window=shape, center=True, pad_mode="constant", return_complex=True
    )
    parts = torch.view_as_real(spectrum) / (window / 4)
    power = with_mid_and_side(parts.unflatten(0, waveform.shape[:2])).square().sum(-1)
    return (power + 1e-12).sqrt()


def latent_pull(latent: Tensor) -> Tensor:
    """[B, C, A] -> one number: how far each channel is from mean 0 and deviation 1, and how far values stick out."""
    values = latent.float().transpose(0, 1).flatten(1)
    mean, deviation = values.mean(1), (values.var(1) + 1e-6).sqrt()
    outside = (values.abs() - TAIL).relu().square().mean()
    return mean.square().mean() + (deviation - 1).square().mean() + 10 * outside
