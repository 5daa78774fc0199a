"""Builds a transformer from its files."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..ops import Operations, TorchOps
from ..progress import Progress, silent
from ..weights.fill import load_module
from ..weights.formats import FLOAT8
from ..weights.source import Opener, TensorEntry, TensorSource, open_source
from .config import TransformerConfig
from .detect import detect_transformer, find_prefix
from .float8 import float8_operations
from .model import HappyHorseTransformer
from .roles import Role, resolve_role
from .rope import frequency_bands
from .split_experts import merge_split_experts

logger = logging.getLogger(__name__)

BANDS = "adapter.rope.bands"
ATTENTION_CHOICE = ".comfy_attention.config"
IGNORED = (f"*{ATTENTION_CHOICE}",)
"""ComfyUI's note in a file of how a layer attends; of use there alone."""


@dataclass(frozen=True)
class TransformerFile:
    """A checkpoint that was looked into but not read: its tensors under the released names, sizes and role."""

    source: TensorSource
    config: TransformerConfig
    role: Role
    role_origin: str


def inspect_transformer(path: Path, role: str | None = None, opener: Opener = open_source) -> TransformerFile:
    """Opens a checkpoint and detects its sizes and role, reading headers alone.

    ``role`` is one of base, distilled, 540p_sr, 1080p_sr, or None to find out. Raises CheckpointError.
    """
    return examine_transformer(opener(path), path, role)


def examine_transformer(source: TensorSource, path: Path, role: str | None = None) -> TransformerFile:
    """What ``inspect_transformer`` does once a checkpoint is open; ``path`` is where it was opened."""
    source = merge_split_experts(source)
    prefix = find_prefix(source.names, str(path))
    source = source.sub(prefix) if prefix else source
    found, origin = resolve_role(role, source.metadata, Path(path))
    config = detect_transformer(source.shapes, role=found, metadata=source.metadata, where=str(path))
    return TransformerFile(_with_exact_bands(source, config.rope_bands), config, found, origin)


def _with_exact_bands(source: TensorSource, count: int) -> TensorSource:
    """Merged files store the rotary frequencies rounded, which moves every position; the formula is exact."""
    stored = source.entries.get(BANDS)
    if stored is None or stored.dtype == torch.float32 or not stored.dtype.is_floating_point:
        return source  # what doesn't fit is named where all tensors are checked
    exact = TensorEntry(stored.file, stored.shape, torch.float32, partial(frequency_bands, count))
    return source.with_entries({**source.entries, BANDS: exact})


def keeps_float8(dtype: torch.dtype) -> bool:
    """Whether ``load_transformer`` keeps float8 weights when asked for ``dtype``: not when asked for exact ones."""
    return dtype == torch.bfloat16


def loaded_bytes(file: TransformerFile, dtype: torch.dtype) -> int:
    """What the weights take once they are loaded in ``dtype``, nearly: a few small ones are float32."""
    return sum(
        entry.numel * (1 if entry.dtype == FLOAT8 and keeps_float8(dtype) else dtype.itemsize)
        for entry in file.source.entries.values()
    )


def load_transformer(
    file: TransformerFile,
    *,
    operations: Operations | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> HappyHorseTransformer:
    """Reads the weights: linear layers of the blocks in ``dtype``, everything that must be exact in float32.

    With bfloat16 and no other ``operations``, layers that the file has in float8_e4m3fn stay so (see ``float8``).
    """
    if operations is None:
        operations = float8_operations(torch.device(device)) if keeps_float8(dtype) else TorchOps
    model = HappyHorseTransformer(file.config, operations=operations, dtype=dtype, device="meta")
    load_module(model, file.source, ignore=IGNORED, device=device, progress=progress)
    logger.info(
        "Loaded the %s transformer (%s): %d layers, hidden %d, %s, from %s",
        file.role.name,
        file.role_origin,
        file.config.num_layers,
        file.config.hidden_size,
        dtype,
        file.source.path,
    )
    return model.eval()
