"""Clips of the world as latents, made once by the trained autoencoders and kept in parts on the disk."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from happyhorse_core.audio_vae.load import load_oobleck
from happyhorse_core.model_folder import AUDIO_VAE, IMAGE_ENCODER
from happyhorse_core.text.tokenizer import GemmaTokenizer
from happyhorse_core.video_vae.load import load_image_encoder

from .audio_vae import encode_sounds
from .run import autocast
from .truth import truth_of
from .video_vae import encode_clips
from .video_vae_parts import ClipEncoder
from .world.draw import draw
from .world.prompts import prompt
from .world.scene import Scene, sample_scene
from .world.sound import sound

PART, BATCH = 500, 25
PROMPTS = 4
"""Prompts of each scene."""
SHARES = {"bouncing": 0.3, "speaking": 0.3, "pulsing": 0.1, "orbiting": 0.1, "sliding left": 0.1, "sliding right": 0.1}
"""How often each motion is drawn: where sound and picture have to meet to the moment, there is more to learn."""
EMPHASIS = {"bouncing": 0.75, "speaking": 0.4}
"""How often clips of a motion come, for each time that others do: there are three times as many of these two."""
SECOND_EMPHASIS = 2.0
"""The same of clips with a second shape, of which there are few."""
STILL_WEIGHT = 0.5
"""What a part of the latents counts that never changes in clips of a motion; the mean of all parts is 1. With 0.2 the
shapes that stand still were drawn carelessly, and through the decoder spoilt a given first picture too."""
SOUND_WEIGHTS = {"bouncing": 4.0, "speaking": 2.0}
"""What the sound counts in clips of a motion, 1 in all others: most of a clip with clicks is easy silence."""


def scene_of(seed: int, index: int) -> Scene:
    """The scene number ``index`` of a seed; combinations that are kept out never come."""
    rng = np.random.default_rng((seed, index))
    motion = rng.choice(list(SHARES), p=list(SHARES.values()))
    if motion == "speaking":
        return sample_scene(rng, kind="face")
    return sample_scene(rng, motion=str(motion), driven=is_driven(index))


def is_driven(index: int) -> bool:
    """Whether the sound of a clip tells its moments, and so is always given: two clips in five."""
    return index % 5 < 2


def emphasis_of(scene: Scene) -> float:
    """How often a clip of the scene comes, for each time that one of no emphasis does."""
    return EMPHASIS.get(scene.motion, 1.0) * (1.0 if scene.second is None else SECOND_EMPHASIS)


def prompts_of(seed: int, index: int, scene: Scene) -> list[str]:
    """The prompts of that scene."""
    rng = np.random.default_rng((seed, index, 1))
    return [prompt(scene, rng) for _ in range(PROMPTS)]


@torch.no_grad()
def make_clips(folder: Path, count: int, seed: int, models: Path) -> None:
    """Writes the latents of ``count`` scenes in parts, float16, by the autoencoders in ``models``.

    Parts that are there stay, and so do those that another process writes meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = [start for start in range(0, count, PART) if not _part(folder, start).exists()]
    if not starts:
        return
    video_encoder = ClipEncoder(load_image_encoder(models / IMAGE_ENCODER.places[0], dtype=torch.float32))
    sound_encoder = load_oobleck(models / AUDIO_VAE.places[0])
    for start in tqdm(starts, desc="clips", unit_scale=PART, unit="clip"):
        if _part(folder, start).exists():
            continue
        videos, sounds = [], []
        for first in range(start, start + PART, BATCH):
            scenes = [scene_of(seed, index) for index in range(first, first + BATCH)]
            pictures = torch.from_numpy(np.stack([draw(scene) for scene in scenes]))
            waves = torch.from_numpy(np.stack([sound(scene) for scene in scenes]))
            with autocast(torch.device("cpu")):  # the command line's precision
                videos.append(encode_clips(video_encoder, pictures).half())
            sounds.append(encode_sounds(sound_encoder, waves).half())
        made = {"video": torch.cat(videos).contiguous(), "audio": torch.cat(sounds).contiguous()}
        unfinished = folder / f"clips-{start:06d}.{os.getpid()}"
        save_file(made, unfinished)
        unfinished.replace(_part(folder, start))


def _part(folder: Path, start: int) -> Path:
    return folder / f"clips-{start:06d}.safetensors"


@dataclass(frozen=True)
class Batch:
    """Clips whose prompts are of one length: video [B, 48, T, H, W], audio [B, 64, A], token ids [B, L].

    ``weights`` are those of the video's parts, [B, 48, 1, H, W], and of the sound, [B, 1, 1]; they follow from the
    motion, which the prompt tells, so that what is predicted best under them is still the mean. ``truth`` [B, A, 5] is
    that of ``truth_of``; the sound of those that are ``driven`` [B] has to be given.
    """

    video: Tensor
    audio: Tensor
    ids: Tensor
    weights: tuple[Tensor, Tensor]
    truth: Tensor
    driven: Tensor


class Clips:
    """Latents video [N, 48, T, H, W] and audio [N, 64, A] with the prompts of each, by the prompts' length."""

    def __init__(self, folder: Path, seed: int, tokenizer: GemmaTokenizer) -> None:
        self.tokenizer = tokenizer
        parts = [load_file(path) for path in sorted(folder.glob("clips-*.safetensors"))]
        self.video = torch.cat([part["video"] for part in parts])
        self.audio = torch.cat([part["audio"] for part in parts])
        groups: dict[int, list[tuple[int, list[int]]]] = {}
        motions, truth, emphasis = [], [], []
        for index in range(len(self.video)):
            scene = scene_of(seed, index)
            motions.append(list(SHARES).index(scene.motion))
            emphasis.append(emphasis_of(scene))
            truth.append(truth_of(scene, self.audio.shape[2]))
            for text in prompts_of(seed, index, scene):
                ids = tokenizer.encode(text)
                groups.setdefault(len(ids), []).append((index, ids))
        self.groups = [_columns(members) for members in groups.values()]
        self.motions, self.truth = torch.tensor(motions), torch.stack(truth)
        self.emphasis = torch.tensor(emphasis)
        self.weights = torch.stack([self.emphasis[members].sum() for members, _ in self.groups])
        self.driven = torch.tensor([is_driven(index) for index in range(len(motions))])
        self.driven &= self.motions == list(SHARES).index("bouncing")
        self.loud = torch.tensor([SOUND_WEIGHTS.get(name, 1.0) for name in SHARES])
        self.change = torch.stack([self._change(number) for number in range(len(SHARES))])

    def _change(self, motion: int) -> Tensor:
        """[48, 1, H, W], mean 1: how much each part of the latents changes with time in clips of a motion."""
        clips = self.video[self.motions == motion].float()
        change = clips.var(2, keepdim=True).mean(0) if len(clips) else torch.ones_like(self.video[0, :, :1]).float()
        return STILL_WEIGHT + (1 - STILL_WEIGHT) * change / change.mean()

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        """Random clips, float32."""
        members, ids = self.groups[int(torch.multinomial(self.weights, 1, generator=generator))]
        chosen = torch.multinomial(self.emphasis[members], batch, replacement=True, generator=generator)
        clips = members[chosen]
        motions = self.motions[clips]
        return Batch(
            self.video[clips].float(),
            self.audio[clips].float(),
            ids[chosen],
            (self.change[motions], self.loud[motions].view(-1, 1, 1)),
            self.truth[clips],
            self.driven[clips],
        )


def _columns(members: Sequence[tuple[int, list[int]]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([index for index, _ in members]), torch.tensor([ids for _, ids in members])
