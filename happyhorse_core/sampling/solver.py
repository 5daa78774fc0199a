"""Solvers of the flow ODE. Each stream (video, audio) has a solver of its own; all maths is elementwise.

A solver is made for a schedule and called once per step, in order:
``step(index, x, x0) -> x at sigmas[index + 1]``, where x0 = x - sigma * velocity is the clean latent as predicted.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Solver(Protocol):
    """What the sampling loop asks of a solver."""

    def step(self, index: int, x: Tensor, x0: Tensor) -> Tensor: ...


class DistilledSolver:
    """The distilled model's update: keep the predicted clean latent, add fresh noise of the next level.

    ``noise(index, like)`` draws the noise of a step; it is not called for the last one, which has none.
    """

    def __init__(self, sigmas: Tensor, noise: Callable[[int, Tensor], Tensor]) -> None:
        self.sigmas = sigmas.tolist()
        self.noise = noise

    def step(self, index: int, x: Tensor, x0: Tensor) -> Tensor:
        sigma = self.sigmas[index + 1]
        if sigma == 0:
            return x0
        return sigma * self.noise(index, x) + (1 - sigma) * x0


class UniPC:
    """UniPC of order 2, B(h) = expm1(h), predicting x0, with a first-order last step (Zhao et al., arXiv 2302.04867).

    Each step first corrects the current sample with the prediction just made there, then predicts the next one.
    """

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas.tolist()
        # Set by the first step, and ``x0_before`` by the second, before they are read.
        self.x0_before: Tensor
        self.x0_last: Tensor
        self.sample_last: Tensor

    def step(self, index: int, x: Tensor, x0: Tensor) -> Tensor:
        if index > 0:
            x = self._correct(index, x0)
            self.x0_before = self.x0_last
        self.x0_last, self.sample_last = x0, x
        return self._predict(index, x)

    def _order(self, index: int) -> int:
        """Order of the prediction from ``index``: one prediction is known at first, and the last step is plain."""
        return min(2, index + 1, len(self.sigmas) - 1 - index)

    def _predict(self, index: int, x: Tensor) -> Tensor:
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        if sigma_next == 0:
            return self.x0_last
        growth = math.expm1(-self._log_snr_gain(index))
        change = 0.5 * self._slope(index) if self._order(index) == 2 else 0.0
        return sigma_next / sigma * x - (1 - sigma_next) * growth * (self.x0_last + change)

    def _correct(self, index: int, x0: Tensor) -> Tensor:
        """The sample at ``index``, once more, from the one before and with the prediction made at ``index``."""
        before = index - 1
        sigma, sigma_next = self.sigmas[before], self.sigmas[index]
        growth = math.expm1(-self._log_snr_gain(before))
        if self._order(before) == 2:
            earlier, latest = self._corrector_weights(before)
            change = earlier * self._slope(before) + latest * (x0 - self.x0_last)
        else:
            change = 0.5 * (x0 - self.x0_last)
        return sigma_next / sigma * self.sample_last - (1 - sigma_next) * growth * (self.x0_last + change)

    def _log_snr(self, index: int) -> float:
        return math.log((1 - self.sigmas[index]) / self.sigmas[index])

    def _log_snr_gain(self, index: int) -> float:
        return self._log_snr(index + 1) - self._log_snr(index)

    def _ratio(self, index: int) -> float:
        """Where the step before lies, in units of this step; negative."""
        return (self._log_snr(index - 1) - self._log_snr(index)) / self._log_snr_gain(index)

    def _slope(self, index: int) -> Tensor:
        return (self.x0_before - self.x0_last) / self._ratio(index)

    def _corrector_weights(self, index: int) -> tuple[float, float]:
        """Solves the 2 x 2 system of section 3.1 for the weights of the earlier and the latest difference."""
        gain, ratio = -self._log_snr_gain(index), self._ratio(index)
        growth = math.expm1(gain)
        phi = growth / gain - 1
        first = phi / growth
        second = 2 * (phi / gain - 0.5) / growth
        # [1 1; ratio 1] @ [earlier, latest] = [first, second]
        earlier = (first - second) / (1 - ratio)
        return earlier, first - earlier


def seeded_noise(generator: torch.Generator) -> Callable[[int, Tensor], Tensor]:
    """Fresh float32 noise from one generator, drawn on the generator's device so that the seed alone decides it."""

    def draw(index: int, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
        return drawn.to(like.device)

    return draw
