"""Damaged and hostile weights, indexes, configurations and tokenizers, given to each command that reads them."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from ..mutate import KINDS, PART_OF, TEXT_FOLDER, TRANSFORMER_FOLDER, VIDEO_DECODER_FILE, make
from .case import Build, Case, generate

FAMILIES = ("safetensors", "pickle", "index", "config", "tokenizer", "special", "weights")
UNDAMAGED = {"transformer": TRANSFORMER_FOLDER, "text_encoder": TEXT_FOLDER, "video_decoder": VIDEO_DECODER_FILE}
OF_VALUES = ("safetensors-bytes", "pickle-bytes", "pickle-tensor", "pickle-opcodes", "weights-")
"""Kinds of damage that may change a tensor's values, and leave a file that nobody can tell from a sound one."""


def family(begin: str) -> Build:
    """Builds cases of all kinds of ``tools.mutate`` whose names begin so."""
    kinds = [kind for kind in KINDS if kind.startswith(f"{begin}-")]

    def build(rng: Random, folder: Path) -> Case:
        kind = rng.choice(kinds)
        place = folder / "files"
        place.mkdir()
        path = str(make(kind, rng.randrange(10**9), place.absolute()).relative_to(folder.absolute()))
        command = rng.choice(COMMANDS)
        what, part = f"{command.__name__.lstrip('_')} {kind}", PART_OF[kind]
        return Case(what, command(path, part), UNDAMAGED[part], not kind.startswith(OF_VALUES))

    return build


def _generate(path: str, part: str) -> tuple[str, ...]:
    return generate(f"--{part.replace('_', '-')}", path)


def _inspect(path: str, _part: str) -> tuple[str, ...]:
    return ("inspect", path)


def _convert(path: str, part: str) -> tuple[str, ...]:
    return ("convert", path, "out.safetensors", *(("--role", "distilled") if part == "transformer" else ()))


COMMANDS: tuple[Callable[[str, str], tuple[str, ...]], ...] = (_generate, _generate, _inspect, _convert)
