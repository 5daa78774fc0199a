"""Measures a waveform: its loudness and its place per frame, and when it clicks."""

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from ..world.scene import FPS, Values

CLICK_WINDOW = 0.0025
"""Seconds over which the level is taken when clicks are sought."""
SILENCE = 0.01
"""Level below which nothing is heard."""


def levels(waveform: NDArray[np.float32], rate: int, frames: int) -> Values:
    """[2, frames]: effective value of left and right over the time of one frame around each picture."""
    energy = np.concatenate([np.zeros((2, 1)), np.cumsum(waveform.astype(np.float64) ** 2, 1)], 1)
    edges = np.clip(np.round((np.arange(frames + 1) - 0.5) * rate / FPS), 0, waveform.shape[1]).astype(int)
    return np.sqrt(np.diff(energy[:, edges], axis=1) / np.maximum(np.diff(edges), 1))


def loudness(level: Values) -> Values:
    """[frames] of both channels together."""
    return np.sqrt(np.sum(level**2, 0))


def side(level: Values) -> Values:
    """[frames]: -1 where all is heard on the left, 1 where all is heard on the right, NaN in silence."""
    both = level.sum(0)
    return np.where(both > SILENCE, (level[1] - level[0]) / np.maximum(both, SILENCE), np.nan)


def find_clicks(waveform: NDArray[np.float32], rate: int) -> tuple[float, ...]:
    """When short sounds set in, in seconds: where the level comes up to half of a peak that stands out."""
    window = max(1, round(CLICK_WINDOW * rate))
    length = waveform.shape[1] // window * window
    energy = np.mean(np.sum(waveform[:, :length].astype(np.float64) ** 2, 0).reshape(-1, window), 1)
    # A click's own swinging shows in so short a window; two of them hold a swing of the deepest click.
    level = np.sqrt(np.convolve(energy, np.ones(2) / 2))[: len(energy)]
    loudest = level.max(initial=0.0)
    if loudest < 2 * SILENCE:
        return ()
    padded = np.concatenate([[0.0], level, [0.0]])
    peaks, _ = signal.find_peaks(padded, height=loudest / 4, prominence=loudest / 4, distance=round(0.1 / CLICK_WINDOW))
    return tuple(_rise(padded, peak) * window / rate for peak in peaks)


def _rise(level: Values, peak: int) -> float:
    """Where the level last passed half of a peak before it, in windows, for a level with one window put before."""
    half = level[peak] / 2
    before = peak
    while level[before] > half and before > 0:
        before -= 1
    part = (half - level[before]) / max(level[before + 1] - level[before], 1e-9)
    return max(before + part - 1, 0.0)
