"""Noise levels of the denoising steps."""

import torch
from torch import Tensor

from ..errors import InputError

SHIFT = 5.0
MAX_STEPS = 1000

# The released scheduler takes its largest sigma from a float32 table of 1,000 entries: 1 - 1/1000, rounded.
SIGMA_MAX = float(torch.tensor(0.999, dtype=torch.float32))


def flow_sigmas(steps: int, shift: float = SHIFT) -> Tensor:
    """[steps + 1] float32, falling from almost 1 to exactly 0.

    Evenly spaced s from 0.999 towards 0, shifted: shift * s / (1 + (shift - 1) * s) (Esser et al., arXiv 2403.03206,
    section 5.3.2). Raises InputError for steps outside 1 to 1000 or a shift that is not positive.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps: found {steps}, expected 1 to {MAX_STEPS}.")
    if not shift > 0:
        raise InputError(f"shift: found {shift:g}, expected more than 0; the released models use {SHIFT:g}.")
    s = torch.linspace(SIGMA_MAX, 0, steps + 1, dtype=torch.float64)[:-1]
    return torch.cat([shift * s / (1 + (shift - 1) * s), s.new_zeros(1)]).float()


def timestep(sigma: float) -> int:
    """The integer timestep of a noise level, 0 to 999, truncated as the released scheduler does."""
    return int(sigma * 1000)
