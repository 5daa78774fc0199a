"""Pieces of the world's sounds for the audio autoencoder: mostly as they are, some louder, faster or out of step."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from happyhorse_core.geometry import SAMPLES_PER_AUDIO_LATENT

from .world.scene import sample_scene
from .world.sound import sound

KINDS = {"bouncing": 0.25, "sliding left": 0.1, "sliding right": 0.1, "orbiting": 0.1, "pulsing": 0.2, "speaking": 0.25}
"""How often each kind of sound is drawn."""
FASTER_PART, SPEEDS = 0.1, (0.8, 1.12)
LOUDER_PART, GAINS = 0.2, (0.4, 1.25)
UNALIGNED_PART = 0.15
"""The part of pieces that begin anywhere; the others begin where a latent begins, as whole clips do."""
PANNED_PART, PAN_SHAPE = 0.4, 0.5
"""The part of pieces that are put in one place, often far left or right: the world's are hardly ever, and without
those the side channel is so weak beside the mid channel that it is not learnt. The shape is of a beta distribution."""
HEARD, TRIES = 0.01, 4
"""Effective value from which a piece is no silence, and how often one is sought."""

Waves = NDArray[np.float32]


def sample_sound(rng: np.random.Generator, kind: str, *, held_out: bool | None = False) -> Waves:
    """[2, 51 * 2048]: the sound of a random scene of a kind of KINDS."""
    if kind == "speaking":
        return sound(sample_scene(rng, kind="face"))
    return sound(sample_scene(rng, held_out=held_out, motion=kind))


@dataclass(frozen=True)
class SoundPool:
    """Whole clips of each kind, made once since making them takes longer than encoding them."""

    clips: dict[str, list[Waves]]

    @classmethod
    def make(cls, seed: int, per_kind: int) -> "SoundPool":
        """Clips of scenes of the seed."""
        rng = np.random.default_rng(seed)
        return cls({kind: [sample_sound(rng, kind) for _ in range(per_kind)] for kind in KINDS})

    def draw(self, batch: int, latents: int, generator: torch.Generator) -> Tensor:
        """[batch, 2, latents * 2048]: pieces of random clips."""
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        kinds = rng.choice(list(KINDS), size=batch, p=list(KINDS.values()))
        length = latents * SAMPLES_PER_AUDIO_LATENT
        pieces = [_vary(self._clip(kind, rng), length, rng) for kind in kinds]
        return torch.from_numpy(np.stack(pieces))

    def _clip(self, kind: str, rng: np.random.Generator) -> Waves:
        return self.clips[kind][rng.integers(len(self.clips[kind]))]


def _vary(clip: Waves, length: int, rng: np.random.Generator) -> Waves:
    speed = rng.uniform(*SPEEDS) if rng.random() < FASTER_PART else 1.0
    if length * speed > clip.shape[1]:
        speed = 1.0
    grid = 1 if rng.random() < UNALIGNED_PART else SAMPLES_PER_AUDIO_LATENT
    needed = int(np.ceil(length * speed))
    for _ in range(TRIES):
        start = grid * int(rng.integers((clip.shape[1] - needed) // grid + 1))
        piece = clip[:, start : start + needed]
        if np.sqrt(np.mean(piece**2)) > HEARD:
            break
    if speed != 1.0:
        piece = _played(piece, length, speed)
    if rng.random() < PANNED_PART:
        place = np.pi / 2 * rng.beta(PAN_SHAPE, PAN_SHAPE)
        piece = np.stack([np.cos(place), np.sin(place)])[:, None] * piece.mean(0) * np.sqrt(2)
    elif rng.random() < 0.5:
        piece = piece[::-1]
    gain = rng.uniform(*GAINS) if rng.random() < LOUDER_PART else 1.0
    return (piece * gain).astype(np.float32)


def _played(piece: Waves, length: int, speed: float) -> Waves:
    """The beginning of a piece at another speed, and so another pitch; straight lines between samples are enough."""
    places = np.arange(length) * speed
    return np.stack([np.interp(places, np.arange(piece.shape[1]), side) for side in piece])
