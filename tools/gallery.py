"""What the README shows of the model in ``pony``: ``python -m tools.gallery`` writes docs/images/pony_*.

A contact sheet of each prompt; two of the clips one after another, as an mp4 with sound and a moving picture without.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from happyhorse_core.media.video_file import Mp4Writer
from scripts.workflow_prompts import PONY

from .contact_sheet import contact_sheet, draw_wave, read_clip
from .setup_venv import ROOT

PICTURES = ROOT / "docs" / "images"
SIDE, GAP = 256, 4
WEBP_QUALITY = 60
MOVING = ("bouncing", "speaking")
PROMPTS = {
    "bouncing": PONY,
    "pulsing": (
        "A medium red circle pulses in its place on a grey background.\n\n"
        "Background Sound:\n<A mid tone that gets louder and softer with the size>"
    ),
    "speaking": (
        "The round face of a woman with tan skin speaks on a navy background.\n\n"
        'Dialogue:\n<Woman with a high voice, English>: "a o a"\n\n'
        "Background Sound:\n<No prominent background sound>"
    ),
    "sliding": (
        "A small white square slides to the right on a maroon background.\n\n"
        "Background Sound:\n<A steady high tone that wanders from left to right>"
    ),
}


def generate_command(prompt: str, clip: Path, seed: int = 1) -> list[str]:
    """What follows ``python`` to make a clip of a prompt as a user would."""
    command = ["-m", "happyhorse_core", "generate", "--models", "pony", "--prompt", prompt]
    return [*command, "--seconds", "2", "--size", "64x64", "--seed", str(seed), "--output", str(clip)]


def make_clip(prompt: str, seed: int = 1) -> tuple:
    """Makes a clip of a prompt; what ``read_clip`` gives of it."""
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        subprocess.run([sys.executable, *generate_command(prompt, clip, seed)], cwd=ROOT, check=True)
        return read_clip(clip)


def with_wave(frames, waveform, rate, fps):
    """uint8 [F, H, W, 3]: the frames enlarged, and below each the clip's waveform as far as it was heard."""
    length = round(len(frames) / fps * rate)
    wave = draw_wave(np.pad(waveform[:, :length], ((0, 0), (0, max(0, length - waveform.shape[1])))), SIDE, 1)
    shown = []
    for number, frame in enumerate(frames, 1):
        heard = wave.copy()
        heard[:, SIDE * number // len(frames) :] = wave[0, 0]
        large = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        shown.append(np.concatenate([np.asarray(large), np.broadcast_to(wave[0, 0], (GAP, SIDE, 3)), heard]))
    return np.stack(shown)


def write_moving_picture(clips: list[tuple], mp4: Path, webp: Path) -> None:
    """The clips one after another, in a file with sound and in one that a page shows by itself."""
    fps, rate = clips[0][1], clips[0][3]
    frames = np.concatenate([with_wave(frames, waveform, rate, fps) for frames, _, waveform, _ in clips])
    with Mp4Writer(mp4, SIDE, frames.shape[1], fps=round(fps), sample_rate=rate) as writer:
        writer.add_frames(frames)
        for pictures, _, waveform, _ in clips:
            samples = round(len(pictures) / fps * rate)
            writer.add_sound(np.pad(waveform, ((0, 0), (0, samples)))[:, :samples])
    first, *others = [Image.fromarray(frame) for frame in frames]
    duration = round(1000 / fps)
    first.save(webp, save_all=True, append_images=others, duration=duration, loop=0, quality=WEBP_QUALITY, method=6)


def main() -> int:
    clips = {name: make_clip(prompt) for name, prompt in PROMPTS.items()}
    for name, (frames, fps, waveform, rate) in clips.items():
        contact_sheet(frames, waveform, PICTURES / f"pony_{name}.png", rate=rate, fps=fps)
    moving = [clips[name] for name in MOVING]
    write_moving_picture(moving, PICTURES / "pony_moving.mp4", PICTURES / "pony_moving.webp")
    for path in sorted(PICTURES.glob("pony_*")):
        print(f"Wrote {path.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
