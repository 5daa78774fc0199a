"""Muon: steps for matrices whose singular values are all alike, which small networks learn from in far fewer steps.

Source of the method: Keller Jordan's Muon (2024); the size of a step is matched to AdamW's as Liu et al. do in "Muon is
Scalable for LLM Training" (2025).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of a polynomial that, applied again and again, takes singular values of (0, 1] to about 1."""
ITERATIONS = 5
MATCH = 0.2
"""Root mean square of the elements of AdamW's usual step, in learning rates."""


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two axes or more, AdamW without decay for all others.

    Kernels count as matrices of one row for each output. One learning rate serves both kinds, ``vector_rate`` times
    of it those of one axis.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        vector_rate: float = 0.3,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "betas": betas, "vector_rate": vector_rate}
        super().__init__(list(parameters), settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim > 1:
                    self._matrix_step(parameter, group)
                else:
                    self._vector_step(parameter, group)

    def _matrix_step(self, parameter: nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        average = state["average"].lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(average, group["momentum"]).flatten(1)
        update = orthogonal(ahead)
        size = MATCH * max(update.shape) ** 0.5
        parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * size)

    def _vector_step(self, parameter: nn.Parameter, group: dict) -> None:
        state, (slow, slower) = self.state[parameter], group["betas"]
        if not state:
            state["step"], state["average"] = torch.zeros(()), torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        count = float(state["step"])
        average = state["average"].lerp_(parameter.grad, 1 - slow) / (1 - slow**count)
        square = state["square"].lerp_(parameter.grad.square(), 1 - slower) / (1 - slower**count)
        parameter.sub_(average / (square.sqrt() + 1e-8), alpha=group["lr"] * group["vector_rate"])


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix [m, n] with its singular values brought near 1.

    Each iteration multiplies it by a polynomial in its own square. All of them commute, so they are worked out on
    squares of the shorter side, and the matrix itself is multiplied but once.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    square = x @ x.mT
    one = torch.eye(len(x), dtype=x.dtype, device=x.device)
    whole = one
    for left in reversed(range(ITERATIONS)):
        factor = a * one + b * square + c * square @ square
        whole = factor @ whole
        if left:
            square = factor @ factor @ square
    x = whole @ x
    return x.mT if tall else x
