"""The commands ``convert`` and ``inspect``: their options, and what they answer."""

import argparse

from .. import edge
from ..describe.kinds import AUTO, KINDS
from ..describe.report import describe, gibibytes
from ..dit.roles import ROLES
from ..weights.formats import NVFP4
from .plan import BF16, DTYPES, FP8, FP8_SCALED
from .run import Report, convert

CONVERT = """Writes weights as one safetensors file, for ComfyUI's nodes and for this command line.

A transformer may be a folder of shards, a merged file, or a community file (float8 with scales, experts apart). Of the
text encoder's folder the encoder and the tokenizer are kept, of Stable Audio Open the autoencoder. The source is never
written to, and nothing stands under the new name until it is complete."""
INSPECT = """Prints what weights are, by their content: kind, role, sizes, dtypes, quantisation, what is missing.
Ends with status 1 where they can't be used."""
DTYPE_HELP = f"""{BF16}: bfloat16, in which the layers compute anyway; {FP8}: float8, plainly rounded, half the size;
{FP8_SCALED}: float8 with a scale for each layer and each expert, the same size and closer to the original; {NVFP4}:
4 bits and a scale for each 16 numbers, little more than a quarter of the size and less exact, which ComfyUI multiplies
as they are on Blackwell GPUs and widens on others. Embedders, norms and final layers stay float32, or bfloat16 in the
text encoder. Default {BF16}; autoencoders are left as they are"""


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``convert``."""
    add = parser.add_argument
    add("source", type=edge.path, metavar="SRC", help="file, or folder with shards and their index")
    add("target", type=edge.path, metavar="DST", help="the .safetensors file to write")
    add("--dtype", choices=DTYPES, help=DTYPE_HELP)
    add("--role", choices=ROLES, help="what a transformer is for; needed where neither metadata nor the folder tells")
    add("--kind", choices=(AUTO, *KINDS), default=AUTO, help="what the source is; default: found out by its content")
    add("--force", action="store_true", help="replace DST if it is there, once the new file is complete")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``inspect``."""
    parser.add_argument("path", type=edge.path, metavar="PATH", help="file, or folder with shards and their index")


def run_convert(args: argparse.Namespace, report: Report) -> str:
    """Carries out ``convert``; returns what was done. Raises HappyHorseError."""
    options = {name: getattr(args, name) for name in ("dtype", "role", "kind", "force")}
    done = convert(args.source, args.target, report=report, **options)
    told = [done.plan.metadata[key] for key in ("happyhorse.role", "happyhorse.dtype") if key in done.plan.metadata]
    what = ", ".join([done.plan.kind, *told])
    return f"{done.path}: {what}, {len(done.plan.stored())} tensors, {gibibytes(done.size)}"


def run_inspect(args: argparse.Namespace) -> tuple[str, bool]:
    """Carries out ``inspect``; returns what was found, and whether the weights can be used. Raises CheckpointError."""
    found = describe(args.path)
    return str(found), not found.problems
