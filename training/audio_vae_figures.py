"""How well an autoencoder keeps the world's sounds, in figures, per kind of sound."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from happyhorse_core.audio_vae.decode import decode_soundtrack
from happyhorse_core.audio_vae.encode import encode_soundtrack
from happyhorse_core.audio_vae.model import Oobleck
from happyhorse_core.geometry import FRAME_RATE, MODEL_SAMPLE_RATE

from .audio_vae_sounds import KINDS, sample_sound
from .judge.sounds import find_clicks, levels, loudness, side

FRAMES = 51
LOUD = 0.01
"""Effective value of a frame under which its place is not asked for."""
QUIET = 1e-4
"""Effective value under which a frame of the original is silent."""
LOWEST_PITCH = 50.0

Waves = NDArray[np.float32]


def figures_on_fresh_sounds(
    vae: Oobleck, seed: int, noises: Sequence[float] = (0.0,), per_kind: int = 30
) -> Iterator[str]:
    """Lines to print: one for each kind of sound and each deviation of noise on the latents, then the latents."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    latents = []
    for kind in KINDS:
        wanted = np.stack([sample_sound(rng, kind, held_out=None) for _ in range(per_kind)])
        with torch.no_grad():
            latent = encode_soundtrack(vae, torch.from_numpy(wanted))
            latents.append(latent)
            for noise in noises:
                noisy = latent + noise * torch.randn(latent.shape, generator=generator)
                made = decode_soundtrack(vae, noisy).numpy()
                line = figures_line(made, wanted, clicks=kind == "bouncing")
                yield f"{kind:14} noise {noise:4.2f}: {line}"
    yield latent_line(torch.cat(latents))


def figures_line(made: Waves, wanted: Waves, *, clicks: bool = False) -> str:
    """The means (worst in brackets) of ``figures`` over pairs of sounds [N, 2, samples]."""
    rows = [figures(a, b, clicks=clicks) for a, b in zip(made, wanted, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    parts = []
    for name in names:
        values = np.array([row[name] for row in rows if name in row])
        worst = values.min() if name in ("r", "snr dB") else values.max()
        parts.append(f"{name} {values.mean():.3g} ({worst:.3g})")
    return ", ".join(parts)


def figures(made: Waves, wanted: Waves, *, clicks: bool = False) -> dict[str, float]:
    """Of one sound [2, samples] and its original, which consists of clicks or not.

    ``r`` correlates the loudness per frame (where it varies), ``level dB`` is the error of the overall loudness,
    ``place`` the mean error of side (-1 to 1), ``click ms`` that of onsets (with ``clicks off``, how many more or
    fewer), ``pitch %`` that of the strongest frequency, ``silence dB`` the effective value where the original is
    silent, ``lsd dB`` the log-spectral distance above -60 dB, ``snr dB`` waveform against error.
    """
    level, true_level = levels(made, MODEL_SAMPLE_RATE, FRAMES), levels(wanted, MODEL_SAMPLE_RATE, FRAMES)
    loud, true_loud = loudness(level), loudness(true_level)
    found = {}
    if true_loud.std() > 0.02 * true_loud.mean():
        found["r"] = float(np.corrcoef(loud, true_loud)[0, 1])
    found["level dB"] = abs(20 * float(np.log10(np.sqrt(np.mean(loud**2)) / np.sqrt(np.mean(true_loud**2)))))
    heard = true_loud > LOUD
    found["place"] = float(np.nanmean(np.abs(side(level) - side(true_level))[heard]))
    if clicks:
        onsets, true_onsets = find_clicks(made, MODEL_SAMPLE_RATE), find_clicks(wanted, MODEL_SAMPLE_RATE)
        found["clicks off"] = float(abs(len(onsets) - len(true_onsets)))
        if onsets and true_onsets:
            found["click ms"] = max(1000 * min(abs(true - onset) for onset in onsets) for true in true_onsets)
    pitch, true_pitch = strongest_frequency(made), strongest_frequency(wanted)
    found["pitch %"] = 100 * abs(pitch / true_pitch - 1)
    silent = true_loud < QUIET
    # Next to a sound a frame is not asked to be silent.
    silent &= np.roll(silent, 1) & np.roll(silent, -1)
    if silent.any():
        found["silence dB"] = 20 * float(np.log10(np.sqrt(np.mean(loud[silent] ** 2)) + 1e-9))
    found["lsd dB"] = log_spectral_distance(made, wanted)
    found["snr dB"] = 10 * float(np.log10(np.mean(wanted**2) / (np.mean((made - wanted) ** 2) + 1e-15)))
    return found


def strongest_frequency(waveform: Waves) -> float:
    """In Hz, of both channels together, over the whole sound."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(waveform.shape[1]))).sum(0)
    frequency = np.fft.rfftfreq(waveform.shape[1], 1 / MODEL_SAMPLE_RATE)
    spectrum[frequency < LOWEST_PITCH] = 0
    return float(frequency[spectrum.argmax()])


def log_spectral_distance(made: Waves, wanted: Waves, window: int = MODEL_SAMPLE_RATE // FRAME_RATE) -> float:
    """In dB: the root mean square over frequencies of the difference of levels, meant over time, ends at -60 dB."""

    def spectra(waveform: Waves) -> Tensor:
        shape = torch.hann_window(window)
        spectrum = torch.stft(torch.from_numpy(waveform.copy()), window, window // 2, window=shape, return_complex=True)
        return 20 * (spectrum.abs() / (window / 4)).clamp(min=1e-3).log10()

    return float((spectra(made) - spectra(wanted)).square().mean(1).sqrt().mean())


def latent_line(latent: Tensor) -> str:
    """How the latents [B, C, A] of a world's sounds are spread."""
    values = latent.transpose(0, 1).flatten(1)
    mean, deviation = values.mean(1), values.std(1)
    return (
        f"latents: mean per channel {mean.min():.2f} to {mean.max():.2f}, deviation {deviation.min():.2f} to "
        f"{deviation.max():.2f}, largest value {values.abs().max():.1f}"
    )
