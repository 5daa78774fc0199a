"""From the model's 51,200 Hz to the 44,100 Hz that files have."""

import torch
from torch import Tensor

OUTPUT_NUMERATOR = 441
OUTPUT_DENOMINATOR = 512
"""44,100 / 51,200."""


def resample_fft(waveform: Tensor, numerator: int = OUTPUT_NUMERATOR, denominator: int = OUTPUT_DENOMINATOR) -> Tensor:
    """[..., N] -> [..., int(N * numerator / denominator)] by cutting or zero-filling the spectrum of the whole signal.

    Equals ``scipy.signal.resample`` without a window, which the released model's sound goes through. Runs and answers
    in float32, or in float64 if that is what comes in.
    """
    x = waveform if waveform.dtype == torch.float64 else waveform.float()
    length = x.shape[-1]
    target = length * numerator // denominator
    if target == length:
        return x
    shorter = min(length, target)
    spectrum = torch.fft.rfft(x)[..., : shorter // 2 + 1]
    if shorter % 2 == 0:
        # The middle bin stands for two frequencies in the shorter signal and for one of them in the longer.
        middle = spectrum[..., -1:] * (2.0 if target < length else 0.5)
        spectrum = torch.cat([spectrum[..., :-1], middle], dim=-1)
    return torch.fft.irfft(spectrum, n=target) * (target / length)
