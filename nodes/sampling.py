"""Sampling of the distilled model in one node; schedule and solver of the base model apart."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..happyhorse_core.sampling.schedule import MAX_STEPS, SHIFT, flow_sigmas
from .host import checks
from .host.inputs import checked
from .host.latents import as_pair
from .host.sampling import CATEGORY, sample_distilled, seed_input
from .host.solver import unipc_sampler

log = logging.getLogger("happyhorse")


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
    @checked
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
    @checked
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
    @checked
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(unipc_sampler())
