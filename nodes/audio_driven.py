"""Clips that follow given audio: it goes into the latent, is held there, and comes out as it was."""

import logging

import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..happyhorse_core import geometry
from ..happyhorse_core.errors import InputError
from ..happyhorse_core.media.sound import soundtrack_from_array
from .host import checks
from .host.inputs import checked
from .host.latents import CATEGORY, ORIGINAL, streams_of, video_mask, with_length

log = logging.getLogger("happyhorse")

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
"""Sample rates that the audio of an mp4 can have."""


class HappyHorseAudioToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseAudioToVideo",
            display_name="HappyHorse Audio To Video",
            category=CATEGORY,
            description="Makes a clip that follows a given sound: encodes it into the latent and holds it there. The "
            "clip is as long as the sound, and HappyHorse Decode gives the sound back untouched.",
            search_aliases=["happyhorse", "a2v", "audio driven", "lip sync", "talking", "soundtrack", "magihuman"],
            inputs=[
                io.Vae.Input("audio_vae", tooltip="From Load HappyHorse Audio VAE."),
                io.Audio.Input(
                    "audio", tooltip="Speech, song or other sound, 0.2 to 30 s of any sample rate. It sets the length."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="From Empty HappyHorse Latent, which decides the size; its length does not matter. A first "
                    "frame that is held in it stays.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="As long as the sound, which is held in it.")],
        )

    @classmethod
    @checked
    def execute(cls, audio_vae: object, audio: dict, latent: dict) -> io.NodeOutput:
        video, _ = streams_of(latent)
        checks.check_audio_vae(audio_vae, "audio_vae")
        waveform, sample_rate = checks.one_audio(audio, "audio")
        encoded = encode_audio(audio_vae, waveform, sample_rate).to(video)
        warn_of_formats(waveform, sample_rate)
        held = encoded.expand(video.shape[0], -1, -1).clone()
        longer, mask = with_length(video, video_mask(video, latent), geometry.latent_frames(encoded.shape[2]))
        return io.NodeOutput(
            {
                **latent,
                "samples": NestedTensor([longer, held]),
                "noise_mask": NestedTensor([mask, torch.zeros_like(held[:, :1])]),
                ORIGINAL: {"waveform": waveform[None], "sample_rate": sample_rate, "latent": encoded},
            }
        )


def encode_audio(audio_vae: object, waveform: Tensor, sample_rate: int) -> Tensor:
    """[C, N] at any rate -> [1, 64, A]. Raises InputError for audio too short or too long to make a clip of."""
    samples = waveform.shape[-1]
    if samples > geometry.MAX_SECONDS * sample_rate > 0:
        raise InputError(
            f"audio: found {samples / sample_rate:.2f} s of sound, expected at most {geometry.MAX_SECONDS} s. Cut it "
            "with Trim Audio Duration, or make several clips."
        )
    track = soundtrack_from_array(waveform, sample_rate, name="the sound")
    latents = -(-track.shape[-1] // geometry.SAMPLES_PER_AUDIO_LATENT)
    if latents < geometry.MIN_FRAMES:
        raise InputError(
            f"audio: found {latents} frames of sound ({samples / sample_rate:.2f} s), expected at least "
            f"{geometry.MIN_FRAMES} ({geometry.MIN_FRAMES / geometry.FRAME_RATE:.2f} s)."
        )
    return audio_vae.encode(track.movedim(1, -1))


def warn_of_formats(waveform: Tensor, sample_rate: int) -> None:
    """Says before the long work what would fail after it: the audio comes out as it went in, and mp4 can't hold all."""
    if sample_rate not in AAC_RATES:
        log.warning(
            "HappyHorse: the sound has %d Hz, which an mp4 can't hold, and it is given back as it is. Save the clip as "
            "webm, or give it at 44,100 or 48,000 Hz.",
            sample_rate,
        )
    if waveform.shape[0] not in (1, 2, 6):
        log.warning(
            "HappyHorse: the sound has %d channels and is given back as it is; Save Video takes 1, 2 or 6.",
            waveform.shape[0],
        )
