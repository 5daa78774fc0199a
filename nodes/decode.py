"""From clean latents to pictures, sound and a video that holds both."""

from fractions import Fraction

import torch.nn.functional as F
from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..happyhorse_core import geometry
from . import checks

CATEGORY = "HappyHorse/decode"


class HappyHorseDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseDecode",
            display_name="HappyHorse Decode",
            category=CATEGORY,
            description="Turns a clean latent into frames, sound and a video of both: 25 frames a second, stereo at "
            "44,100 Hz.",
            search_aliases=["happyhorse", "vae decode", "audio decode", "create video", "magihuman"],
            inputs=[
                io.Latent.Input("latent", tooltip="From HappyHorse Sampler, or any sampler that ran the model."),
                io.Vae.Input("vae", tooltip="From Load HappyHorse Video VAE. Core's Wan2.2 VAE works too, slower."),
                io.Vae.Input("audio_vae", tooltip="From Load HappyHorse Audio VAE."),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="All frames, one clip after the other."),
                io.Audio.Output(display_name="AUDIO", tooltip="Stereo sound, as long as the frames."),
                io.Video.Output(display_name="VIDEO", tooltip="Both, for Save Video. Of a batch, the first clip."),
            ],
        )

    @classmethod
    def execute(cls, latent: dict, vae: object, audio_vae: object) -> io.NodeOutput:
        video, audio = checks.streams_of(latent)
        checks.check_video_vae(vae, "vae")
        checks.check_audio_vae(audio_vae, "audio_vae")
        frames = vae.decode(video)
        waveform = as_long_as(frames.shape[1], audio_vae.decode(audio).movedim(-1, 1).clamp(-1, 1))
        sound = {"waveform": waveform, "sample_rate": geometry.OUTPUT_SAMPLE_RATE}
        clip = Types.VideoComponents(
            images=frames[0],
            audio={**sound, "waveform": waveform[:1]},
            frame_rate=Fraction(geometry.FRAME_RATE),
        )
        return io.NodeOutput(frames.flatten(0, 1), sound, InputImpl.VideoFromComponents(clip))


def as_long_as(pictures: int, waveform: Tensor) -> Tensor:
    """[B, 2, N] -> [B, 2, 1764 * pictures]: sound may come up to three frames longer than the pictures."""
    samples = pictures * geometry.OUTPUT_SAMPLE_RATE // geometry.FRAME_RATE
    return F.pad(waveform, (0, samples - waveform.shape[-1]))
