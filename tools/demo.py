"""``make demo``: from a prompt to an mp4 with sound and a sheet of its pictures, with the model in ``pony``.

Run as ``python -m tools.demo`` from the root of the project, in an environment that has the requirements.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import av

from .contact_sheet import contact_sheet, read_clip
from .gallery import PROMPTS, generate_command
from .setup_venv import ROOT

MODEL = Path("pony")
OUTPUT, SHEET = Path("output", "demo.mp4"), Path("output", "demo.png")
PROMPT = PROMPTS["bouncing"]


def main() -> int:
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    print(f"1. {MODEL}/ is the Pony, a model of {size / 1e6:.0f} MB that knows a world of coloured shapes and faces.")
    OUTPUT.parent.mkdir(exist_ok=True)
    command = generate_command(PROMPT, OUTPUT)
    print(f"2. Running: python {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if status:
        print("The demo did not finish; the lines above say why.", file=sys.stderr)
        return status
    frames, fps, waveform, rate = read_clip(OUTPUT)
    contact_sheet(frames, waveform, SHEET, rate=rate, fps=fps)
    print(f"3. Wrote {OUTPUT}: {describe(OUTPUT)}.")
    print(f"4. Wrote {SHEET}: pictures of it from left to right, and below each what is heard until the next.")
    print("README.md says where the weights of the real model come from and where they go.")
    return 0


def describe(path: Path) -> str:
    """What is in an mp4, read back from the file."""
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        lengths = [float(stream.duration * stream.time_base) for stream in (video, sound)]
        return (
            f"{video.codec_context.name} {video.width}x{video.height} at {float(video.average_rate):g} fps, "
            f"{lengths[0]:.2f} s; {sound.codec_context.name} {sound.layout.name} at {sound.rate} Hz, {lengths[1]:.2f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
