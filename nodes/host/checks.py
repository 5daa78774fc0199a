"""What a socket holds, checked where it enters a node: wires of the same colour can carry another model's data."""

from typing import Any

import torch
from torch import Tensor

from ...happyhorse_core import geometry
from ...happyhorse_core.errors import InputError
from ...happyhorse_core.media.sound import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from .diffusion import HappyHorseModel
from .inputs import shown
from .text_encoder import HostTextModel
from .vae import AudioAutoencoder, VideoAutoencoder


def check_model(model: Any, field: str = "model") -> HappyHorseModel:
    """The sampling wrapper inside a MODEL, or an InputError for a model of another kind."""
    inner = model.model
    if not isinstance(inner, HappyHorseModel):
        raise InputError(
            f"{field}: found a {type(inner).__name__} model, expected one from Load HappyHorse Model "
            "(or the same with LoRAs and patches on it)."
        )
    return inner


def check_generator(model: HappyHorseModel) -> None:
    """Raises InputError for a checkpoint that enlarges clips instead of making them."""
    if model.role.is_super_resolution:
        raise InputError(
            f"model: found the {model.role.name} super-resolution model, expected a distilled or base one. It only "
            "enlarges a clip that is already there; load the distill folder to make one."
        )


def check_enlarger(model: HappyHorseModel, field: str) -> None:
    """Raises InputError for a checkpoint that makes clips instead of enlarging them."""
    if not model.role.is_super_resolution:
        raise InputError(
            f"{field}: found the {model.role.name} model, expected 540p_sr or 1080p_sr. Load one of those folders; if "
            "this file is one of them, say so with role in Load HappyHorse Model."
        )


def check_text(conditioning: list, model: HappyHorseModel, field: str, *, may_be_empty: bool = False) -> None:
    """Raises InputError for text of another encoder, and for a prompt without words unless it ``may_be_empty``."""
    width = model.model_config.transformer.text_in_channels
    if not conditioning:
        raise InputError(f"{field}: found no conditioning, expected a prompt from CLIP Text Encode.")
    for text, _ in conditioning:
        if text.shape[-1] != width:
            raise InputError(
                f"{field}: found text embeddings of width {text.shape[-1]}, expected {width}. Encode the prompt with "
                "the CLIP of Load HappyHorse Text Encoder."
            )
        if not may_be_empty and text.shape[1] == 1 and torch.count_nonzero(text) == 0:
            raise InputError(f"{field}: found an empty prompt, expected a description of the scene.")


def check_clip(clip: Any, field: str) -> None:
    """Raises InputError unless ``clip`` is the text encoder that the model was trained with."""
    inner = clip.cond_stage_model
    if not isinstance(inner, HostTextModel):
        raise InputError(
            f"{field}: found {type(inner).__name__}, expected the CLIP of Load HappyHorse Text Encoder, the only one "
            "whose words the model knows."
        )


def check_video_vae(vae: Any, field: str) -> None:
    """Raises InputError unless ``vae`` decodes Wan2.2's 48-channel video latents."""
    inner = vae.first_stage_model
    if isinstance(inner, VideoAutoencoder):
        return
    if isinstance(inner, AudioAutoencoder):
        raise InputError(f"{field}: found an audio VAE, expected a video VAE. Swap the two wires.")
    if vae.latent_channels != geometry.VIDEO_CHANNELS or vae.latent_dim != 3:
        raise InputError(
            f"{field}: found a VAE of {vae.latent_channels} latent channels, expected the {geometry.VIDEO_CHANNELS} of "
            "Wan2.2. Use Load HappyHorse Video VAE."
        )


def check_image_encoder(vae: Any, field: str) -> None:
    """Raises InputError unless ``vae`` is for video and can encode an image."""
    check_video_vae(vae, field)
    inner = vae.first_stage_model
    if isinstance(inner, VideoAutoencoder):
        inner.check_encoder(field)


def check_audio_vae(vae: Any, field: str) -> None:
    """Raises InputError unless ``vae`` is ours: another Oobleck would play the audio at the wrong speed."""
    inner = vae.first_stage_model
    if isinstance(inner, VideoAutoencoder):
        raise InputError(f"{field}: found a video VAE, expected an audio VAE. Swap the two wires.")
    if not isinstance(inner, AudioAutoencoder):
        raise InputError(
            f"{field}: found {type(inner).__name__}, expected the VAE of Load HappyHorse Audio VAE, which knows the "
            "model's sample rate."
        )


def one_image(image: Tensor, field: str) -> Tensor:
    """An IMAGE of one frame, [1, H, W, 1, 3 or 4] in [0, 1] -> [1, 3, H, W] in [-1, 1]; transparency to black."""
    if image.shape[0] != 1:
        raise InputError(f"{field}: found {image.shape[0]} images, expected one. Pick one with Image From Batch.")
    if image.shape[-1] not in (1, 3, 4):
        raise InputError(f"{field}: found {image.shape[-1]} channels, expected 3 (RGB), 1 (grey) or 4 (RGBA).")
    if image.numel() == 0:
        raise InputError(f"{field}: found {image.shape[2]} x {image.shape[1]} pixels, expected a picture.")
    pixels = image[..., :3] * image[..., 3:4] if image.shape[-1] == 4 else image
    return pixels.expand(-1, -1, -1, 3).movedim(-1, 1).float() * 2 - 1


def one_audio(audio: Any, field: str) -> tuple[Tensor, int]:
    """An AUDIO of one item, checked by kind -> its waveform [C, N] and its sample rate, both as they are."""
    waveform = audio["waveform"]
    if waveform.shape[0] != 1 or waveform.shape[1] == 0:
        raise InputError(
            f"{field}: found a waveform of shape {list(waveform.shape)}, expected one sound, [1, channels, samples]. "
            "Connect the sounds of a batch one by one."
        )
    rate = audio["sample_rate"]
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise InputError(
            f"{field}: the sound has a sample rate of {shown(rate)} Hz, expected {MIN_SAMPLE_RATE:,} to "
            f"{MAX_SAMPLE_RATE:,}."
        )
    return waveform[0], int(rate)
