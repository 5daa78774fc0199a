"""Sampling by the host's own code: the distilled model in one node, schedule and solver of the base model apart."""

import logging
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..happyhorse_core.sampling.schedule import MAX_STEPS, SHIFT, flow_sigmas
from . import checks
from .host.solver import unipc_sampler

log = logging.getLogger("happyhorse")

CATEGORY = "HappyHorse/sampling"
MAX_SEED = 0xFFFFFFFFFFFFFFFF


def seed_input(tooltip: str) -> io.Int.Input:
    """The seed of a sampling node, with the canvas's choice of what follows a run."""
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=tooltip)


class HappyHorseSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseSampler",
            display_name="HappyHorse Sampler",
            category=CATEGORY,
            description="Makes a clip with the distilled model: 8 steps, no negative prompt. Frames and sounds that "
            "the latent's noise mask holds stay as they are.",
            search_aliases=["happyhorse", "ksampler", "distilled", "lcm", "t2v", "i2v", "magihuman"],
            inputs=[
                io.Model.Input("model", tooltip="The distilled model from Load HappyHorse Model."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt from CLIP Text Encode: one paragraph of 150 to 200 words, then Dialogue: and "
                    "Background Sound:.",
                ),
                io.Latent.Input(
                    "latent", tooltip="Empty HappyHorse Latent, or the same with a picture as first frame."
                ),
                seed_input("The noise to start from. One seed and the same inputs give one clip on one machine."),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Calls of the model. The released model was distilled for 8.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="Clean video and audio, for HappyHorse Decode.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, positive: list, latent: dict, seed: int, steps: int = 8) -> io.NodeOutput:
        inner = checks.check_model(model)
        checks.check_generator(inner)
        checks.check_text(positive, inner, "positive")
        if inner.role.guided:
            log.warning(
                "HappyHorse: the %s model was made for %d steps with guidance; expect a poor clip from the distilled "
                "model's sampler. Use the distill checkpoint here.",
                inner.role.name,
                inner.role.steps,
            )
        latent = as_pair(model, latent)
        return io.NodeOutput({**latent, "samples": sample_distilled(model, positive, latent, seed, steps)})


def as_pair(model: ModelPatcher, latent: dict) -> dict:
    """A latent that is certainly video and audio. Empty ones of other nodes are brought to it, as core samplers do."""
    ratios = (latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal"))
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    if not samples.is_nested and torch.count_nonzero(samples) == 0:
        # ComfyUI 0.33.0 fits size and channels only; later versions ask the latent format for the rest themselves.
        samples = model.get_model_object("latent_format").fix_empty_latent(samples)
    fitted = {**latent, "samples": samples}
    checks.streams_of(fitted)
    return fitted


def sample_distilled(model: ModelPatcher, positive: list, latent: dict, seed: int, steps: int) -> Any:
    """The distilled model's loop on the host's sampler: its ``lcm`` is exactly that update. Returns clean streams."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.set_cfg(1.0)
    return sample_from_noise(guider, comfy.samplers.sampler_object("lcm"), latent, seed, steps)


def sample_from_noise(guider: comfy.samplers.CFGGuider, sampler: Any, latent: dict, seed: int, steps: int) -> Any:
    """Runs ``sampler`` over the whole schedule of the released models, from pure noise. Returns clean streams."""
    sigmas = flow_sigmas(steps)
    samples = latent["samples"]
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    # The host starts from sigma * noise; the model was trained to start from the noise itself.
    return guider.sample(
        noise / sigmas[0].item(),
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(guider.model_patcher, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    ).to(comfy.model_management.intermediate_device())


class HappyHorseSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseSigmas",
            display_name="HappyHorse Sigmas",
            category=CATEGORY,
            description="The noise levels that the released models were trained with, for SamplerCustomAdvanced. No "
            "core scheduler gives exactly these.",
            search_aliases=["happyhorse", "scheduler", "flow shift", "magihuman"],
            inputs=[
                io.Int.Input(
                    "steps",
                    default=32,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Steps of the schedule: 32 for the base model, 8 for the distilled one.",
                ),
                io.Float.Input(
                    "shift",
                    default=SHIFT,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Moves steps towards the noisy end. The released models use 5.",
                    advanced=True,
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS", tooltip="Falling from 0.9998 to 0.")],
        )

    @classmethod
    def execute(cls, steps: int, shift: float = SHIFT) -> io.NodeOutput:
        return io.NodeOutput(flow_sigmas(steps, shift))


class HappyHorseSamplerUniPC(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseSamplerUniPC",
            display_name="HappyHorse UniPC Sampler",
            category=CATEGORY,
            description="The solver of the base model (UniPC of order 2 on flow time) for SamplerCustomAdvanced. The "
            "host's own uni_pc is another integrator.",
            search_aliases=["happyhorse", "unipc", "uni_pc", "solver", "ksampler select", "magihuman"],
            inputs=[],
            outputs=[io.Sampler.Output(display_name="SAMPLER", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(unipc_sampler())
