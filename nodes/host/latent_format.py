"""How ComfyUI sees our latents: Wan2.2's video latents with an audio stream beside them."""

from collections.abc import Sequence

import comfy.latent_formats
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...happyhorse_core import geometry

VIDEO_LATENT = f"video [batch, {geometry.VIDEO_CHANNELS}, frames, height, width] with even height and width"
AUDIO_LATENT = f"audio [batch, {geometry.AUDIO_CHANNELS}, length]"


def is_pair(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether streams of these shapes are what the model takes: ``VIDEO_LATENT`` and ``AUDIO_LATENT``, none empty."""
    if [len(shape) for shape in shapes] != [5, 3]:
        return False
    video, audio = shapes
    channels = (video[1], audio[1]) == (geometry.VIDEO_CHANNELS, geometry.AUDIO_CHANNELS)
    return channels and video[3] % 2 == 0 and video[4] % 2 == 0 and all(video) and all(audio)


def middle_frame(x0: Tensor) -> Tensor:
    """[B, 48, T, H, W] -> [B, 48, H, W]. In image to video the first frame is given: nothing to preview."""
    return x0[:, :, x0.shape[2] // 2] if x0.ndim == 5 else x0


class HappyHorseLatent(comfy.latent_formats.Wan22):
    """Wan2.2's channel statistics for the video stream; the audio stream is used as the autoencoder makes it."""

    temporal_downscale_ratio = geometry.TEMPORAL_STRIDE

    def __init__(self) -> None:
        super().__init__()
        # Caches of the host cut every stream to ``latent_channels``; the larger stream decides.
        self.latent_channels = geometry.AUDIO_CHANNELS
        self.latent_rgb_factors_reshape = middle_frame

    def fix_empty_latent(self, latent: Tensor) -> Tensor | NestedTensor:
        """An empty latent of another node becomes an empty pair: video [B, 48, T, H, W], audio [B, 64, A]."""
        if latent.ndim != 5:
            return latent
        video = latent[:, : geometry.VIDEO_CHANNELS]
        frames = geometry.frames_of_latent(video.shape[2])
        audio = torch.zeros(video.shape[0], geometry.AUDIO_CHANNELS, frames, device=video.device, dtype=video.dtype)
        return NestedTensor([video, audio])
