"""The sound of a scene: 51,200 Hz, two channels, simple and steady enough for a small autoencoder."""

import numpy as np
from numpy.typing import NDArray

from .scene import RADIUS, SWELL, Scene, Speech, Track, Values, syllable, track_at

RATE = 51_200
SAMPLES_PER_FRAME = 2048
PITCH = {"small": 875.0, "medium": 550.0, "large": 350.0}
"""Of clicks and of tones, in Hz: the larger, the lower.

Multiples of 25, so that a steady tone is the same in each latent of 40 ms: the transformer need not count its waves.
"""

CLICK_LEVEL, CLICK_SECONDS, CLICK_RISE, CLICK_FALL = 0.75, 0.06, 0.001, 0.014
TONE_LEVEL, SECOND_HARMONIC = 0.45, 0.25
PULSE_LEVELS = (0.08, 0.6)
"""Loudness of a pulsing shape's tone at its smallest and at its largest."""

VOICE_PERIOD = {"woman": 256, "man": 512}
"""Of the vocal cords, in whole samples, so that a period is repeated as it is, and 8 or 4 of them in a latent: 200 and
100 Hz."""
FORMANTS = {"a": (780.0, 1250.0), "e": (440.0, 2050.0), "o": (430.0, 780.0)}
FORMANT_WIDTH, HIGHEST_PARTIAL = 110.0, 3500.0
VOICE_LEVEL = 0.16
"""Effective value of a vowel said with the mouth wide open."""


def sound(scene: Scene, frames: int = 51) -> NDArray[np.float32]:
    """The waveform of a scene, [2, frames * 2048], at most 0.8 large."""
    times = np.arange(frames * SAMPLES_PER_FRAME) / RATE
    truth = track_at(scene, times)
    if scene.kind == "face":
        wave = _vowels(scene.speech, times, truth)
    elif scene.motion == "bouncing":
        wave = _clicks(scene, times, truth)
    else:
        level = np.full_like(times, TONE_LEVEL)
        if scene.motion == "pulsing":
            quiet, loud = PULSE_LEVELS
            swell = (truth.radius / RADIUS[scene.size] - 1) / SWELL
            level = quiet + (loud - quiet) * (1 + swell) / 2
        wave = level * _tone(PITCH[scene.size], times)
    return (wave * _pan(scene, truth)).astype(np.float32)


def _tone(pitch: float, times: Values) -> Values:
    turns = 2 * np.pi * pitch * times
    return np.sin(turns) + SECOND_HARMONIC * np.sin(2 * turns)


def _clicks(scene: Scene, times: Values, truth: Track) -> Values:
    """A short tone at each touch of the floor, which comes up in a millisecond and dies away."""
    passed = np.arange(int(CLICK_SECONDS * RATE)) / RATE
    fall = np.exp(-passed / CLICK_FALL) * np.minimum(passed / CLICK_RISE, 1)
    click = CLICK_LEVEL * fall * np.sin(2 * np.pi * PITCH[scene.size] * passed)
    wave = np.zeros_like(times)
    for touch in truth.touches:
        start = round(touch * RATE)
        wave[start : start + len(click)] += click[: len(wave) - start]
    return wave


def _pan(scene: Scene, truth: Track) -> Values:
    """[2, samples]: left and right of a shape's place at constant power; a face is heard in the middle."""
    place = np.full_like(truth.x, 0.5) if scene.kind == "face" else np.clip(truth.x, 0, 1)
    return np.stack([np.cos(np.pi / 2 * place), np.sin(np.pi / 2 * place)])


def _vowels(speech: Speech, times: Values, truth: Track) -> Values:
    """Periods of the voice through each vowel's formants, as loud as the mouth is open."""
    number, _ = syllable(speech, times)
    periods = np.stack([_voice_period(vowel, speech.voice) for vowel in speech.vowels])
    wave = periods[np.maximum(number, 0), np.arange(len(times)) % periods.shape[1]]
    return wave * truth.opening * VOICE_LEVEL * np.sqrt(2)


def _voice_period(vowel: str, voice: str) -> Values:
    """One period of effective value 1: harmonics that fall off as a voice's do, raised near the formants.

    Their phases follow Schroeder's rule, which keeps the peaks low.
    """
    length = VOICE_PERIOD[voice]
    order = np.arange(1, int(HIGHEST_PARTIAL * length / RATE) + 1)
    pitch = order * RATE / length
    stretch = 1.15 if voice == "woman" else 1.0
    weights = sum(
        part / (1 + ((pitch - stretch * formant) / FORMANT_WIDTH) ** 2)
        for part, formant in zip((1.0, 0.6), FORMANTS[vowel], strict=True)
    )
    weights = np.sqrt(weights + 0.01 / order)
    phase = -np.pi * order * (order - 1) / len(order)
    wave = np.cos(2 * np.pi * order * np.arange(length)[:, None] / length + phase) @ weights
    return wave / np.sqrt(np.mean(wave**2))
