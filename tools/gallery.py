"""Contact sheets of the model in ``pony`` for the README: ``python -m tools.gallery`` writes docs/images/pony_*.png."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.workflow_prompts import PONY

from .contact_sheet import contact_sheet, read_clip
from .setup_venv import ROOT

PICTURES = ROOT / "docs" / "images"
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


def draw_sheet(prompt: str, path: Path, seed: int = 1) -> None:
    """Makes a clip of a prompt and draws it."""
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        subprocess.run([sys.executable, *generate_command(prompt, clip, seed)], cwd=ROOT, check=True)
        frames, fps, waveform, rate = read_clip(clip)
    contact_sheet(frames, waveform, path, rate=rate, fps=fps)


def main() -> int:
    for name, prompt in PROMPTS.items():
        path = PICTURES / f"pony_{name}.png"
        draw_sheet(prompt, path)
        print(f"Wrote {path.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
