"""Resampling by the spectrum, against SciPy's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.signal import resample as scipy_resample

from happyhorse_core.audio_vae.resample import resample_fft

GOLDEN = Path(__file__).parents[1] / "golden" / "audio_resample.io.safetensors"


def test_the_released_sound_comes_out():
    io = load_file(GOLDEN)
    found, expected = resample_fft(io["waveform"]), io["resampled"]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("length", "numerator", "denominator"),
    [
        (2048 * 3, 441, 512),
        (1000, 441, 512),
        (9, 2, 3),
        (10, 1, 2),
        (11, 5, 11),
        (7, 3, 2),
        (8, 3, 2),
        (6, 7, 3),
        (1, 1, 1),
        (5, 5, 5),
    ],
)
def test_odd_and_even_lengths_up_and_down_equal_scipy(length, numerator, denominator):
    signal = np.random.default_rng(length).standard_normal((2, 3, length))
    found = resample_fft(torch.from_numpy(signal), numerator, denominator)
    expected = scipy_resample(signal, int(length * numerator / denominator), axis=-1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_a_tone_keeps_its_pitch_and_level():
    seconds = 0.5
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(int(51200 * seconds)).double() / 51200)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(int(44100 * seconds)).double() / 44100)
    torch.testing.assert_close(resample_fft(tone.float()), expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "answered"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_answers_in_float32(given, answered):
    assert resample_fft(torch.ones(1, 2, 512, dtype=given)).dtype == answered
