"""The audio autoencoder from its file: Stable Audio Open's whole checkpoint, or the autoencoder alone."""

from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..geometry import AUDIO_CHANNELS, SAMPLES_PER_AUDIO_LATENT
from ..ops import Operations, TorchOps
from ..progress import Progress, silent
from ..weights.component import ComponentFile, build
from ..weights.source import Opener, TensorEntry, TensorSource, open_source
from .config import OobleckConfig, detect_oobleck
from .model import Oobleck

PREFIX = "pretransform.model."
"""Where the autoencoder stands in Stable Audio Open; the diffusion model and its conditioners are never read."""

WEIGHT_NORM_NAMES = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
"""Magnitude and direction: as released, and as newer PyTorch names them when another program saves the model again."""


def inspect_oobleck(path: str | Path, opener: Opener = open_source) -> ComponentFile[OobleckConfig]:
    """``stable-audio-open-1.0`` (folder or file) or a file of the autoencoder alone, reading headers alone.

    Raises CheckpointError for a file that is damaged or of another model, also for an Oobleck of another model: the
    transformer's sound is stereo, with 64 channels and 2048 samples per latent.
    """
    file = examine_oobleck(opener(path))
    found = (file.config.audio_channels, file.config.latent_channels, file.config.samples_per_latent)
    expected = (2, AUDIO_CHANNELS, SAMPLES_PER_AUDIO_LATENT)
    if found != expected:
        raise CheckpointError(
            f"{path}: the autoencoder of another model; found {found[0]} channels of sound, {found[1]} of latents and "
            f"{found[2]} samples per latent, expected {expected[0]}, {expected[1]} and {expected[2]}. "
            "Choose stable-audio-open-1.0."
        )
    return file


def examine_oobleck(source: TensorSource) -> ComponentFile[OobleckConfig]:
    """The autoencoder of whatever size an open checkpoint holds. Raises CheckpointError."""
    source = fold_weight_norm(source.sub(PREFIX) if any(name.startswith(PREFIX) for name in source.names) else source)
    return ComponentFile(source, detect_oobleck(source.shapes, str(source.path)))


def load_oobleck(
    path: str | Path,
    *,
    operations: Operations = TorchOps,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Oobleck:
    """The autoencoder, its weights in ``dtype`` on ``device``; errors as ``inspect_oobleck``, also for tensors."""
    return build(inspect_oobleck(path), Oobleck, operations=operations, dtype=dtype, device=device, progress=progress)


def read_oobleck(
    source: TensorSource,
    *,
    operations: Operations = TorchOps,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Oobleck:
    """The autoencoder of whatever size ``source`` holds; closes it. Raises CheckpointError."""
    return build(examine_oobleck(source), Oobleck, operations=operations, dtype=dtype, device=device, progress=progress)


def fold_weight_norm(source: TensorSource) -> TensorSource:
    """A view in which each pair of magnitude g and direction v is one float32 ``weight``: g * v / |v|.

    The norm runs over everything but the first dimension, in float32 whatever the file holds.
    """
    entries = dict(source.entries)
    for magnitude_name, direction_name in WEIGHT_NORM_NAMES:
        for name in source.names:
            stem = name.removesuffix(direction_name)
            if stem != name and stem + magnitude_name in entries:
                magnitude, direction = entries.pop(stem + magnitude_name), entries.pop(name)
                entries[stem + "weight"] = _folded(stem, magnitude, direction)
    return source.with_entries(entries)


def _folded(stem: str, magnitude: TensorEntry, direction: TensorEntry) -> TensorEntry:
    expected = (*direction.shape[:1], 1, 1)
    if magnitude.shape != expected or len(direction.shape) != 3:
        raise CheckpointError(
            f"{magnitude.file}: the weight norm of {stem.rstrip('.')!r} has a magnitude of shape "
            f"{list(magnitude.shape)} and a direction of shape {list(direction.shape)}; expected [N, 1, 1] and "
            "three dimensions, N first. The file is damaged; download it again."
        )

    def read() -> Tensor:
        v = direction.read().float()
        return v * (magnitude.read().float() / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))

    return TensorEntry(direction.file, direction.shape, torch.float32, read)
