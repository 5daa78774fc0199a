"""Sheets of a transformer in training: clips of a few prompts, made by the shipped loaders and sampler."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torch import nn

from tools.contact_sheet import contact_sheet

from .export import export_autoencoders, write_transformer
from .run import Sheet
from .sample import RATE, Order, load_stack, make_clips
from .world.prompts import prompt
from .world.scene import sample_scene

FOLDERS = {"base": "base", "distilled": "distill"}
"""Role -> folder of the released layout."""
CLIPS, SEED = 6, 9_999


def sheet_of(runs: Path, role: str) -> Sheet:
    """What draws a sheet of the module ``transformer``, taken for ``role``, with the autoencoders of ``runs``.

    The model that it is made with lies in the folder ``preview`` of the runs.
    """
    preview = runs / "preview"
    export_autoencoders(runs, preview)
    return lambda path, modules: draw_samples(path, modules["transformer"], preview, role)


def draw_samples(path: Path, transformer: nn.Module, models: Path, role: str) -> None:
    """Writes a sheet of a few clips; ``models`` holds all parts but the transformer, which is put there."""
    write_transformer(transformer, models / FOLDERS[role])
    clips = dict(make_clips(load_stack(models, role), [_order(number) for number in range(CLIPS)]))
    sheets = []
    with TemporaryDirectory() as folder:
        for number in sorted(clips):
            part = Path(folder) / f"{number}.png"
            contact_sheet(clips[number].frames, clips[number].waveform, part, rate=RATE)
            sheets.append(np.asarray(Image.open(part)))
    Image.fromarray(np.concatenate(sheets)).save(path)


def _order(number: int) -> Order:
    rng = np.random.default_rng((SEED, number))
    return Order(prompt(sample_scene(rng), rng), number)
