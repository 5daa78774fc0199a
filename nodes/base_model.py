"""Sampling of the base model: guidance with a scale for each stream, as a guider and in one node."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..happyhorse_core.sampling import guidance
from ..happyhorse_core.sampling.schedule import MAX_STEPS
from .host import checks
from .host.diffusion import HappyHorseModel
from .host.guider import TwoStreamGuider
from .host.inputs import checked
from .host.latents import as_pair
from .host.sampling import CATEGORY, sample_from_noise, seed_input
from .host.solver import unipc_sampler

log = logging.getLogger("happyhorse")

MODEL_TIP = "The base model from Load HappyHorse Model. The distilled one was made to run without guidance."
POSITIVE_TIP = "The prompt from CLIP Text Encode: what the clip shall be."
NEGATIVE_TIP = "What it shall not be, from HappyHorse Negative Prompt or CLIP Text Encode."


def scale_inputs() -> list:
    """The widgets of the guidance, with the values of the released model."""
    return [
        io.Float.Input(
            "video_scale_early",
            default=guidance.VIDEO_SCALE_EARLY,
            min=0.0,
            max=guidance.MAX_SCALE,
            step=0.1,
            tooltip="Guidance of the picture in the first part of the steps, where its layout is made. Higher follows "
            "the prompt more and burns colours; 1 ignores the negative prompt.",
        ),
        io.Float.Input(
            "video_scale_late",
            default=guidance.VIDEO_SCALE_LATE,
            min=0.0,
            max=guidance.MAX_SCALE,
            step=0.1,
            tooltip="Guidance of the picture in the rest of the steps, where its details are made.",
        ),
        io.Int.Input(
            "switch_timestep",
            default=guidance.LATE_FROM_TIMESTEP,
            min=0,
            max=1000,
            tooltip="Noise level, 1000 to 0, from which on the late guidance counts. At 500 and 32 steps these are the "
            "last 5 steps.",
            advanced=True,
        ),
        io.Float.Input(
            "audio_scale",
            default=guidance.AUDIO_SCALE,
            min=0.0,
            max=guidance.MAX_SCALE,
            step=0.1,
            tooltip="Guidance of the sound in all steps.",
        ),
    ]


class HappyHorseGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseGuider",
            display_name="HappyHorse Guider",
            category=CATEGORY,
            description="Guidance of the base model for SamplerCustomAdvanced: picture and sound each have a scale, "
            "and the picture's drops towards the end.",
            search_aliases=["happyhorse", "cfg", "guidance", "dual cfg guider", "magihuman"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Conditioning.Input("positive", tooltip=POSITIVE_TIP),
                io.Conditioning.Input("negative", tooltip=NEGATIVE_TIP),
                *scale_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="GUIDER", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        video_scale_early: float = guidance.VIDEO_SCALE_EARLY,
        video_scale_late: float = guidance.VIDEO_SCALE_LATE,
        switch_timestep: int = guidance.LATE_FROM_TIMESTEP,
        audio_scale: float = guidance.AUDIO_SCALE,
    ) -> io.NodeOutput:
        scales = guidance.Scales(video_scale_early, video_scale_late, switch_timestep, audio_scale)
        return io.NodeOutput(make_guider(model, positive, negative, scales))


class HappyHorseBaseSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseBaseSampler",
            display_name="HappyHorse Base Sampler",
            category=CATEGORY,
            description="Makes a clip with the base model: 32 steps of its own solver, guided by a prompt and a "
            "negative prompt. Frames and sounds that the latent's noise mask holds stay as they are.",
            search_aliases=["happyhorse", "ksampler", "base", "cfg", "unipc", "t2v", "i2v", "magihuman"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Conditioning.Input("positive", tooltip=POSITIVE_TIP),
                io.Conditioning.Input("negative", tooltip=NEGATIVE_TIP),
                io.Latent.Input(
                    "latent", tooltip="Empty HappyHorse Latent, or the same with a picture or a sound that is held."
                ),
                seed_input("The noise to start from. One seed and the same inputs give one clip on one machine."),
                io.Int.Input(
                    "steps",
                    default=32,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Steps, each of which runs the model once for either prompt. The released model uses 32.",
                ),
                *scale_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="Clean video and audio, for HappyHorse Decode.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent: dict,
        seed: int,
        steps: int = 32,
        video_scale_early: float = guidance.VIDEO_SCALE_EARLY,
        video_scale_late: float = guidance.VIDEO_SCALE_LATE,
        switch_timestep: int = guidance.LATE_FROM_TIMESTEP,
        audio_scale: float = guidance.AUDIO_SCALE,
    ) -> io.NodeOutput:
        scales = guidance.Scales(video_scale_early, video_scale_late, switch_timestep, audio_scale)
        guider = make_guider(model, positive, negative, scales)
        latent = as_pair(model, latent)
        samples = sample_from_noise(guider, unipc_sampler(), latent, seed, steps)
        return io.NodeOutput({**latent, "samples": samples})


def make_guider(model: ModelPatcher, positive: list, negative: list, scales: guidance.Scales) -> TwoStreamGuider:
    """The guider, once model and prompts are known to fit. An empty negative prompt is allowed."""
    inner = checks.check_model(model)
    checks.check_generator(inner)
    checks.check_text(positive, inner, "positive")
    checks.check_text(negative, inner, "negative", may_be_empty=True)
    warn_if_distilled(inner)
    guider = TwoStreamGuider(model, scales)
    guider.set_conds(positive, negative)
    return guider


def warn_if_distilled(model: HappyHorseModel) -> None:
    if not model.role.guided:
        log.warning(
            "HappyHorse: the %s model was made for %d steps without guidance; guiding it doubles the time and burns "
            "the picture. Use HappyHorse Sampler, or load the base checkpoint.",
            model.role.name,
            model.role.steps,
        )
