"""What a case is: some files in a folder of its own, and the arguments that the command line gets there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent.parent
PONY = ROOT / "pony"
OUTPUT = "o.mp4"
SIDE = 64
QUICK = ("--size", f"{SIDE}x{SIDE}", "--seconds", "0.2", "--steps", "1", "--seed", "1")
CANARY = "canary"
"""A file of this name beside the case's folder shows that code in a pickle ran."""


@dataclass(frozen=True)
class Case:
    """``what`` says in a few words how the input is bad, ``arguments`` are those of the command line.

    ``undamaged`` is what the input of a conversion was made from; where the damage touches no tensor, what is written
    has the ``same_values``.
    """

    what: str
    arguments: tuple[str, ...]
    undamaged: Path | None = None
    same_values: bool = False


Build = Callable[[Random, Path], Case]
"""Writes files into a folder, which is the current one when the command line runs."""


def generate(*more: str, models: Path | str = PONY, prompt: str = "star") -> tuple[str, ...]:
    """Arguments of ``generate`` for the smallest clip."""
    return ("generate", "--models", str(models), "--prompt", prompt, "--output", OUTPUT, *QUICK, *more)


def numbered(seed: int, number: int) -> Random:
    """The random numbers of one case; the same on every machine."""
    return Random(f"{seed}:{number}")
