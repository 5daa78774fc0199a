"""Classifier-free guidance of the base and super-resolution models; the distilled model needs none."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import timestep

VIDEO_SCALE_EARLY = 5.0
VIDEO_SCALE_LATE = 2.0
LATE_FROM_TIMESTEP = 500
AUDIO_SCALE = 5.0
MAX_SCALE = 100.0

SR_SCALE = 3.5
SR_FIRST_FRAMES = 13
SR_FIRST_SCALE = 2.0


def video_scale(
    sigma: float,
    early: float = VIDEO_SCALE_EARLY,
    late: float = VIDEO_SCALE_LATE,
    late_from: int = LATE_FROM_TIMESTEP,
) -> float:
    """Guidance of the picture at a noise level: ``early`` while the timestep is above ``late_from``, ``late`` after."""
    return early if timestep(sigma) > late_from else late


@dataclass(frozen=True)
class Scales:
    """Guidance of the picture above the timestep ``late_from`` and from there on, and of the sound."""

    early: float = VIDEO_SCALE_EARLY
    late: float = VIDEO_SCALE_LATE
    late_from: int = LATE_FROM_TIMESTEP
    audio: float = AUDIO_SCALE

    def at(self, sigma: float) -> tuple[float, float]:
        """The scales of picture and sound at a noise level."""
        return video_scale(sigma, self.early, self.late, self.late_from), self.audio


RELEASED = Scales()
"""Those of the released base model."""


def guide(positive: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """negative + scale * (positive - negative), for velocities or for predicted clean latents alike."""
    return negative + scale * (positive - negative)


def sr_video_scale(latent_frames: int, scale: float = SR_SCALE) -> Tensor:
    """[1, 1, T, 1, 1] float32: super-resolution's guidance, at most 2 for the first 13 latent frames.

    The lower start keeps the given first picture from burning out.
    """
    scales = torch.full((1, 1, latent_frames, 1, 1), scale)
    scales[:, :, :SR_FIRST_FRAMES].clamp_(max=SR_FIRST_SCALE)
    return scales
