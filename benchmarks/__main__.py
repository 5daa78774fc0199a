"""``python -m benchmarks``: times every stage beside its own floor and writes the figures as JSON."""

import argparse
import gc
import json
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch

from happyhorse_core import edge
from happyhorse_core.precision import usual_dtype

from . import stages
from .floor import Recorder, Timing, measure, measure_pair
from .stages import Size

Row = dict[str, object]
CPU_SIZES = [Size(1024, 4, 448, 256, 16), Size(2560, 2, 448, 256, 16)]
GPU_SIZES = [Size(5120, 4, 448, 256, 32), Size(5120, 2, 896, 512, 32), Size(5120, 2, 1920, 1088, 32)]
RADIUS = 11


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((x.split(": ", 1)[1] for x in info.read_text().splitlines() if x.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def row(stage: str, dtype: torch.dtype, tokens: int | str, timing: Timing) -> Row:
    """One line of the table. Memory is the device's peak, or on a CPU the process's so far."""
    peak = timing.peak_bytes if timing.peak_bytes is not None else resident_peak()
    return {
        "stage": stage,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "seconds": round(timing.seconds, 4),
        "cpu_seconds": round(timing.cpu_seconds, 4),
        "floor": round(timing.floor, 4),
        "ratio": round(timing.ratio, 3),
        "lowest": round(timing.lowest, 3),
        "highest": round(timing.highest, 3),
        "peak_gib": round(peak / 2**30, 2),
    }


def resident_peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rows(device: torch.device, repeats: int, quick: bool) -> Iterator[Row]:
    """Measures stage after stage; ``quick`` takes toy sizes, to try the program itself."""
    on_cpu = device.type == "cpu"
    usual = usual_dtype(device)
    dtypes = tuple(dict.fromkeys((usual, torch.float32) if on_cpu else (usual,)))
    sizes = [Size(256, 2, 64, 64, 4, 7)] if quick else CPU_SIZES if on_cpu else GPU_SIZES
    for size, dtype in product(sizes, dtypes):
        name = f"transformer, hidden {size.hidden}, {size.layers} layers"
        build = partial(stages.transformer, size, dtype=dtype, device=device)
        yield timed_row(name, dtype, size.tokens, repeats, device, build)
    yield local_row(device, repeats, quick)
    frames, width, height = (3, 64, 64) if quick else (7, 256, 256) if on_cpu else (32, 1920, 1088)
    name = f"video decoder, {frames} latent frames of {width} x {height}"
    build = partial(stages.video_decoder, frames, width, height, dtype=dtypes[0], device=device)
    yield timed_row(name, dtypes[0], "", repeats, device, build)
    sound = 2 if quick else 25
    build = partial(stages.sound_decoder, sound, device=device)
    yield timed_row(f"sound decoder, {sound} latents", torch.float32, "", repeats, device, build)


def timed_row(
    stage: str,
    dtype: torch.dtype,
    tokens: int | str,
    repeats: int,
    device: torch.device,
    build: Callable[..., Callable[[], object]],
) -> Row:
    """Builds a stage, times it and lets go of it."""
    recorder = Recorder()
    timing = measure(build(recorder=recorder), recorder, device, repeats)
    gc.collect()
    return row(stage, dtype, tokens, timing)


def local_row(device: torch.device, repeats: int, quick: bool) -> Row:
    """Local attention beside the share of dense attention that its windows cover."""
    size = Size(640, 1, 64, 64, 32, 7) if quick else Size(256, 1, 1280, 736, 32)
    dtype = usual_dtype(device)
    run, dense, share = stages.local(size, RADIUS, dtype, device)
    timing = measure_pair(run, dense, device, repeats, share)
    return row(f"local attention, 32 frames, window {RADIUS}, share {share:.3f}", dtype, size.tokens, timing)


def table(found: list[Row]) -> str:
    """The rows as a Markdown table."""
    names = list(found[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(line[name]) for name in names) for line in found]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", type=edge.device, help="torch device; default cuda where there is one")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs per stage; default 5")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to try the program itself")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    with torch.inference_mode():
        for line in rows(device, args.repeats, args.quick):
            print(f"{line['stage']}, {line['dtype']}: {line['seconds']} s, {line['ratio']} x floor", file=sys.stderr)
            found.append(line)
    print(f"{machine(device)}, torch {torch.__version__}\n\n{table(found)}")
    if args.json:
        result = {"machine": machine(device), "torch": torch.__version__, "stages": found}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
