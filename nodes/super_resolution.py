"""Super-resolution: a finished clip, enlarged in latent space by a model of its own."""

import logging

import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..happyhorse_core import geometry, super_resolution
from ..happyhorse_core.errors import InputError
from ..happyhorse_core.sampling.guidance import SR_SCALE
from ..happyhorse_core.sampling.schedule import MAX_STEPS
from .host import checks
from .host.estimate import check_sampling
from .host.inputs import checked
from .host.latents import audio_mask, encode_image, first_frame_is_held, fresh_mask, streams_of
from .host.sampling import CATEGORY, seed_input
from .host.super_resolution import AUTO, LOCAL_CHOICES, guided_by_frame, refine, start_state, with_local_attention

log = logging.getLogger("happyhorse")

SIZE_TIP = (
    "Pixels, floored to a multiple of 32, not below the clip's. 0: chosen. Both 0 gives what the model was trained "
    "for, 896 x 512 (540p) or 1920 x 1088 (1080p), or as many pixels in the clip's own shape."
)


def rare_inputs() -> list:
    """Inputs that most clips leave as they are."""
    return [
        io.Combo.Input(
            "local_attention",
            options=list(LOCAL_CHOICES),
            default=AUTO,
            tooltip="Whether frames see only the 11 before and after them in most layers, which saves time and "
            "memory. auto: as the checkpoint was trained, on for 1080p_sr and off for 540p_sr.",
            advanced=True,
        ),
        io.Float.Input(
            "cfg",
            default=SR_SCALE,
            min=1.0,
            max=20.0,
            step=0.1,
            tooltip="Guidance, at most 2 in the first 13 latent frames (2 s). Only if negative is connected; "
            "it doubles the time. The released models run without; 3.5 is their value where it is wanted.",
            advanced=True,
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="What to guide away from. Leave it open for no guidance."
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Only together with image: a video VAE that was loaded with an encoder (Wan2.2_VAE.pth).",
        ),
        io.Image.Input(
            "image",
            optional=True,
            tooltip="Only for image to video: the picture that the clip starts from, in full size. It is "
            "encoded at the target size and held as the first frame.",
        ),
    ]


class HappyHorseSuperResolution(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        size = {"default": 0, "min": 0, "max": geometry.MAX_PIXELS_PER_SIDE, "step": geometry.SIZE_STEP}
        return io.Schema(
            node_id="HappyHorseSuperResolution",
            display_name="HappyHorse Super Resolution",
            category=CATEGORY,
            description="Enlarges a clip in latent space with a super-resolution model (540p_sr, 1080p_sr): 5 steps. "
            "The sound passes through untouched.",
            search_aliases=["happyhorse", "upscale", "sr", "540p", "1080p", "latent upscale", "magihuman"],
            inputs=[
                io.Model.Input("sr_model", tooltip="The 540p_sr or 1080p_sr model from Load HappyHorse Model."),
                io.Latent.Input(
                    "latent", tooltip="A sampled clip, video and audio, from HappyHorse Sampler or another."
                ),
                io.Conditioning.Input("positive", tooltip="The prompt that the clip was made with."),
                io.Int.Input("width", **size, tooltip=SIZE_TIP),
                io.Int.Input("height", **size, tooltip=SIZE_TIP),
                seed_input("The noise that new details grow from. One seed and the same inputs give one clip."),
                io.Int.Input(
                    "steps",
                    default=super_resolution.STEPS,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Steps of the solver (UniPC, shift 5). The released models use 5.",
                ),
                *rare_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The larger clip, for HappyHorse Decode.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        sr_model: ModelPatcher,
        latent: dict,
        positive: list,
        width: int = 0,
        height: int = 0,
        seed: int = 0,
        steps: int = super_resolution.STEPS,
        local_attention: str = AUTO,
        cfg: float = SR_SCALE,
        negative: list | None = None,
        vae: object = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        video, audio = check_inputs(sr_model, latent, positive, negative, vae, image)
        size = choose_size(sr_model, video, width, height)
        model, conditioning = with_local_attention(sr_model, local_attention), {"positive": positive}
        if negative is not None and cfg > 1:
            model, conditioning = guided_by_frame(model, cfg), {**conditioning, "negative": negative}
        texts = [text.shape[1] for conds in conditioning.values() for text, _ in conds]
        larger = (*video.shape[:3], *(side // geometry.SPATIAL_STRIDE for side in reversed(size)))
        check_sampling(model, larger, audio.shape, texts, steps, "width, height")
        first = None if image is None else encode_image(vae, image, *size)
        start, heard = start_state(video, audio, size, seed, latent.get("batch_index"))
        large = refine(model, conditioning, start, heard, first, steps=steps, seed=seed)
        return io.NodeOutput(enlarged(latent, large, audio, first is not None))


def check_inputs(
    sr_model: ModelPatcher, latent: dict, positive: list, negative: list | None, vae: object, image: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The clip's video and audio, once everything is known to fit."""
    inner = checks.check_model(sr_model, "sr_model")
    checks.check_enlarger(inner, "sr_model")
    video, audio = streams_of(latent)
    if torch.count_nonzero(video) == 0:
        raise InputError("latent: found an empty clip, expected a sampled one: this node goes after a sampler.")
    checks.check_text(positive, inner, "positive")
    if negative is not None:
        checks.check_text(negative, inner, "negative", may_be_empty=True)
    if image is not None and vae is None:
        raise InputError("vae: found nothing, expected a video VAE, since image is connected and has to be encoded.")
    if image is None and first_frame_is_held(latent):
        log.warning(
            "HappyHorse: the clip starts from a given picture, but image is not connected, so the first frame is made "
            "anew. Connect the picture and a video VAE to keep it."
        )
    return video, audio


def choose_size(sr_model: ModelPatcher, video: Tensor, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels; what is odd about it goes to the log."""
    role = sr_model.model.role
    source = (video.shape[4] * geometry.SPATIAL_STRIDE, video.shape[3] * geometry.SPATIAL_STRIDE)
    size = super_resolution.target_size(role, source, width, height)
    if any(asked and asked != side for asked, side in zip((width, height), size, strict=True)):
        log.warning("HappyHorse: %d x %d is not a multiple of 32; the clip becomes %d x %d.", width, height, *size)
    for warning in super_resolution.shape_warnings(role, source, size):
        log.warning("HappyHorse: %s.", warning)
    return size


def enlarged(latent: dict, video: Tensor, audio: Tensor, first_is_held: bool) -> dict:
    """``latent`` with the larger video and its own audio. Of a noise mask, the audio's part is kept."""
    out = {**latent, "samples": NestedTensor([video, audio])}
    if first_is_held or latent.get("noise_mask") is not None:
        out["noise_mask"] = NestedTensor([fresh_mask(video, first_is_held), audio_mask(audio, latent)])
    return out
