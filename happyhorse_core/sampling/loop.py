"""The denoising loop over both streams."""

from collections.abc import Callable

from torch import Tensor

from ..progress import Progress, silent
from .guidance import RELEASED, Scales, guide
from .solver import Solver

Velocity = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""``velocity(video, audio, sigma)`` -> the velocities of both, noise minus clean."""


def hold_first_frame(video: Tensor, image_latent: Tensor | None) -> Tensor:
    """Video [B, 48, T, H, W] with its first latent frame replaced by ``image_latent`` [B or 1, 48, 1, H, W], if any."""
    if image_latent is None:
        return video
    video = video.clone()
    video[:, :, :1] = image_latent
    return video


def denoise(
    velocity: Velocity,
    video: Tensor,
    audio: Tensor,
    sigmas: Tensor,
    video_solver: Solver,
    audio_solver: Solver | None,
    *,
    image_latent: Tensor | None = None,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """Runs all steps of ``sigmas`` [steps + 1] and returns the clean latents.

    video [B, 48, T, H, W] and audio [B, 64, A] are noise at sigmas[0]. With ``image_latent`` the first latent frame is
    that picture before every call of the model and at the end. Without an ``audio_solver`` the audio is not stepped:
    it stays what it is, which is how a given soundtrack is held, with the distilled model as with the base model.
    """
    steps = len(sigmas) - 1
    for index, sigma in enumerate(sigmas.tolist()[:-1]):
        video = hold_first_frame(video, image_latent)
        video_velocity, audio_velocity = velocity(video, audio, sigma)
        video = video_solver.step(index, video, video - sigma * video_velocity)
        if audio_solver is not None:
            audio = audio_solver.step(index, audio, audio - sigma * audio_velocity)
        progress(index + 1, steps)
    return hold_first_frame(video, image_latent), audio


def guided(positive: Velocity, negative: Velocity, scales: Scales = RELEASED) -> Velocity:
    """The base model's velocity: the positive prompt's, pushed away from the negative prompt's, per stream."""

    def velocity(video: Tensor, audio: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        cond, uncond = positive(video, audio, sigma), negative(video, audio, sigma)
        of_video, of_audio = scales.at(sigma)
        return guide(cond[0], uncond[0], of_video), guide(cond[1], uncond[1], of_audio)

    return velocity
