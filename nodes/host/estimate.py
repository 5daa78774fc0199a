"""What a node is about to do, judged before it starts: memory that is not there is refused, long work is said.

Only of the processor's own memory, where a system lets a program go on until it ends it: what an accelerator does not
have its allocator refuses in words, and the host makes room on it.
"""

import logging
import sys
from collections.abc import Sequence
from math import prod

import comfy.model_management as mm
import psutil
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ...happyhorse_core import geometry
from ...happyhorse_core.dit.memory import activation_bytes, sampling_bytes
from ...happyhorse_core.errors import InputError
from ...happyhorse_core.estimate import Work, time_warning, tokens_of, work_of_call
from ...happyhorse_core.video_vae.image_encoder import WanImageEncoder, encoding_bytes
from .diffusion import LOCAL_LAYERS, HappyHorseModel

log = logging.getLogger("happyhorse")

CPU = torch.device("cpu")
WAY_OUT = "Choose a smaller size, fewer seconds or fewer clips at once."
LATENTS = 3
"""Copies of a latent that lie in the processor's memory wherever it is sampled: as it was, its noise, the result."""
SURE = 0.8
"""The part of the estimate of a step's memory that it takes at least: it is right within a fifth."""


def room() -> int:
    """Bytes that the system can still give to a program: free memory and swap, where it makes swap as needed all."""
    if sys.platform == "darwin":
        return mm.get_total_memory(CPU)
    return mm.get_free_memory(CPU) + psutil.swap_memory().free


def require_room(needed: float, device: torch.device, fields: str, what: str) -> None:
    """Raises InputError that names ``fields`` if the processor's memory can't hold ``what``, of ``needed`` bytes."""
    if device.type == "cpu" and needed > (free := room()):
        raise InputError(
            f"{fields}: found {what}, which takes {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are "
            f"free. {WAY_OUT}"
        )


def check_latent(shape: geometry.ClipShape, batch: int, device: torch.device) -> None:
    """Raises InputError for an empty latent that no sampler can fill, and warns of clips that can't be decoded."""
    what = f"{batch} x {shape.video_frames} frames of {shape.width} x {shape.height}"
    fields = "width, height, seconds, batch_size"
    require_room(LATENTS * batch * shape.latent_bytes, device, fields, f"{what} to be sampled")
    decoded, free = batch * frame_bytes(shape.video_latent), room()
    if decoded > free:
        log.warning(
            "HappyHorse: %s take %.1f GiB of memory once they are decoded, and %.1f GiB are free. %s",
            what,
            decoded / 2**30,
            free / 2**30,
            WAY_OUT,
        )


def check_encoding(vae: VAE, width: int, height: int, fields: str) -> None:
    """Raises InputError if memory can't hold what our encoder makes of a picture of so many pixels."""
    still = getattr(vae.first_stage_model, "still", None)
    if isinstance(still, WanImageEncoder):
        needed = encoding_bytes(still.config, height, width, vae.vae_dtype.itemsize)
        require_room(needed, vae.device, fields, f"a picture of {width} x {height} to be encoded")


def check_decoding(video: Sequence[int], field: str) -> None:
    """Raises InputError if memory can't hold the frames of a latent [B, 48, T, H, W], as the host keeps them."""
    stride = geometry.SPATIAL_STRIDE
    clips = f"{video[0]} x {geometry.frames_of_latent(video[2])} frames of {video[4] * stride} x {video[3] * stride}"
    require_room(video[0] * frame_bytes(video[1:]), mm.intermediate_device(), field, f"{clips} to be decoded")


def frame_bytes(video: Sequence[int]) -> int:
    """Bytes of the frames of one clip of [48, T, H, W] as the host keeps them."""
    frames = geometry.frames_of_latent(video[1])
    return 3 * frames * prod(video[2:]) * geometry.SPATIAL_STRIDE**2 * mm.intermediate_dtype().itemsize


def check_sampling(
    model: ModelPatcher, video: Sequence[int], audio: Sequence[int], texts: Sequence[int], steps: int, fields: str
) -> None:
    """Raises InputError if memory can't hold the steps of a batch of clips, and warns if they will take long.

    ``video`` is [B, 48, T, H, W] and ``audio`` [B, 64, A]. Each step calls the model once for each of ``texts``, which
    are lengths in tokens.
    """
    inner: HappyHorseModel = model.model
    config, batch = inner.model_config.transformer, video[0]
    compute = inner.manual_cast_dtype if inner.manual_cast_dtype is not None else inner.get_dtype()
    dtype = compute if compute in inner.model_config.supported_inference_dtypes else torch.bfloat16
    sequences = [tokens_of(video, audio, text) for text in texts]
    longest = max(tokens.total for tokens in sequences)
    latents = 4 * (prod(video) + prod(audio))
    needed = LATENTS * latents
    if model.load_device.type == "cpu":
        activations = int(SURE * activation_bytes(batch * longest, config.hidden_size, dtype.itemsize))
        needed = sampling_bytes(activations, latents, multistep=False)
    stride = geometry.SPATIAL_STRIDE
    what = f"{batch} x {geometry.frames_of_latent(video[2])} frames of {video[4] * stride} x {video[3] * stride}"
    require_room(needed, CPU, fields, f"{what} to be sampled")
    local = model.model_options.get("transformer_options", {}).get(LOCAL_LAYERS)
    work = sum((work_of_call(config, tokens, local) for tokens in sequences), Work(0, 0)) * (batch * steps)
    try:
        warning = time_warning(
            work, batch * longest, steps * len(texts), head_dim=config.head_dim, device=model.load_device, dtype=dtype
        )
    except torch.OutOfMemoryError:
        return  # A card that is full can't be timed; for the steps themselves the host makes room.
    if warning is not None:
        log.warning("HappyHorse: %s", warning)
