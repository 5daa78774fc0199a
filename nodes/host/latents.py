"""A latent as nodes hand it around: the pair of streams, the noise mask that holds parts of it, the original audio."""

from typing import Any

import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...happyhorse_core.errors import InputError
from ...happyhorse_core.media.image import fit_image
from ...happyhorse_core.video_vae.latent_statistics import denormalise
from . import checks
from .estimate import check_encoding
from .latent_format import AUDIO_LATENT, VIDEO_LATENT, is_pair

Latent = dict[str, Any]
"""The host's LATENT: ``samples`` and, where given, ``noise_mask``, ``batch_index`` and keys of other nodes."""

CATEGORY = "HappyHorse/latent"
"""Where the menu lists nodes that make and change latents."""
ORIGINAL = "happyhorse_audio"
"""Key of a latent: ``waveform`` [1, C, N] and ``sample_rate`` of the audio that drives it, as they were given, and
``latent`` [1, 64, A], what the audio was encoded to."""
SAME = 0.02
"""Two audio latents that differ by less than this part of the largest value are the same: some samplers leave noise."""


# the pair of streams


def streams_of(latent: Latent) -> tuple[Tensor, Tensor]:
    """The video and the audio of a latent, or an InputError that says what was found."""
    samples = latent["samples"]
    streams = list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]
    found = " and ".join(str(list(stream.shape)) for stream in streams)
    if not is_pair([stream.shape for stream in streams]):
        raise InputError(
            f"latent: found {found}, expected {VIDEO_LATENT} and {AUDIO_LATENT}. Use Empty HappyHorse Latent."
        )
    video, audio = streams
    if video.shape[0] != audio.shape[0]:
        raise InputError(f"latent: found {found}, expected the same batch in both. Join streams of equal batches.")
    mask = _given_masks(latent)[1]
    if mask is not None and mask.ndim != 3:
        raise InputError(
            f"latent: found a noise mask of shape {list(mask.shape)} on the sound, expected [batch, 1, length]. Set "
            "Latent Noise Mask is for frames: to hold sound use HappyHorse Audio To Video."
        )
    return video, audio


def as_pair(model: ModelPatcher, latent: Latent) -> Latent:
    """A latent that is certainly video and audio. Empty ones of other nodes are brought to it, as core samplers do."""
    ratios = (latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal"))
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    if not samples.is_nested and torch.count_nonzero(samples) == 0:
        # ComfyUI 0.33.0 fits size and channels only; later versions ask the latent format for the rest themselves.
        samples = model.get_model_object("latent_format").fix_empty_latent(samples)
    fitted = {**latent, "samples": samples}
    streams_of(fitted)
    return fitted


# the video: frames that are held, frames to be made


def blank(video: Tensor) -> Tensor:
    """Raw [B, 48, T, H, W] of frames to be made: the mean of the latent space, which the sampler takes for zero."""
    return denormalise(torch.zeros_like(video))


def encode_image(vae: object, image: Tensor, width: int, height: int) -> Tensor:
    """An IMAGE of one frame -> raw [1, 48, 1, height / 16, width / 16]: cut to the clip's shape, resized, encoded.

    Raises InputError that names the input ``vae`` or ``image``.
    """
    checks.check_image_encoder(vae, "vae")
    picture = checks.one_image(image, "image")
    check_encoding(vae, width, height, "latent")
    frame = fit_image(picture, width, height)
    return vae.encode((frame[:, :, 0].movedim(1, -1) + 1) / 2)


def with_first_frame(video: Tensor, first: Tensor) -> Tensor:
    """Raw [B, 48, T, H, W] with its first frame replaced by raw [1, 48, 1, H, W]. Empty frames become blank ones."""
    held = blank(video) if torch.count_nonzero(video) == 0 else video.clone()
    held[:, :, :1] = first
    return held


def with_length(video: Tensor, mask: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Raw [B, 48, T, H, W] and its mask [B, 1, T, H, W] cut, or filled up with blank frames, to ``frames``."""
    kept = min(video.shape[2], frames)
    longer = blank(video.new_empty(*video.shape[:2], frames, *video.shape[3:]))
    if torch.count_nonzero(video):
        longer[:, :, :kept] = video[:, :, :kept]
    longer_mask = mask.new_ones(*mask.shape[:2], frames, *mask.shape[3:])
    longer_mask[:, :, :kept] = mask[:, :, :kept]
    return longer, longer_mask


# noise masks: 0 holds, 1 is made


def video_mask(video: Tensor, latent: Latent) -> Tensor:
    """[B, 1, T, H, W], a new tensor: what the latent's own mask says of the video, 1 without one."""
    mask = torch.ones(video.shape[0], 1, *video.shape[2:], device=video.device, dtype=video.dtype)
    given = _given_masks(latent)[0]
    if given is None:
        return mask
    return comfy.utils.reshape_mask(given.to(mask), video.shape)[:, :1].expand_as(mask).clone()


def audio_mask(audio: Tensor, latent: Latent) -> Tensor:
    """[B, 1, A]: what the latent's own mask says of the audio, 1 without one."""
    given = _given_masks(latent)[1]
    return torch.ones(audio.shape[0], 1, audio.shape[2], device=audio.device) if given is None else given


def first_frame_mask(video: Tensor, latent: Latent) -> Tensor:
    """[B, 1, T, H, W]: 0 on the first frame, elsewhere what the latent's own mask says, 1 without one."""
    mask = video_mask(video, latent)
    mask[:, :, :1] = 0
    return mask


def fresh_mask(video: Tensor, hold_first: bool) -> Tensor:
    """[B, 1, T, H, W] float32: 1 everywhere, but 0 on the first frame if it is held."""
    mask = torch.ones(video.shape[0], 1, *video.shape[2:], device=video.device)
    mask[:, :, : int(hold_first)] = 0
    return mask


def first_frame_is_held(latent: Latent) -> bool:
    """Whether the latent's noise mask keeps the first frame of the video, as image to video does."""
    mask = _given_masks(latent)[0]
    return mask is not None and mask.ndim == 5 and torch.count_nonzero(mask[:, :, :1]) == 0


def _given_masks(latent: Latent) -> tuple[Tensor | None, Tensor | None]:
    """The masks of video and audio. A mask of another node, which knows of one stream, is the video's."""
    mask = latent.get("noise_mask")
    if mask is None:
        return None, None
    if getattr(mask, "is_nested", False):
        video, audio = mask.unbind()[:2]
        return video, audio
    return mask, None


# the audio that drives a clip


def original_audio(latent: Latent, audio: Tensor) -> dict[str, Any] | None:
    """The AUDIO that drives the clip, if ``audio`` [B, 64, A] still is what it was encoded to.

    Not if the audio was made anew, replaced by another or lengthened after it had been given.
    """
    given = latent.get(ORIGINAL)
    if given is None or audio.shape[2] > given["latent"].shape[2]:
        return None
    encoded = given["latent"].to(audio)[..., : audio.shape[2]]
    if (audio - encoded).abs().max() > SAME * encoded.abs().max():
        return None
    waveform = given["waveform"].expand(audio.shape[0], -1, -1)
    return {"waveform": waveform, "sample_rate": given["sample_rate"]}
