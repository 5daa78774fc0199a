"""Clips that go on: the end of one conditions the next, and both are joined to one video."""

import logging
from dataclasses import replace

import av
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import Input, InputImpl, Types, io
from torch import Tensor

from ..happyhorse_core import extend, geometry
from ..happyhorse_core.audio_vae.resample import resample_fft
from ..happyhorse_core.errors import InputError, one_line
from .host import checks
from .host.inputs import check_socket, checked, is_image, shown
from .host.latents import CATEGORY, ORIGINAL, audio_mask, encode_image, first_frame_mask, streams_of, with_first_frame

log = logging.getLogger("happyhorse")


class HappyHorseExtend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseExtend",
            display_name="HappyHorse Extend",
            category=CATEGORY,
            description="Lets the next clip go on from a finished one: holds a picture from near its end as the first "
            "frame, and the sound from there to its end as the first sound. HappyHorse Join Clips makes one video of "
            "both.",
            search_aliases=["happyhorse", "continue", "longer video", "last frame", "chain", "loop", "magihuman"],
            inputs=[
                io.Video.Input("video", tooltip="The finished clip, from HappyHorse Decode or HappyHorse Join Clips."),
                io.Vae.Input("vae", tooltip="A video VAE that was loaded with an encoder (Wan2.2_VAE.pth)."),
                io.Vae.Input("audio_vae", tooltip="From Load HappyHorse Audio VAE."),
                io.Latent.Input(
                    "latent",
                    tooltip="From Empty HappyHorse Latent, in the size of the finished clip. Its length is that of the "
                    "next clip with the overlap.",
                ),
                io.Float.Input(
                    "overlap",
                    default=extend.OVERLAP_SECONDS,
                    min=1 / geometry.FRAME_RATE,
                    max=extend.MAX_OVERLAP_SECONDS,
                    step=1 / geometry.FRAME_RATE,
                    tooltip="Seconds at the end of the finished clip whose sound the next clip starts with. Its "
                    "frames are made again there, to the same sound. Longer keeps voices alike, shorter makes longer "
                    "videos; 0.04 takes the very last frame.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="For a sampler. Its first frame and sound are held."),
                io.Int.Output(display_name="OVERLAP", tooltip="The overlap in frames, for HappyHorse Join Clips."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, video: Input.Video, vae: object, audio_vae: object, latent: dict, overlap: float = extend.OVERLAP_SECONDS
    ) -> io.NodeOutput:
        video_latent, audio_latent = streams_of(latent)
        checks.check_image_encoder(vae, "vae")
        checks.check_audio_vae(audio_vae, "audio_vae")
        clip = components(video, "video")
        height, width = (side * geometry.SPATIAL_STRIDE for side in video_latent.shape[3:])
        check_size(clip, width, height)
        frames = clip.images.shape[0]
        if clip.audio is None:
            log.warning("HappyHorse: the clip has no sound; the next one goes on from its last picture alone.")
            overlap = 1 / geometry.FRAME_RATE
        shared = extend.overlap_frames(overlap, frames, geometry.frames_of_latent(video_latent.shape[2]))
        restart = clip.images[frames - shared : frames - shared + 1]
        check_socket("IMAGE", restart, "video")
        held_video = with_first_frame(video_latent, encode_image(vae, restart, width, height).to(video_latent))
        held_audio, held_audio_mask = audio_latent.clone(), audio_mask(audio_latent, latent)[:, :1].clone()
        if clip.audio is not None:
            waveform, sample_rate = checks.one_audio(clip.audio, "video")
            stretch = extend.stretch_to_hold(waveform, sample_rate, frames, shared)
            encoded = audio_vae.encode(stretch.sound.movedim(1, -1))
            held_audio[..., :shared] = stretch.held(encoded).to(held_audio)
            held_audio_mask[..., :shared] = 0
        out = {key: value for key, value in latent.items() if key != ORIGINAL}
        out["samples"] = NestedTensor([held_video, held_audio])
        out["noise_mask"] = NestedTensor([first_frame_mask(held_video, latent), held_audio_mask])
        return io.NodeOutput(out, shared)


class HappyHorseJoinClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseJoinClips",
            display_name="HappyHorse Join Clips",
            category="HappyHorse/decode",
            description="Makes one video of a clip and the one that HappyHorse Extend let go on from it: no picture "
            "twice, no step in the sound, picture and sound in step.",
            search_aliases=["happyhorse", "concatenate video", "append", "merge", "longer video", "magihuman"],
            inputs=[
                io.Video.Input("video", tooltip="The clip that came first: the one that HappyHorse Extend was given."),
                io.Video.Input("next_video", tooltip="The clip that was made to go on from it."),
                io.Int.Input(
                    "overlap",
                    default=round(extend.OVERLAP_SECONDS * geometry.FRAME_RATE),
                    min=1,
                    max=round(extend.MAX_OVERLAP_SECONDS * geometry.FRAME_RATE),
                    tooltip="Pictures that the two clips share. Connect it to OVERLAP of HappyHorse Extend.",
                ),
                io.Float.Input(
                    "crossfade_ms",
                    default=extend.FADE_MS,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    tooltip="Milliseconds over which the first clip's sound fades into the next one's, at most the "
                    "overlap.",
                    advanced=True,
                ),
            ],
            outputs=[io.Video.Output(display_name="VIDEO", tooltip="For Save Video, or to be extended again.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        video: Input.Video,
        next_video: Input.Video,
        overlap: int = round(extend.OVERLAP_SECONDS * geometry.FRAME_RATE),
        crossfade_ms: float = extend.FADE_MS,
    ) -> io.NodeOutput:
        clip, following = components(video, "video"), components(next_video, "next_video")
        check_size(clip, following.images.shape[2], following.images.shape[1], "next_video")
        frames = (clip.images.shape[0], following.images.shape[0])
        extend.check_overlap(overlap, *frames)
        wrong = extend.wrong_join(clip.images, following.images, overlap)
        if wrong is not None:
            log.warning("HappyHorse: %s. Connect OVERLAP of HappyHorse Extend, and the videos in order.", wrong)
        images = extend.join_frames(clip.images, following.images, overlap)
        audio = join_audio(clip.audio, following.audio, frames, overlap, crossfade_ms)
        joined = Types.VideoComponents(images=images, audio=audio, frame_rate=clip.frame_rate)
        return io.NodeOutput(InputImpl.VideoFromComponents(joined))


def components(video: Input.Video, field: str) -> Types.VideoComponents:
    """Frames [F, H, W, 3] and audio of a VIDEO that has the model's frame rate."""
    try:
        found = video.get_components()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{field}: the video can't be read: {one_line(str(error), 200)}") from error
    if not is_image(found.images):
        raise InputError(f"{field}: found {shown(found.images)} in a video, expected pictures.")
    if found.audio is not None:
        check_socket("AUDIO", found.audio, field)
        checks.one_audio(found.audio, field)
    if abs(found.frame_rate - geometry.FRAME_RATE) > 0.01:
        raise InputError(
            f"{field}: found {float(found.frame_rate):g} frames a second, expected {geometry.FRAME_RATE}, as the "
            "model makes them."
        )
    if found.images.shape[0] == 0:
        raise InputError(f"{field}: found a video without frames.")
    return replace(found, images=found.images[..., :3])


def check_size(clip: Types.VideoComponents, width: int, height: int, field: str = "latent") -> None:
    """Raises InputError unless ``field``, of that size, can be joined to the clip."""
    size = (clip.images.shape[2], clip.images.shape[1])
    if size != (width, height):
        raise InputError(
            f"{field}: found {width} x {height} pixels, expected {size[0]} x {size[1]}, the size of the clip that it "
            "goes on from. Change the size in Empty HappyHorse Latent, or resize the clip."
        )


def join_audio(
    first: dict | None, second: dict | None, frames: tuple[int, int], overlap: int, crossfade_ms: float
) -> dict | None:
    """The audio of both clips as one AUDIO at the first one's rate; silence where only one clip has audio."""
    if first is None and second is None:
        return None
    given = (("video", first), ("next_video", second))
    found = [None if audio is None else checks.one_audio(audio, field) for field, audio in given]
    if None in found:
        log.warning("HappyHorse: one of the clips has no sound; the video is silent there.")
    (before, rate), (after, other_rate) = (audio or (torch.zeros(1, 0), 0) for audio in found)
    rate = rate or other_rate
    if other_rate not in (0, rate):
        after = resample_fft(after, rate, other_rate)
    channels = max(before.shape[0], after.shape[0])
    before, after = (as_channels(waveform, channels) for waveform in (before, after))
    joined = extend.join_sound(before, after.to(before), rate, frames, overlap, crossfade_ms)
    return {"waveform": joined[None], "sample_rate": rate}


def as_channels(waveform: Tensor, channels: int) -> Tensor:
    """[C, N] -> [channels, N]: one channel is repeated."""
    if waveform.shape[0] not in (1, channels):
        raise InputError(
            f"next_video: found sounds of {waveform.shape[0]} and {channels} channels, expected the same number in "
            "both clips, or one."
        )
    return waveform.expand(channels, -1)
