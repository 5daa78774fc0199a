"""Latents to start from: empty ones, and ones whose first frame is a given image."""

import logging

import comfy.model_management
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..happyhorse_core import geometry
from .host.estimate import check_latent
from .host.inputs import checked
from .host.latents import CATEGORY, audio_mask, encode_image, first_frame_mask, streams_of, with_first_frame

log = logging.getLogger("happyhorse")


class HappyHorseEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseEmptyLatent",
            display_name="Empty HappyHorse Latent",
            category=CATEGORY,
            description="An empty video and audio latent of one length, at 25 frames a second.",
            search_aliases=["happyhorse", "empty latent", "audio video latent", "av latent", "magihuman"],
            inputs=[
                io.Int.Input(
                    "width",
                    default=448,
                    min=geometry.SIZE_STEP,
                    max=geometry.MAX_PIXELS_PER_SIDE,
                    step=geometry.SIZE_STEP,
                    tooltip="Pixels, floored to a multiple of 32. The released models were trained around 448 x 256.",
                ),
                io.Int.Input(
                    "height",
                    default=256,
                    min=geometry.SIZE_STEP,
                    max=geometry.MAX_PIXELS_PER_SIDE,
                    step=geometry.SIZE_STEP,
                    tooltip="Pixels, floored to a multiple of 32.",
                ),
                io.Float.Input(
                    "seconds",
                    default=5.0,
                    min=0.16,
                    max=float(geometry.MAX_SECONDS),
                    step=0.04,
                    tooltip="Length of the clip where frames is 0. The released models are mostly used for 5 to 10 s.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=geometry.MAX_SECONDS * geometry.FRAME_RATE + 1,
                    tooltip="Length in frames instead; 0: from seconds. Frames come in fours after the first, so 126 "
                    "give 125.",
                    advanced=True,
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Clips to make at once, each from its own noise."
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="Video and audio, for HappyHorse Sampler.")],
        )

    @classmethod
    @checked
    def execute(cls, width: int, height: int, seconds: float, frames: int = 0, batch_size: int = 1) -> io.NodeOutput:
        length = geometry.check_frames(frames) if frames else geometry.frames_from_seconds(seconds)
        shape = geometry.ClipShape(*geometry.snap_size(width, height), length)
        if (shape.width, shape.height) != (width, height):
            log.warning(
                "HappyHorse: %d x %d is not a multiple of 32; the clip is %d x %d.",
                width,
                height,
                shape.width,
                shape.height,
            )
        if frames not in (0, shape.video_frames):
            log.warning("HappyHorse: %d frames are not 4n + 1; the clip has %d frames.", frames, shape.video_frames)
        device = comfy.model_management.intermediate_device()
        check_latent(shape, batch_size, device)
        streams = [torch.zeros(batch_size, *size, device=device) for size in (shape.video_latent, shape.audio_latent)]
        return io.NodeOutput({"samples": NestedTensor(streams)})


class HappyHorseImageToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseImageToVideo",
            display_name="HappyHorse Image To Video",
            category=CATEGORY,
            description="Makes a picture the first frame of a clip: encodes it into the latent and holds it there with "
            "a noise mask.",
            search_aliases=["happyhorse", "i2v", "img2vid", "first frame", "start image", "magihuman"],
            inputs=[
                io.Vae.Input("vae", tooltip="A video VAE that was loaded with an encoder (Wan2.2_VAE.pth)."),
                io.Image.Input(
                    "image",
                    tooltip="One picture. It is cropped around its centre to the clip's aspect, then resized.",
                ),
                io.Latent.Input("latent", tooltip="From Empty HappyHorse Latent: it decides size and length."),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The same latent, its first frame held.")],
        )

    @classmethod
    @checked
    def execute(cls, vae: object, image: Tensor, latent: dict) -> io.NodeOutput:
        video, audio = streams_of(latent)
        stride = geometry.SPATIAL_STRIDE
        first = encode_image(vae, image, video.shape[4] * stride, video.shape[3] * stride).to(video)
        held = with_first_frame(video, first)
        masks = NestedTensor([first_frame_mask(held, latent), audio_mask(audio, latent)])
        return io.NodeOutput({**latent, "samples": NestedTensor([held, audio]), "noise_mask": masks})
