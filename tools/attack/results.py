"""Whether the result of a command that ended well is the right one."""

from argparse import Namespace
from pathlib import Path

import av
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from happyhorse_core.cli import build_parser
from happyhorse_core.geometry import snap_size

from .case import Case

LEAST_CONTRAST = 1.0
"""Standard deviation, of 255, below which a frame shows nothing: what a decoder makes of numbers that are none."""


def wrong_result(case: Case) -> str:
    """What is wrong with what a command wrote into the current folder; "" where nothing is."""
    args = build_parser().parse_args(case.arguments)
    if args.command == "convert":
        return "" if case.undamaged is None else wrong_tensors(args.target, case.undamaged, case.same_values)
    return wrong_clip(args) if args.command == "generate" else ""


def wrong_tensors(path: Path, undamaged: Path, same_values: bool) -> str:
    """What a converted file has that its source, before it was damaged, had not; or lacks, or has otherwise."""
    expected = tensors_of(undamaged)
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        return f"no safetensors file: {error}"
    for name, tensor in found.items():
        source = expected.get(name)
        if source is None:
            if tensor.dtype != torch.uint8:  # a tokenizer
                return f"{name} is not in the source"
        elif source.shape != tensor.shape:
            return f"{name} has shape {list(tensor.shape)}, expected {list(source.shape)}"
        elif same_values and not torch.equal(source.to(tensor.dtype), tensor):
            return f"{name} has other values than the source"
    missing = {name for name in expected if name.startswith(KEPT)} - set(found)
    return f"{min(missing)} is missing" if missing else ""


KEPT = ("model.encoder.", "block.", "adapter.", "final_", "decoder.")
"""Beginnings of the names of all tensors that a conversion keeps."""


def tensors_of(source: Path) -> dict[str, Tensor]:
    """The tensors of an undamaged part of the model, by the names that a conversion gives them."""
    if source.suffix == ".ckpt":
        content = torch.load(source, map_location="cpu", weights_only=True)["ema_state_dict"]
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    found: dict[str, Tensor] = {}
    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def wrong_clip(args: Namespace) -> str:
    """What is wrong with the mp4 that ``generate`` wrote for these arguments."""
    asked = None if args.upscale or args.sr_model or args.size is None else snap_size(*args.size)
    return wrong_pictures(args.output, asked)


def wrong_pictures(path: Path, asked: tuple[int, int] | None = None) -> str:
    """What is wrong with a clip with sound; ``asked`` are its width and height where they are known."""
    try:
        with av.open(str(path)) as clip:
            frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        with av.open(str(path)) as clip:
            samples = sum(frame.samples for frame in clip.decode(audio=0))
    except (av.error.FFmpegError, OSError, IndexError) as error:
        return f"does not play: {error}"
    if not frames or not samples:
        return f"has {len(frames)} frames and {samples} samples of sound"
    size = frames[0].shape[1], frames[0].shape[0]
    if asked is not None and size != asked:
        return f"is {size[0]}x{size[1]}, expected {asked[0]}x{asked[1]}"
    if asked is not None and len(frames) % 4 != 1:
        return f"has {len(frames)} frames, expected 4 n + 1"
    flat = [number for number, frame in enumerate(frames) if np.std(frame) < LEAST_CONTRAST]
    return f"frame {flat[0]} is all of one colour" if flat else ""
