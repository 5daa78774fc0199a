"""Driving sound from a file or from an array, brought to the stereo and the rate that the model hears."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import MAX_SECONDS, MODEL_SAMPLE_RATE, SAMPLES_PER_AUDIO_LATENT
from .sound_file import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, read_sound

logger = logging.getLogger(__name__)

SILENCE_PEAK = 1e-4
"""-80 dB of full scale."""
BLOCK_SECONDS = 10
"""How much goes to the resampler at once; its result does not depend on it."""

SURROUND = ("FL", "FR", "FC", "LFE", "BL", "BR")
HALF_POWER = 0.5**0.5
STEREO_GAINS = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (HALF_POWER, HALF_POWER),
    "BL": (HALF_POWER, 0.0),
    "BR": (0.0, HALF_POWER),
    "SL": (HALF_POWER, 0.0),
    "SR": (0.0, HALF_POWER),
    "LFE": (0.0, 0.0),
}
"""How much of each loudspeaker goes left and right (ITU-R BS.775); channels of other names go half to either side."""


def load_sound(path: str | Path, *, max_seconds: float = MAX_SECONDS) -> Tensor:
    """Reads the first sound track of a sound or video file -> float32 [1, 2, N] at 51,200 Hz.

    Stereo stays stereo, which the released model's own loader would mix down to mono and double; see
    ``soundtrack_from_array`` for the rest, and ``sound_file.read_sound`` for what is read and refused. Where rate or
    channels change in the middle, each stretch is brought to stereo on its own.
    Raises InputError for a file that is missing, empty, not sound, without a sound track or too short.
    """
    stretches = read_sound(path, max_seconds)
    if len(stretches) == 1:
        only = stretches[0]
        return soundtrack_from_array(
            only.samples, only.rate, max_seconds=max_seconds, channels=only.channels, name=str(path)
        )
    parts = [_resample(_mix_to_stereo(part.samples, part.channels), part.rate) for part in stretches]
    return soundtrack_from_array(
        np.concatenate(parts, axis=1), MODEL_SAMPLE_RATE, max_seconds=max_seconds, name=str(path)
    )


def soundtrack_from_array(
    waveform: np.ndarray | Tensor,
    sample_rate: int,
    *,
    max_seconds: float = MAX_SECONDS,
    channels: Sequence[str] = (),
    name: str = "the sound",
) -> Tensor:
    """[C, N] or [1, C, N] in [-1, 1] at any rate -> float32 [1, 2, M] at 51,200 Hz, M = round(N * 51200 / rate).

    One channel is doubled, two are kept, more are mixed down by the loudspeakers in ``channels`` (names as FFmpeg's:
    FL, FR, FC, ...), or without names as 5.1 if there are six and evenly otherwise. What goes beyond ``max_seconds`` is
    cut, and silence is let through; both with a warning. ``name`` is what messages call the sound.
    Raises InputError if it is empty, shorter than one latent (40 ms), not finite, a batch, or of an absurd rate.
    """
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise InputError(
            f"audio: {name} has a sample rate of {sample_rate} Hz, expected {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}."
        )
    rate = int(sample_rate)
    samples = _as_channels(waveform, name)
    limit = int(max_seconds * rate)
    if samples.shape[1] > limit:
        logger.warning("audio: %s is longer than %g s; only its first %g s are used.", name, max_seconds, max_seconds)
        samples = samples[:, :limit]
    _check_samples(samples, rate, name)
    return torch.from_numpy(_resample(_mix_to_stereo(samples, channels), rate)).unsqueeze(0)


def _as_channels(waveform: np.ndarray | Tensor, name: str) -> np.ndarray:
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().float().cpu().numpy()
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim == 3 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.ndim != 2:
        raise InputError(
            f"audio: {name} has the shape {list(samples.shape)}, expected [channels, samples], or a batch of one such."
        )
    return samples


def _check_samples(samples: np.ndarray, rate: int, name: str) -> None:
    if samples.size == 0:
        raise InputError(f"audio: {name} is empty. Choose another.")
    if samples.shape[1] * MODEL_SAMPLE_RATE < SAMPLES_PER_AUDIO_LATENT * rate:
        raise InputError(
            f"audio: {name} lasts {samples.shape[1] / rate:.4g} s, expected at least "
            f"{SAMPLES_PER_AUDIO_LATENT / MODEL_SAMPLE_RATE:g} s (one frame)."
        )
    if not np.isfinite(samples).all():
        raise InputError(f"audio: {name} holds values that are not numbers. Export it again.")
    if np.abs(samples).max() < SILENCE_PEAK:
        logger.warning("audio: %s is silent; the picture has nothing to follow.", name)


def _mix_to_stereo(samples: np.ndarray, channels: Sequence[str]) -> np.ndarray:
    """[C, N] -> [2, N]; a mix that would clip is turned down as a whole."""
    count = samples.shape[0]
    if count == 1:
        return np.repeat(samples, 2, axis=0)
    if count == 2:
        return samples
    if len(channels) != count and count != len(SURROUND):
        return np.repeat(samples.mean(axis=0, keepdims=True), 2, axis=0)
    names = channels if len(channels) == count else SURROUND
    gains = np.array([STEREO_GAINS.get(name, (0.5, 0.5)) for name in names], dtype=np.float32)
    mixed = gains.T @ samples
    return mixed / max(1.0, float(np.abs(mixed).max()))


def _resample(stereo: np.ndarray, rate: int) -> np.ndarray:
    """[2, N] at ``rate`` -> [2, round(N * 51200 / rate)] through FFmpeg's swresample."""
    if rate == MODEL_SAMPLE_RATE:
        return stereo
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=MODEL_SAMPLE_RATE)
    parts = [part.to_ndarray() for frame in _frames(stereo, rate) for part in resampler.resample(frame)]
    parts += [part.to_ndarray() for part in resampler.resample(None)]
    result = np.concatenate(parts, axis=1)
    length = round(stereo.shape[1] * MODEL_SAMPLE_RATE / rate)
    # The filter's last taps come out or not, by the version of FFmpeg.
    return np.pad(result[:, :length], ((0, 0), (0, max(0, length - result.shape[1]))))


def _frames(stereo: np.ndarray, rate: int) -> Iterator[av.AudioFrame]:
    for start in range(0, stereo.shape[1], BLOCK_SECONDS * rate):
        block = np.ascontiguousarray(stereo[:, start : start + BLOCK_SECONDS * rate])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate = rate
        frame.pts = start
        yield frame
