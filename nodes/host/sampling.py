"""Sampling by the host's own code, from the start that the released models were trained with."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ...happyhorse_core.sampling.schedule import flow_sigmas
from .estimate import check_sampling
from .latents import Latent

CATEGORY = "HappyHorse/sampling"
"""Where the menu lists nodes that sample."""
MAX_SEED = 0xFFFFFFFFFFFFFFFF


def seed_input(tooltip: str) -> io.Int.Input:
    """The seed of a sampling node, with the canvas's choice of what follows a run."""
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=tooltip)


def as_signed(seed: int) -> int:
    """The same seed to torch, so that 1 may be added to it, as the host's noise does: 2^64 - 1 becomes -1."""
    return seed - 2**64 if seed >= 2**63 else seed


def sample_distilled(model: ModelPatcher, positive: list, latent: Latent, seed: int, steps: int) -> NestedTensor:
    """The distilled model's loop on the host's sampler: its ``lcm`` is exactly that update. Returns clean streams."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.set_cfg(1.0)
    return sample_from_noise(guider, comfy.samplers.sampler_object("lcm"), latent, seed, steps)


def sample_from_noise(
    guider: comfy.samplers.CFGGuider, sampler: comfy.samplers.Sampler, latent: Latent, seed: int, steps: int
) -> NestedTensor:
    """Runs ``sampler`` over the whole schedule of the released models, from pure noise. Returns clean streams."""
    samples = latent["samples"]
    video, audio = samples.unbind()
    texts = [cond["cross_attn"].shape[1] for conds in guider.original_conds.values() for cond in conds]
    check_sampling(guider.model_patcher, video.shape, audio.shape, texts, steps, "latent")
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    return sample_from(noise, samples, guider, sampler, steps=steps, seed=seed, mask=latent.get("noise_mask"))


def sample_from(
    start: NestedTensor,
    samples: NestedTensor,
    guider: comfy.samplers.CFGGuider,
    sampler: comfy.samplers.Sampler,
    *,
    steps: int,
    seed: int,
    mask: NestedTensor | Tensor | None,
) -> NestedTensor:
    """Runs the whole schedule from ``start``, the normalised streams at the first noise level. Returns clean streams.

    What ``mask`` holds stays as it is in ``samples``.
    """
    sigmas = flow_sigmas(steps)
    # The host starts from sigma * noise + (1 - sigma) * samples, the model was trained to start from the noise itself.
    # So the noise is the start divided by sigma; empty samples are zero to the model, and the host adds no noise to
    # what is held.
    return guider.sample(
        start / sigmas[0].item(),
        samples,
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=latent_preview.prepare_callback(guider.model_patcher, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=as_signed(seed),
    ).to(comfy.model_management.intermediate_device())
