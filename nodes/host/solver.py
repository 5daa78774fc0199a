"""The core's solver under the host's sampler interface."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import trange

from ...happyhorse_core.sampling.solver import UniPC


def unipc_sampler() -> comfy.samplers.KSAMPLER:
    """A SAMPLER that steps with the core's UniPC."""
    return comfy.samplers.KSAMPLER(sample_unipc)


@torch.no_grad()
def sample_unipc(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Runs all of ``sigmas``. ``model`` predicts the clean latent. All streams are packed in ``x``."""
    solver = UniPC(sigmas)
    batch = x.new_ones(x.shape[0])
    for index in trange(len(sigmas) - 1, disable=disable):
        clean = model(x, sigmas[index] * batch, **(extra_args or {}))
        if callback is not None:
            level = sigmas[index]
            callback({"x": x, "i": index, "sigma": level, "sigma_hat": level, "denoised": clean})
        x = solver.step(index, x, clean)
    return x
