"""The super-resolution stage: the first stage's latents, enlarged, made noisy again and denoised in five steps.

Source: the released pipeline. The noise formula is that of a variance-preserving diffusion, not of the flow that the
steps afterwards follow; the full schedule of five steps runs all the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dit.roles import SR_540P, SR_1080P, Role
from .errors import InputError
from .geometry import SIZE_STEP, SPATIAL_STRIDE, snap_size
from .progress import Progress, silent
from .sampling.loop import Velocity, denoise
from .sampling.schedule import flow_sigmas
from .sampling.solver import UniPC

TRAINED_SIZES = {SR_540P.name: (896, 512), SR_1080P.name: (1920, 1088)}
"""Width and height in pixels that each model was trained for."""
ASPECT_TOLERANCE = 0.05
"""How far width / height may be from that of the trained size, as a part of it, before ghosting is to be expected."""
STEPS = 5
NOISE_INDEX = 220
AUDIO_NOISE = 0.7
TABLE_LENGTH = 1000


def zero_snr_table() -> Tensor:
    """[1000] float32, falling from almost 1 to 0: how much of the signal is left at each entry.

    sqrt of the cumulative product of 1 - beta, betas a squared line from sqrt(0.00085) to sqrt(0.012), rescaled to end
    at zero signal (Lin et al., arXiv 2305.08891, algorithm 1).
    """
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, TABLE_LENGTH, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0).float().sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    return (signal - last) * (first / (first - last))


def enlarge(video: Tensor, height: int, width: int) -> Tensor:
    """Video latent [B, 48, T, H, W] -> [B, 48, T, height, width], trilinear with aligned corners, in latent pixels.

    Raises InputError for a target smaller than the source.
    """
    if height < video.shape[3] or width < video.shape[4]:
        pixels = [size * SPATIAL_STRIDE for size in (width, height, video.shape[4], video.shape[3])]
        found, least = "{} x {}".format(*pixels[:2]), "{} x {}".format(*pixels[2:])
        raise InputError(f"target size: found {found} pixels, expected at least the source's {least}.")
    return F.interpolate(video, size=(video.shape[2], height, width), mode="trilinear", align_corners=True)


def renoise(video: Tensor, noise: Tensor, signal: float | None = None) -> Tensor:
    """signal * video + sqrt(1 - signal^2) * noise; ``signal`` is 0.8389 of the released table unless given."""
    signal = float(zero_snr_table()[NOISE_INDEX]) if signal is None else signal
    return signal * video + (1 - signal**2) ** 0.5 * noise


def mix_audio(audio: Tensor, noise: Tensor, amount: float = AUDIO_NOISE) -> Tensor:
    """Audio latent [B, 64, A] as the super-resolution model hears it: 0.7 noise and 0.3 sound. It is never stepped."""
    return amount * noise + (1 - amount) * audio


def target_size(role: Role, source: tuple[int, int], width: int = 0, height: int = 0) -> tuple[int, int]:
    """(width, height) in pixels, multiples of 32, of the enlarged clip; ``source`` is the size of the clip at hand.

    A side of 0 is chosen: both from the size that ``role`` was trained for, or where the clip has another shape, from
    its number of pixels; one of them from the other and the clip's shape. Raises InputError for a side below the
    source's or above 4096.
    """
    shape = source[0] / source[1]
    trained = TRAINED_SIZES[role.name]
    if not width and not height:
        fits = _deviation(source, trained) <= ASPECT_TOLERANCE
        width, height = trained if fits else _sides(shape, (trained[0] * trained[1]) ** 0.5)
    elif not width:
        width = _nearest(height * shape)
    elif not height:
        height = _nearest(width / shape)
    size = snap_size(width, height)
    for name, found, least in zip(("width", "height"), size, source, strict=True):
        if found < least:
            raise InputError(
                f"{name}: found {found}, expected at least {least}, as the clip already has. Choose a larger size, "
                "or skip this stage."
            )
    return size


def shape_warnings(role: Role, source: tuple[int, int], target: tuple[int, int]) -> list[str]:
    """What is to be said of a target size whose shape is off by more than 5%: from the trained one, from the clip's."""
    found, trained = "{} x {}".format(*target), "{} x {}".format(*TRAINED_SIZES[role.name])
    warnings = []
    if _deviation(target, TRAINED_SIZES[role.name]) > ASPECT_TOLERANCE:
        warnings.append(f"{found} has another shape than {trained}, for which {role.name} was trained: expect ghosting")
    if _deviation(target, source) > ASPECT_TOLERANCE:
        warnings.append(f"{found} has another shape than the clip of {source[0]} x {source[1]}: it is stretched")
    return warnings


def _deviation(size: tuple[int, int], other: tuple[int, int]) -> float:
    ratio = size[0] * other[1] / (size[1] * other[0])
    return max(ratio, 1 / ratio) - 1


def _sides(shape: float, side: float) -> tuple[int, int]:
    """Width and height of a clip of a shape with as many pixels as a square of ``side``."""
    return _nearest(side * shape**0.5), _nearest(side / shape**0.5)


def _nearest(pixels: float) -> int:
    return max(1, round(pixels / SIZE_STEP)) * SIZE_STEP


def start(
    video: Tensor, audio: Tensor, size: tuple[int, int], noise_video: Tensor, noise_audio: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the steps start: the picture, enlarged to ``size`` and noisy, and the sound as the model hears it.

    video [B, 48, T, h, w] normalised and audio [B, 64, A] are the first stage's; ``size`` is (width, height) in pixels;
    the noises have the shapes of the results, [B, 48, T, height / 16, width / 16] and [B, 64, A].
    """
    width, height = (side // SPATIAL_STRIDE for side in size)
    return renoise(enlarge(video, height, width), noise_video), mix_audio(audio, noise_audio)


def upscale(
    velocity: Velocity,
    video: Tensor,
    audio: Tensor,
    *,
    steps: int = STEPS,
    image_latent: Tensor | None = None,
    progress: Progress = silent,
) -> Tensor:
    """The enlarged video latent [B, 48, T, H, W], normalised, from what ``start`` returned.

    ``image_latent`` is the first picture, encoded at the target size. There is no audio among the results: the sound of
    the clip stays that of the first stage.
    """
    sigmas = flow_sigmas(steps)
    clean, _ = denoise(
        velocity, video, audio, sigmas, UniPC(sigmas), None, image_latent=image_latent, progress=progress
    )
    return clean
