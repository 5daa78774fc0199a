"""``make demo``: the whole way from a prompt to an mp4 with sound, with a model that is tiny and knows nothing.

Run as ``python -m tools.demo`` from the root of the project, in an environment that has the requirements.
"""

import hashlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av

from .make_tiny_checkpoints import write_stack
from .setup_venv import ROOT, only_one_at_a_time

STACK = Path(".cache", "tiny")
OUTPUT = Path("output", "demo.mp4")
PROMPT = "A white horse trots along a beach at sunset, its hooves splashing; waves roll in and gulls call."


def main() -> int:
    prepare_stack()
    OUTPUT.parent.mkdir(exist_ok=True)
    command = ["-m", "happyhorse_core", "generate", "--models", str(STACK), "--prompt", PROMPT]
    command += ["--seconds", "2", "--size", "448x256", "--seed", "1", "--output", str(OUTPUT)]
    print(f"2. Running: python {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if status:
        print("The demo did not finish; the lines above say why.", file=sys.stderr)
        return status
    print(f"3. Wrote {OUTPUT}: {describe(OUTPUT)}.")
    print("The weights are random, so the clip shows and sounds like noise: it proves the path, not the picture.")
    print("README.md says where the real weights come from and where they go.")
    return 0


def prepare_stack() -> None:
    """Writes the tiny model, unless the one that is there came from the same program."""
    wanted = hashlib.sha256((ROOT / "tools" / "make_tiny_checkpoints.py").read_bytes()).hexdigest()
    stamp = STACK / "made-from.txt"
    with only_one_at_a_time():
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(STACK, ignore_errors=True)
            write_stack(STACK, "released", 0)
            stamp.write_text(wanted, encoding="utf-8")
    size = sum(path.stat().st_size for path in STACK.rglob("*") if path.is_file())
    print(f"1. {STACK} holds every part of the model in its published layout, tiny and random ({size / 1e6:.0f} MB).")


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
