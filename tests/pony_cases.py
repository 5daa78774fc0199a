"""What the model that comes with the pack is asked for in tests, and how its clips are judged."""

import io
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from happyhorse_core.audio_vae.resample import resample_fft
from happyhorse_core.geometry import OUTPUT_SAMPLE_RATE
from tools.contact_sheet import read_clip
from training.evaluate import psnr
from training.judge.clip import agreement, judge_clip
from training.world.draw import draw
from training.world.prompts import prompt
from training.world.scene import DROP, TEMPO, Scene, Speech
from training.world.sound import sound

SIDE, SECONDS = 64, 2.0
ENOUGH = {"bouncing": 0.5, "speaking": 0.6, "pulsing": 0.6, "sliding right": 0.6}
"""How well sound and picture have to agree. Most clips reach 1 and 0.9; pony/README.md has the figures."""
ENOUGH_PSNR = 24.0


@dataclass(frozen=True)
class Case:
    """A scene to make from its prompt alone, or with its first picture or its sound as well."""

    scene: Scene
    from_picture: bool = False
    from_sound: bool = False

    @property
    def prompt(self) -> str:
        return prompt(self.scene, np.random.default_rng(0), synonyms=False)

    @property
    def picture(self) -> np.ndarray:
        return draw(self.scene, 1)[0]


def shape(name: str, colour: str, size: str, motion: str, top: str, bottom: str, **numbers: float) -> Scene:
    return Scene("shape", name, colour, size, motion, (top, bottom), **numbers)


A_O_A = Speech("woman", ("a", "o", "a"), start=0.2, beat=0.5)
CASES = {
    "bouncing": Case(
        shape("circle", "red", "large", "bouncing", "navy", "navy", phase=DROP, pace=TEMPO["large"]),
    ),
    "sliding": Case(shape("star", "yellow", "medium", "sliding right", "teal", "navy")),
    "face": Case(Scene("face", "face", "tan", "large", "speaking", ("black", "black"), speech=A_O_A)),
    "picture": Case(
        shape("square", "cyan", "medium", "pulsing", "maroon", "maroon", y=0.52, phase=0.2, pace=0.9), from_picture=True
    ),
    "sound": Case(
        shape("circle", "green", "medium", "bouncing", "black", "black", phase=0.4, pace=TEMPO["medium"]),
        from_sound=True,
    ),
}  # fmt: skip


def png(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


def wav(waveform: np.ndarray, rate: int) -> bytes:
    """A stereo file of float [2, N]."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((waveform.T.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return data.getvalue()


def given_sound(case: Case) -> bytes:
    """A file at a rate that an mp4 can hold, as people have them."""
    return wav(resample_fft(torch.from_numpy(sound(case.scene))).numpy(), OUTPUT_SAMPLE_RATE)


def check_clip(path: Path, case: Case) -> None:
    """Fails unless a file shows and sounds like what the case asks for."""
    frames, fps, waveform, rate = read_clip(path)
    assert frames.shape[1:3] == (SIDE, SIDE) and fps == 25
    found, scene = judge_clip(frames, waveform, rate), case.scene
    assert (found.colour, found.shape, found.motion) == (scene.colour, scene.shape, scene.motion)
    assert agreement(found, scene.motion) >= ENOUGH[scene.motion]
    if case.from_picture:
        assert psnr(frames[0], case.picture) >= ENOUGH_PSNR
