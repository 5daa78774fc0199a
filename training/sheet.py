"""Sheets of a transformer in training: clips of a few prompts, made by the shipped loaders and sampler."""

from pathlib import Path, PurePath
from shutil import copytree
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torch import nn

from happyhorse_core.model_folder import AUDIO_VAE, IMAGE_ENCODER, TEXT_ENCODER, VIDEO_DECODER
from tools.contact_sheet import contact_sheet

from .export import write_transformer
from .run import Sheet
from .sample import RATE, Order, load_stack, make_clips
from .world.prompts import prompt
from .world.scene import sample_scene

FOLDERS = {"base": "base", "distilled": "distill"}
"""Role -> folder of the released layout."""
PARTS = (TEXT_ENCODER, VIDEO_DECODER, IMAGE_ENCODER, AUDIO_VAE)
CLIPS, SEED = 6, 9_999


def sheet_of(runs: Path, models: Path, role: str) -> Sheet:
    """What draws a sheet of the module ``transformer``, taken for ``role``, with the autoencoders of ``models``.

    The model that it is made with lies in the folder ``preview`` of the runs.
    """
    preview = runs / "preview"
    for part in PARTS:
        folder = PurePath(part.places[0]).parts[0]
        copytree(models / folder, preview / folder, dirs_exist_ok=True)
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
