"""``python benchmarks/full_size.py``: the released sizes on one GPU, random weights, every stage of a 5 s clip.

Needs torch and this checkout, nothing else. The 15.3e9 weights are made on the device itself, in bfloat16 about 29 GiB;
the arithmetic is that of the released model. Prints seconds, floating-point operations, their rate beside the rate of
a large matrix product on the same device, peak memory, and the seconds that the released code reports for one H100.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from benchmarks.floor import synchronised, timed
from benchmarks.stages import SHAPES, Size, released_decoder
from happyhorse_core.checkpoint.detect import detect_transformer
from happyhorse_core.checkpoint.roles import DISTILLED, SR_540P, SR_1080P, Role
from happyhorse_core.config import TransformerConfig
from happyhorse_core.dit.local_attention import frame_groups
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.ops import TorchOps
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder


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


def released_config(role: Role) -> TransformerConfig:
    """The released transformer, as its tensors say."""
    described = json.loads((SHAPES / "full_size_transformer.json").read_text())
    return detect_transformer({n: tuple(s) for n, (_, s) in described.items()}, role=role, where="the released model")


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """A module from the meta device with small random weights, made where they stay."""
    module = module.to_empty(device=device)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.02)
    return module.eval().requires_grad_(False)


def operations_per_step(config: TransformerConfig, size: Size) -> float:
    """Floating-point operations of one call: two for each weight that a token meets, four per score and channel."""
    hidden, qkv = config.hidden_size, sum(config.qkv_rows)
    per_token = sum(
        hidden * (qkv + config.num_heads * config.head_dim)
        + hidden * config.mlp_width(n) * (2 if n in config.gelu7_layers else 3)
        for n in range(config.num_layers)
    )
    channels = config.num_heads * config.head_dim
    scores = sum(visible_scores(config, size, n) for n in range(config.num_layers))
    return 2.0 * per_token * size.tokens + 4.0 * scores * channels


def visible_scores(config: TransformerConfig, size: Size, layer: int) -> int:
    """Pairs of tokens that attention compares in a layer."""
    if layer not in config.local_attn_layers:
        return size.tokens**2
    rest = size.audio + size.text
    frame = (size.tokens - rest) // size.frames
    groups = frame_groups(size.frames, config.frame_receptive_field)
    near = sum((end - first) * ((high - low) * frame + rest) for first, end, low, high in groups)
    return near * frame + rest * size.tokens


def product_rate(device: torch.device, side: int) -> float:
    """Operations per second of a square bfloat16 matrix product: the device's practical limit."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / min(timed(lambda: torch.mm(a, b), device) for _ in range(10))


def time_stage(
    stage: Stage, model: HappyHorseTransformer, config: TransformerConfig, size: Size, device: torch.device
) -> dict[str, object]:
    """All steps of a stage, after one to warm up."""
    model.config = config
    video, audio, text = size.inputs(device)

    def step() -> None:
        model(video, audio, text)

    step()
    reset_peak(device)
    seconds = timed(lambda: [step() for _ in range(stage.steps)], device)
    return result(
        stage.name, size.tokens, seconds, stage.steps * operations_per_step(config, size), stage.reported, device
    )


def time_decode(
    decoder: TurboDecoder, width: int, height: int, reported: float, frames: int, device: torch.device
) -> dict[str, object]:
    """All windows of a clip, each brought to the CPU as bytes would be."""
    latent = torch.randn(1, 48, frames, height // 16, width // 16, device=device, dtype=torch.bfloat16)

    def decode() -> None:
        for chunk in decoder.decode_windows(latent):
            chunk.to(torch.uint8).cpu()

    decode()
    reset_peak(device)
    return result(f"decode {width} x {height}", "", timed(decode, device), None, reported, device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def result(
    name: str, tokens: int | str, seconds: float, work: float | None, reported: float, device: torch.device
) -> dict[str, object]:
    """One line of the table."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "stage": name,
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


def run(
    device: torch.device, *, toy: bool, compile_layers: bool, report: Callable[[str], None]
) -> list[dict[str, object]]:
    """Times every stage and returns the lines of the table."""
    start = synchronised(device)
    small = Size(256, 2, 64, 64, 4, 7)
    base = small.config if toy else released_config(DISTILLED)
    model = HappyHorseTransformer(base, operations=TorchOps, dtype=torch.bfloat16, device="meta")
    model = on_device(model, device)
    if compile_layers:
        compiled(model)
    found = []
    for stage in STAGES:
        size = small if toy else Size(base.hidden_size, base.num_layers, stage.width, stage.height, FRAMES, TEXT)
        config = base if toy else released_config(stage.role)
        config = replace(config, coords_style=stage.role.coords_style)
        found.append(time_stage(stage, model, config, size, device))
        report(f"{synchronised(device) - start:.0f} s: {stage.name}: {found[-1]['seconds']} s")
    del model
    decoder = on_device(
        TurboDecoder(released_decoder(), operations=TorchOps, dtype=torch.bfloat16, device="meta"), device
    )
    for width, height, reported in ((32, 32, 0.0),) if toy else DECODES:
        found.append(time_decode(decoder, width, height, reported, 2 if toy else FRAMES, device))
        report(f"{synchronised(device) - start:.0f} s: {found[-1]['stage']}: {found[-1]['seconds']} s")
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="compile each layer with torch.compile")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to try the program itself on any device")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    with torch.inference_mode():
        rate = product_rate(device, 256 if args.toy else 8192)
        found = run(device, toy=args.toy, compile_layers=args.compile, report=lambda line: print(line, file=sys.stderr))
    for line in found:
        line["share of product rate"] = round(line["TFLOP/s"] * 1e12 / rate, 3) if line["TFLOP/s"] != "" else ""
    head = f"{name}, torch {torch.__version__}, bfloat16, matrix product {rate / 1e12:.0f} TFLOP/s"
    print(f"{head}\n\n{show(found)}")
    if args.json:
        args.json.write_text(
            json.dumps({"machine": head, "date": time.strftime("%Y-%m-%d"), "stages": found}, indent=2)
        )


if __name__ == "__main__":
    main()
