"""From clean latents to frames, audio and a video that holds both."""

from fractions import Fraction

import torch.nn.functional as F
from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..happyhorse_core import geometry
from ..happyhorse_core.video_vae.tiling import OVERLAP
from .host import checks
from .host.estimate import check_decoding
from .host.inputs import checked
from .host.latents import original_audio, streams_of
from .host.vae import decode_frames

CATEGORY = "HappyHorse/decode"
PIXEL_OVERLAP = OVERLAP * geometry.SPATIAL_STRIDE


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
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=geometry.MAX_PIXELS_PER_SIDE,
                    step=32,
                    optional=True,
                    tooltip="Pixels a side of what is decoded at once, at least 512; smaller needs less memory and "
                    "more time. 0: whole frames where memory allows it, else the largest tiles that fit.",
                    advanced=True,
                ),
                io.Int.Input(
                    "overlap",
                    default=PIXEL_OVERLAP,
                    min=PIXEL_OVERLAP,
                    max=2 * PIXEL_OVERLAP,
                    step=32,
                    optional=True,
                    tooltip="Pixels that neighbouring tiles share. At 256 no seam shows; at 512 tiles give exactly the "
                    "same picture as whole frames, in more time.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="All frames, one clip after the other."),
                io.Audio.Output(display_name="AUDIO", tooltip="Stereo sound, as long as the frames."),
                io.Video.Output(display_name="VIDEO", tooltip="Both, for Save Video. Of a batch, the first clip."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, latent: dict, vae: object, audio_vae: object, tile_size: int = 0, overlap: int = PIXEL_OVERLAP
    ) -> io.NodeOutput:
        video, audio = streams_of(latent)
        checks.check_video_vae(vae, "vae")
        checks.check_audio_vae(audio_vae, "audio_vae")
        check_decoding(video.shape, "latent")
        frames = decode_frames(vae, video, tile_size // geometry.SPATIAL_STRIDE, overlap // geometry.SPATIAL_STRIDE)
        sound = original_audio(latent, audio) or decode_audio(audio_vae, audio)
        sound = as_long_as(frames.shape[1], sound)
        clip = Types.VideoComponents(
            images=frames[0],
            audio={**sound, "waveform": sound["waveform"][:1]},
            frame_rate=Fraction(geometry.FRAME_RATE),
        )
        return io.NodeOutput(frames.flatten(0, 1), sound, InputImpl.VideoFromComponents(clip))


def decode_audio(audio_vae: object, audio: Tensor) -> dict:
    """[B, 64, A] -> AUDIO at 44,100 Hz."""
    waveform = audio_vae.decode(audio).movedim(-1, 1).clamp(-1, 1)
    return {"waveform": waveform, "sample_rate": geometry.OUTPUT_SAMPLE_RATE}


def as_long_as(frames: int, sound: dict) -> dict:
    """An AUDIO cut to the frames, since it may come up to three frames longer, or filled up with silence."""
    samples = geometry.samples_of_frames(frames, sound["sample_rate"])
    waveform = sound["waveform"]
    return {**sound, "waveform": F.pad(waveform, (0, samples - waveform.shape[-1]))}
