"""The command line: ``happyhorse --help``, or ``python -m happyhorse_core --help`` where it is not installed."""

import argparse
import logging
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

from . import edge
from .convert.command import CONVERT, INSPECT, add_convert, add_inspect, run_convert, run_inspect
from .device import parse_device
from .dit.ranks import check_devices
from .dit.roles import BASE, DISTILLED, ROLES, SR_540P, SR_1080P, Role
from .errors import HappyHorseError, InputError, one_line
from .geometry import (
    DEFAULT_HEIGHT,
    DEFAULT_WIDTH,
    MAX_SECONDS,
    ClipShape,
    frames_from_seconds,
    size_for_picture,
    snap_size,
)
from .media.image import load_image
from .media.sound import load_sound
from .media.video_file import check_writable
from .memory import is_out_of_memory
from .model_folder import find_models
from .negative_prompt import DEFAULT_NEGATIVE_PROMPT
from .pipeline import Machine, Request, Upscale, generate, target_shape
from .precision import usual_dtype
from .progress import Progress
from .sampling.guidance import RELEASED, Scales
from .super_resolution import TRAINED_SIZES, shape_warnings

logger = logging.getLogger(__name__)

READER_GONE = 141
"""What shells say of a program that was ended because nobody read its output any more."""
NO_MEMORY = "Close other programs, or for a clip choose a smaller --size or fewer --seconds."
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
PARTS = ("transformer", "text_encoder", "video_decoder", "audio_vae", "image_encoder", "sr_transformer")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all errors are said, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Ends with status 2."""
        text = one_line(message.removeprefix("argument ")).rstrip(".")
        self.exit(2, f"error: {text}. All options: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="python -m happyhorse_core" if Path(sys.argv[0]).name == "__main__.py" else "happyhorse",
        description="Video and sound from one prompt, with checkpoints of the daVinci-MagiHuman architecture.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    make = commands.add_parser("generate", help="make a clip", description="Makes an mp4 from a prompt.")
    _add_generate(make)
    make.set_defaults(run=run_generate)
    rewrite = commands.add_parser("convert", help="write weights as one smaller file", description=CONVERT)
    add_convert(rewrite)
    rewrite.set_defaults(run=_convert)
    look = commands.add_parser("inspect", help="say what a file or folder of weights is", description=INSPECT)
    add_inspect(look)
    look.set_defaults(run=_inspect)
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--models",
        type=edge.path,
        required=True,
        metavar="DIR",
        help="folder with the model's parts, as they are published",
    )
    add(
        "--prompt",
        type=edge.text,
        required=True,
        metavar="TEXT",
        help="what is seen and heard; best one paragraph of 150 to 200 words",
    )
    add("--output", type=edge.path, required=True, metavar="FILE.mp4", help="file to write; replaced if it is there")
    add(
        "--image",
        type=edge.path,
        metavar="FILE",
        help="picture that becomes the first frame, cropped to the clip's shape",
    )
    add(
        "--audio",
        type=edge.path,
        metavar="FILE",
        help="sound that the picture follows; it sets the length and is kept as it is",
    )
    add(
        "--seconds",
        type=edge.number,
        metavar="S",
        help=f"length, 0.16 to {MAX_SECONDS}; default 5; with --audio, at most so much of the sound",
    )
    add(
        "--size",
        type=edge.size,
        metavar="WxH",
        help=f"pixels, cut down to multiples of 32; default {DEFAULT_WIDTH}x{DEFAULT_HEIGHT}, or the picture's shape",
    )
    add(
        "--seed",
        type=edge.integer,
        metavar="N",
        help="0 to 2^64 - 1; the same seed makes the same clip; default random",
    )
    _add_model(parser)
    _add_machine(parser)
    for part in PARTS:
        option = f"--{part.replace('_', '-')}"
        add(option, type=edge.path, metavar="PATH", help=f"{part.replace('_', ' ')}, if it is not in the models folder")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        choices=(DISTILLED.name, BASE.name),
        default=DISTILLED.name,
        help="which checkpoint; default distilled",
    )
    add(
        "--upscale",
        type=edge.size,
        metavar="WxH",
        help="enlarge the clip to so many pixels; default with --sr-model the size that the model was trained for",
    )
    add(
        "--sr-model",
        choices=tuple(TRAINED_SIZES),
        help="which super-resolution checkpoint enlarges the clip; default with --upscale the one trained nearer to it",
    )
    add("--steps", type=edge.integer, metavar="N", help="denoising steps; default 8 for distilled, 32 for base")
    add(
        "--negative-prompt",
        type=edge.text,
        metavar="TEXT",
        default=DEFAULT_NEGATIVE_PROMPT,
        help="what the base model is guided away from; the distilled model uses none",
    )
    add(
        "--guidance",
        metavar="EARLY,LATE,SOUND",
        help="how far from it: the picture while its layout is made, then its details, and the sound; default 5,2,5",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--device",
        type=edge.device,
        metavar="NAME",
        help="torch device such as cpu, cuda, cuda:1, xpu, mps; default cuda where there is one",
    )
    where.add_argument(
        "--devices",
        type=edge.devices,
        metavar="NAMES",
        help="several, such as cuda:0,cuda:1: each holds all of the transformer and computes a part of every step; the "
        "other stages run on the first",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of weights and matmuls; default bf16, or float32 on processors that are slow in bf16. With "
        "bf16 a transformer file in float8 (convert --dtype fp8-scaled) stays so in memory and is multiplied in float8 "
        "on GPUs that can; with float32 never",
    )


def parse_guidance(text: str | None, role: Role) -> Scales:
    """'5,2,5' -> the base model's scales. Raises InputError for anything else, and where the model has no guidance."""
    if text is None:
        return RELEASED
    if not role.guided:
        raise InputError(f"--guidance: the {role.name} model runs without; leave it out or choose --model {BASE.name}.")
    try:
        early, late, audio = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--guidance: found {text!r:.80}, expected three numbers such as 5,2,5.") from None
    return Scales(early, late, audio=audio)


class Bars:
    """One progress bar per stage, on standard error."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def open(self, stage: str, unit: str) -> Progress:
        """Ends the bar of the stage before and starts the next."""
        self.close()
        in_bytes = unit == "B"
        self.bar = bar = tqdm(desc=f"{stage:<24}", unit=unit, unit_scale=in_bytes, unit_divisor=1024, leave=True)

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return update

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class _BarSafeHandler(logging.Handler):
    """Writes warnings above the running bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"{record.levelname.lower()}: {one_line(record.getMessage())}", file=sys.stderr)


def _resolve_size(asked: tuple[int, int] | None, image: torch.Tensor | None) -> tuple[int, int]:
    if asked is None:
        return (DEFAULT_WIDTH, DEFAULT_HEIGHT) if image is None else size_for_picture(image.shape[3], image.shape[2])
    size = snap_size(*asked)
    if size != asked:
        logger.warning("--size %dx%d becomes %dx%d: sides are multiples of 32", *asked, *size)
    return size


def _resolve_upscale(size: tuple[int, int] | None, model: str | None) -> Upscale | None:
    """The stage that --upscale and --sr-model ask for; either of them alone decides about the other."""
    if size is None:
        return None if model is None else Upscale(ROLES[model])
    width, height = size
    if min(size) < 1:
        raise InputError(f"--upscale: found {width}x{height}, expected width and height in pixels such as 896x512.")
    if model is not None:
        return Upscale(ROLES[model], width, height)
    nearer = SR_540P if (width * height) ** 2 < prod(prod(size) for size in TRAINED_SIZES.values()) else SR_1080P
    return Upscale(nearer, width, height)


def _warn_of_target(request: Request) -> None:
    shape, upscale = request.shape, request.upscale
    if upscale is None:
        return
    target = target_shape(shape, upscale)
    asked, size = (upscale.width, upscale.height), (target.width, target.height)
    if any(asked) and asked != size:
        logger.warning("--upscale %dx%d becomes %dx%d: sides are multiples of 32", *asked, *size)
    for warning in shape_warnings(upscale.role, (shape.width, shape.height), size):
        logger.warning("--upscale: %s", warning)


def _request(args: argparse.Namespace) -> Request:
    role = ROLES[args.model]
    image = None if args.image is None else load_image(args.image)
    frames = frames_from_seconds(5.0 if args.seconds is None else args.seconds)
    longest = MAX_SECONDS if args.seconds is None else args.seconds
    return Request(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        guidance=parse_guidance(args.guidance, role),
        shape=ClipShape(*_resolve_size(args.size, image), frames),
        seed=secrets.randbits(32) if args.seed is None else args.seed,
        steps=role.steps if args.steps is None else args.steps,
        role=role,
        image=image,
        sound=None if args.audio is None else load_sound(args.audio, max_seconds=longest),
        upscale=_resolve_upscale(args.upscale, args.sr_model),
    )


def _machine(args: argparse.Namespace) -> Machine:
    if args.devices is None:
        device = args.device or parse_device("cuda" if torch.cuda.is_available() else "cpu")
        return Machine(device, _dtype(args.dtype, device))
    device, *others = args.devices
    if others:
        check_devices((device, *others))
    # What the stages before the transformer used is kept by this process, unless it is told that others need it.
    return Machine(device, _dtype(args.dtype, device), tuple(others), torch.cuda.empty_cache)


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    return usual_dtype(device) if name is None else DTYPES[name]


def _check_output(args: argparse.Namespace) -> None:
    """Before anything takes time; a sound may be taken from a clip, which the new one must not replace."""
    check_writable(args.output.absolute())
    for option in ("image", "audio"):
        source = getattr(args, option)
        if source is not None and source.exists() and args.output.exists() and source.samefile(args.output):
            raise InputError(f"--output: found the file of --{option}, expected another. Choose another name.")


def run_generate(args: argparse.Namespace) -> int:
    """Carries out ``generate``."""
    machine = _machine(args)
    _check_output(args)
    request = _request(args)
    _warn_of_target(request)
    chosen = {part: getattr(args, part) for part in PARTS if getattr(args, part) is not None}
    files = find_models(
        args.models,
        request.role.name,
        with_image=request.image is not None,
        sr_role=None if request.upscale is None else request.upscale.role.name,
        chosen=chosen,
    )
    bars = Bars()
    try:
        with torch.inference_mode():
            shape = generate(request, files, args.output, machine, bars.open)
    finally:
        bars.close()
    return _tell(
        f"{one_line(str(args.output))}: {shape.width}x{shape.height}, {shape.video_frames} frames, "
        f"{shape.seconds:.2f} s, seed {request.seed}, {request.role.name} model"
    )


def _convert(args: argparse.Namespace) -> int:
    bars = Bars()
    try:
        done = run_convert(args, bars.open)
    finally:
        bars.close()
    return _tell(one_line(done))


def _inspect(args: argparse.Namespace) -> int:
    text, usable = run_inspect(args)
    return _tell(text) or int(not usable)


def _tell(text: str) -> int:
    """Prints what a command found or did."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return _reader_gone()
    return 0


def _reader_gone() -> int:
    """Who read the output has gone, as ``| head`` does; Python would still try to write the rest when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return READER_GONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0 done, 1 an error that was explained, 128 + the number of a signal.

    A KeyboardInterrupt may hold that number; without one it is Ctrl-C's. Ends with status 2 for wrong arguments.
    """
    try:
        args = build_parser().parse_args(arguments)
        logging.basicConfig(level=logging.WARNING, handlers=[_BarSafeHandler()])
        return args.run(args)
    except BrokenPipeError:
        return _reader_gone()
    except HappyHorseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: not enough memory: {one_line(str(error)).rstrip('.')}. {NO_MEMORY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("stopped; nothing was written", file=sys.stderr)
        return 128 + int(*stop.args or (signal.SIGINT,))
