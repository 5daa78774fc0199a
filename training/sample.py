"""Makes clips in batches with the shipped files, through the loaders and the sampling loop of the core."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from happyhorse_core.audio_vae.encode import encode_soundtrack
from happyhorse_core.audio_vae.load import load_oobleck
from happyhorse_core.audio_vae.model import Oobleck
from happyhorse_core.audio_vae.resample import resample_fft
from happyhorse_core.dit.load import inspect_transformer, load_transformer
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.dit.roles import ROLES
from happyhorse_core.geometry import OUTPUT_SAMPLE_RATE, ClipShape
from happyhorse_core.model_folder import find_models
from happyhorse_core.negative_prompt import DEFAULT_NEGATIVE_PROMPT
from happyhorse_core.pipeline import to_bytes
from happyhorse_core.precision import usual_dtype
from happyhorse_core.sampling.guidance import Scales
from happyhorse_core.sampling.loop import Velocity, denoise, guided
from happyhorse_core.sampling.schedule import flow_sigmas
from happyhorse_core.sampling.solver import DistilledSolver, Solver, UniPC, seeded_noise
from happyhorse_core.text.load import TextEncoder, load_text_encoder
from happyhorse_core.video_vae.image_encoder import WanImageEncoder
from happyhorse_core.video_vae.latent_statistics import denormalise, normalise
from happyhorse_core.video_vae.load import load_image_encoder, load_turbo_decoder
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder

SIZE, FRAMES = 64, 51
SHAPE = ClipShape(SIZE, SIZE, FRAMES)
BATCH = 16
STEPS = {"distilled": 8, "base": 32}
DTYPE = usual_dtype(torch.device("cpu"))
GUIDANCE = Scales(1.5, 1.5, audio=1.5)
"""Of the Pony's base: the released 5 is too much for a net as small as this one, and shapes bend inwards."""
PICTURE_GUIDANCE = Scales(1.0, 1.0, audio=1.0)
"""Of the same from a first picture: none, as when the base was distilled, so that what comes next fits the picture."""

Picture = NDArray[np.uint8]
Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Order:
    """What to make: a prompt, and perhaps a first picture [64, 64, 3] or a sound [2, N] at 51,200 Hz."""

    prompt: str
    seed: int
    picture: Picture | None = None
    sound: Waveform | None = None


@dataclass(frozen=True)
class Clip:
    """Pictures uint8 [F, H, W, 3] and the sound float32 [2, N] at 44,100 Hz."""

    frames: Picture
    waveform: Waveform


@dataclass
class Stack:
    """The parts of one model, loaded from a folder in the released layout; ``scales`` replace the usual ones."""

    role: str
    transformer: HappyHorseTransformer
    text: TextEncoder
    decoder: TurboDecoder
    image_encoder: WanImageEncoder
    audio: Oobleck
    scales: Scales | None = None
    embedded: dict[str, Tensor] = field(default_factory=dict)

    def embed(self, prompt: str) -> Tensor:
        """[1, L, C]; each prompt is encoded once."""
        if prompt not in self.embedded:
            self.embedded[prompt] = self.text.encode_prompt(prompt)
        return self.embedded[prompt]


def load_stack(folder: Path, role: str) -> Stack:
    """Loads the "distilled" or the "base" model with all that belongs to it."""
    files = find_models(folder, role, with_image=True)
    return Stack(
        role,
        load_transformer(inspect_transformer(files.transformer, role), dtype=DTYPE, device="cpu"),
        load_text_encoder(files.text_encoder, dtype=DTYPE),
        load_turbo_decoder(files.video_decoder, dtype=torch.float32),
        load_image_encoder(files.image_encoder, dtype=torch.float32),
        load_oobleck(files.audio_vae),
    )


@torch.inference_mode()
def make_clips(stack: Stack, orders: Sequence[Order], steps: int | None = None) -> Iterator[tuple[int, Clip]]:
    """Yields each order's number and its clip; orders of one kind and length of prompt are made together."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for number, order in enumerate(orders):
        length = stack.embed(order.prompt).shape[1]
        groups.setdefault((length, order.picture is None, order.sound is None), []).append(number)
    for members in groups.values():
        for first in range(0, len(members), BATCH):
            numbers = members[first : first + BATCH]
            clips = _make_batch(stack, [orders[n] for n in numbers], STEPS[stack.role] if steps is None else steps)
            yield from zip(numbers, clips, strict=True)


def _make_batch(stack: Stack, orders: Sequence[Order], steps: int) -> list[Clip]:
    draws = [seeded_noise(torch.Generator().manual_seed(order.seed)) for order in orders]

    def draw(index: int, like: Tensor) -> Tensor:
        return torch.cat([one(index, like[:1]) for one in draws])

    video = draw(0, torch.empty(len(orders), *SHAPE.video_latent))
    given = None if orders[0].sound is None else _encode_sounds(stack, orders)
    audio = draw(0, torch.empty(len(orders), *SHAPE.audio_latent)) if given is None else given
    picture = None if orders[0].picture is None else _encode_pictures(stack, orders)
    sigmas = flow_sigmas(steps)
    is_guided = ROLES[stack.role].guided

    def solver() -> Solver:
        return UniPC(sigmas) if is_guided else DistilledSolver(sigmas, draw)

    wanted = _velocity(stack, torch.cat([stack.embed(order.prompt) for order in orders]))
    if is_guided:
        unwanted = stack.embed(DEFAULT_NEGATIVE_PROMPT).expand(len(orders), -1, -1)
        usual = GUIDANCE if picture is None else PICTURE_GUIDANCE
        wanted = guided(wanted, _velocity(stack, unwanted), stack.scales or usual)
    video, audio = denoise(
        wanted, video, audio, sigmas, solver(), solver() if given is None else None, image_latent=picture
    )
    sounds = resample_fft(stack.audio.decode(audio)).numpy()
    if given is not None:
        sounds = [resample_fft(torch.from_numpy(order.sound)).numpy() for order in orders]
    frames = [to_bytes(pixels).numpy() for pixels in stack.decoder(denormalise(video))]
    return [Clip(*parts) for parts in zip(frames, sounds, strict=True)]


def _velocity(stack: Stack, text: Tensor) -> Velocity:
    return lambda video, audio, sigma: stack.transformer(video, audio, text, compute_dtype=DTYPE)


def _encode_sounds(stack: Stack, orders: Sequence[Order]) -> Tensor:
    return torch.cat([encode_soundtrack(stack.audio, torch.from_numpy(order.sound)[None]) for order in orders])


def _encode_pictures(stack: Stack, orders: Sequence[Order]) -> Tensor:
    pictures = torch.from_numpy(np.stack([order.picture for order in orders]))
    return normalise(stack.image_encoder(pictures.permute(0, 3, 1, 2)[:, :, None].float() / 127.5 - 1))


RATE = OUTPUT_SAMPLE_RATE
