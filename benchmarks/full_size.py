"""``python benchmarks/full_size.py``: the released sizes on one GPU, random weights, every stage of a 5 s clip.

Needs torch and this checkout, nothing else. The 15.3e9 weights are made on the device itself, in bfloat16 (29 GiB) and
then in float8 (14 GiB); the arithmetic is that of the released model. Prints seconds, floating-point operations, their
rate beside the rate of a large matmul of the same precision on the same device, peak memory, and the seconds
that the released code reports for one H100; for the decodes the seconds; and for one layer's attention at 1920x1088
dense, local by slices and local by FlexAttention. On a slow device fewer steps are timed, and what there is no time for
is left out, so that all of it takes less than 8 minutes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.flex import flex_local
from benchmarks.floor import synchronised, timed
from benchmarks.stages import SHAPES, Size, heads, released_decoder, window_share
from happyhorse_core import edge
from happyhorse_core.dit.config import TransformerConfig
from happyhorse_core.dit.detect import detect_transformer
from happyhorse_core.dit.float8 import Float8Ops, float8_operations, has_float8_matmuls
from happyhorse_core.dit.local_attention import local_attention
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.dit.roles import DISTILLED, SR_540P, SR_1080P, Role
from happyhorse_core.estimate import work_of_call
from happyhorse_core.ops import TorchOps
from happyhorse_core.precision import usual_dtype
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder
from happyhorse_core.weights.formats import FLOAT8


@dataclass(frozen=True)
class Stage:
    """A stage of the released pipeline and what its authors report for one H100, in seconds, for 5 s of video."""

    name: str
    role: Role
    width: int
    height: int
    steps: int
    reported: float


STAGES = (
    Stage("256p, 8 steps", DISTILLED, 448, 256, 8, 1.6),
    Stage("540p super-resolution, 5 steps", SR_540P, 896, 512, 5, 5.1),
    Stage("1080p super-resolution, 5 steps", SR_1080P, 1920, 1088, 5, 31.0),
)
DECODES = ((448, 256, 0.4), (896, 512, 1.3), (1920, 1088, 5.8))
FRAMES = 32
TEXT = 300
BF16, FP8 = "bfloat16", "float8"
LIMIT = 400.0
"""Seconds after which no stage is begun, and that the number of timed steps is chosen by."""
WEIGHT = 0.02
FLOAT8_SCALE = 2.0**-11


@dataclass
class Clock:
    """How long the program has run, by which it decides what there is still time for."""

    device: torch.device
    limit: float = LIMIT

    def __post_init__(self) -> None:
        self.start = synchronised(self.device)

    @property
    def elapsed(self) -> float:
        return synchronised(self.device) - self.start

    def steps(self, wanted: int, one: float) -> int:
        """How many steps of ``one`` second each to time, so that no stage takes more than a quarter of what is left."""
        return max(1, min(wanted, int((self.limit - self.elapsed) / 4 / one)))


def released_config(role: Role) -> TransformerConfig:
    """The released transformer, as its tensors say."""
    described = json.loads((SHAPES / "full_size_transformer.json").read_text())
    return detect_transformer({n: tuple(s) for n, (_, s) in described.items()}, role=role, where="the released model")


def random_weights(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, device=device, dtype=dtype).normal_(std=WEIGHT)


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """A module from the meta device with small random weights, made where they stay, one at a time."""
    for layer in module.modules():
        if isinstance(layer, Float8Ops.Linear | Float8Ops.ExpertLinear):
            weight = random_weights(layer.weight.shape, device, torch.bfloat16).div_(FLOAT8_SCALE)
            layer.keep_float8(weight.to(FLOAT8), torch.full((), FLOAT8_SCALE, device=device))
        for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if tensor.is_meta:
                made = random_weights(tensor.shape, device, tensor.dtype)
                setattr(layer, name, nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made)
    return module.eval().requires_grad_(False)


def product_rate(device: torch.device, side: int, precision: str) -> float:
    """Operations per second of a square matmul: the device's practical limit."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    if precision == FP8 and has_float8_matmuls(device):
        a, b, one = a.to(FLOAT8), b.to(FLOAT8), torch.ones((), device=device)

        def product() -> Tensor:
            return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    else:

        def product() -> Tensor:
            return torch.mm(a, b)

    product()
    return 2 * side**3 / min(timed(product, device) for _ in range(10))


def time_stage(
    stage: Stage, precision: str, model: HappyHorseTransformer, config: TransformerConfig, size: Size, clock: Clock
) -> dict[str, object]:
    """A stage's steps, after one to warm up; of few that were timed, the seconds are scaled to all."""
    model.config = config
    video, audio, text = size.inputs(clock.device)

    def step() -> None:
        model(video, audio, text)

    step()
    reset_peak(clock.device)
    first = timed(step, clock.device)
    steps = clock.steps(stage.steps, first)
    seconds = (first + timed(lambda: [step() for _ in range(steps - 1)], clock.device)) / steps * stage.steps
    work = float(stage.steps * work_of_call(config, size.sequence).total)
    return result(stage.name, precision, size.tokens, seconds, work, stage.reported, clock.device)


def time_attention(size: Size, radius: int, clock: Clock) -> list[dict[str, object]]:
    """One layer's attention over a clip: all of it, and local by slices and by FlexAttention."""
    device, layout = clock.device, size.layout()
    q, k, v = heads(size, torch.bfloat16, device)
    scores = 4.0 * size.tokens**2 * q.shape[1] * q.shape[3]
    flex = flex_local(layout, radius, device)
    share = window_share(layout, radius)
    runs = {
        "attention, dense": (1.0, lambda: TorchOps.attention(q, k, v)),
        "attention, local by slices": (share, lambda: local_attention(TorchOps.attention, q, k, v, layout, radius, {})),
        "attention, local by FlexAttention": (share, lambda: flex(q, k, v)),
    }
    found = []
    for name, (part, run) in runs.items():
        run()
        reset_peak(device)
        seconds = min(timed(run, device) for _ in range(3))
        found.append(result(name, BF16, size.tokens, seconds, part * scores, "", device))
    return found


def time_decode(
    decoder: TurboDecoder, width: int, height: int, reported: float, frames: int, device: torch.device
) -> dict[str, object]:
    """All windows of a clip, each brought to the CPU as bytes would be."""
    dtype = usual_dtype(device)
    latent = torch.randn(1, 48, frames, height // 16, width // 16, device=device, dtype=dtype)

    def decode() -> None:
        for chunk in decoder.decode_windows(latent):
            chunk.to(torch.uint8).cpu()

    decode()
    reset_peak(device)
    precision = str(dtype).removeprefix("torch.")
    return result(f"decode {width} x {height}", precision, "", timed(decode, device), None, reported, device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def result(
    name: str,
    precision: str,
    tokens: int | str,
    seconds: float,
    work: float | None,
    reported: float | str,
    device: torch.device,
) -> dict[str, object]:
    """One line of the table."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "stage": name,
        "precision": precision,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "TFLOP": "" if work is None else round(work / 1e12, 1),
        "TFLOP/s": "" if work is None else round(work / 1e12 / seconds, 1),
        "peak GiB": round(peak / 2**30, 1),
        "reported on H100": reported,
    }


def show(found: list[dict[str, object]]) -> str:
    """The lines as a Markdown table."""
    names = list(found[0])
    lines = [names, ["---"] * len(names), *([str(line[name]) for name in names] for line in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compiled(model: HappyHorseTransformer) -> None:
    """Compiles every layer; sizes are fixed, so each stage compiles once and no step after it."""
    for layer in model.block.layers:
        layer.compile(dynamic=False)


def run_transformer(
    precision: str, clock: Clock, *, toy: bool, compile_layers: bool, report: Callable[[dict[str, object]], None]
) -> None:
    """The stages of the transformer in one precision, as far as there is time."""
    small = Size(256, 2, 64, 64, 4, 7)
    base = small.config if toy else released_config(DISTILLED)
    operations = TorchOps if precision == BF16 else float8_operations(clock.device)
    model = HappyHorseTransformer(base, operations=operations, dtype=torch.bfloat16, device="meta")
    model = on_device(model, clock.device)
    if compile_layers:
        compiled(model)
    for stage in STAGES:
        size = small if toy else Size(base.hidden_size, base.num_layers, stage.width, stage.height, FRAMES, TEXT)
        config = base if toy else released_config(stage.role)
        config = replace(config, coords_style=stage.role.coords_style)
        if clock.elapsed < clock.limit:
            # Else what was compiled for one stage would count towards the number after which torch compiles no more.
            torch.compiler.reset()
            report(time_stage(stage, precision, model, config, size, clock))


def run(
    clock: Clock,
    *,
    toy: bool,
    compile_layers: bool,
    precisions: Sequence[str],
    report: Callable[[dict[str, object]], None],
) -> None:
    """Times every stage that there is time for and reports the lines of the table."""
    device = clock.device
    for precision in precisions:
        run_transformer(precision, clock, toy=toy, compile_layers=compile_layers, report=report)
    decoder = on_device(
        TurboDecoder(released_decoder(), operations=TorchOps, dtype=usual_dtype(device), device="meta"), device
    )
    for width, height, reported in ((32, 32, 0.0),) if toy else DECODES:
        if clock.elapsed < clock.limit:
            report(time_decode(decoder, width, height, reported, 2 if toy else FRAMES, device))
    large = STAGES[-1]
    size, radius = (Size(256, 2, 64, 64, 5, 7), 1) if toy else (Size(5120, 40, large.width, large.height, 32, TEXT), 11)
    if clock.elapsed < clock.limit:
        for line in time_attention(size, radius, clock):
            report(line)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=edge.device, default="cuda")
    parser.add_argument("--precision", choices=(BF16, FP8), action="append", help="one of the two; default both")
    parser.add_argument("--compile", action="store_true", help="compile each layer with torch.compile")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to try the program itself on any device")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    device, precisions = args.device, args.precision or (BF16, FP8)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    clock, found = Clock(device), []

    def report(line: dict[str, object]) -> None:
        found.append(line)
        print(f"{clock.elapsed:.0f} s: {line['stage']}, {line['precision']}: {line['seconds']} s", file=sys.stderr)

    rates = {precision: product_rate(device, 256 if args.toy else 8192, precision) for precision in (BF16, FP8)}
    try:
        with torch.inference_mode():
            run(clock, toy=args.toy, compile_layers=args.compile, precisions=precisions, report=report)
    finally:
        # Also what was measured before something failed, on a card that nobody tried before.
        print_table(name, rates, found, device, args.json)


def print_table(
    name: str, rates: dict[str, float], found: list[dict[str, object]], device: torch.device, target: Path | None
) -> None:
    """Prints what was found, and writes it to a file if there is a ``target``."""
    for line in found:
        counted = line["TFLOP/s"] != ""
        line["share of matmul rate"] = round(line["TFLOP/s"] * 1e12 / rates[line["precision"]], 3) if counted else ""
    products = "in float8" if has_float8_matmuls(device) else "of weights dequantised to bfloat16"
    limits = ", ".join(f"{precision} {rate / 1e12:.0f} TFLOP/s" for precision, rate in rates.items())
    head = f"{name}, torch {torch.__version__}, float8 matmuls {products}, large matmul: {limits}"
    print(f"{head}\n\n{show(found) if found else 'Nothing was measured.'}")
    if target is not None:
        target.write_text(json.dumps({"machine": head, "date": time.strftime("%Y-%m-%d"), "stages": found}, indent=2))


if __name__ == "__main__":
    main()
