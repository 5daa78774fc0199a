"""Writes what was trained of the Pony into a folder in the released layout.

python -m training.export --runs RUNS [--to pony]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tools.make_tiny_checkpoints import write_shards

from . import audio_vae, text, video_vae
from .model import make_transformer
from .run import load_trained

TRANSFORMERS = {"distill": "distill", "base": "base"}
"""Folder of the released layout -> run."""
PARTS = {
    "text": text.export,
    "video_vae": lambda run, target: video_vae.export(video_vae.load_modules(run), target),
    "audio_vae": lambda run, target: audio_vae.export(audio_vae.load_sound_encoder(run), target),
}
"""Run -> what writes its part."""
LARGE = ("linear_qkv.weight", "linear_proj.weight", "up_gate_proj.weight", "down_proj.weight")
"""Kept in bfloat16, as in the released base model; all else is float32."""


def export_transformer(run: Path, target: Path) -> None:
    """Writes the averaged weights of a run."""
    model = make_transformer(0)
    load_trained(run, {"transformer": model})
    write_transformer(model, target)


def write_transformer(model: nn.Module, target: Path) -> None:
    """Writes a transformer as two shards and their index."""
    tensors = {
        name: value.cpu().to(torch.bfloat16 if name.endswith(LARGE) else torch.float32).contiguous()
        for name, value in model.state_dict().items()
    }
    write_shards(target, tensors, shards=2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the folder of all runs")
    parser.add_argument("--to", type=Path, default=Path("pony"), help="where to write; default pony")
    options = parser.parse_args(arguments)
    for folder, run in TRANSFORMERS.items():
        if (options.runs / run).exists():
            export_transformer(options.runs / run, options.to / folder)
    for run, export in PARTS.items():
        if (options.runs / run).exists():
            export(options.runs / run, options.to)
    size = sum(path.stat().st_size for path in options.to.rglob("*") if path.is_file())
    print(f"{options.to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
