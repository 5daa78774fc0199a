"""The two video autoencoders from the files that they are released in."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..ops import Operations, TorchOps
from ..progress import Progress, silent
from ..weights.fill import load_module
from ..weights.source import TensorEntry, TensorSource, open_source
from .image_encoder import UNUSED, WanImageEncoder, detect_image_encoder, still_frame_shape, still_frame_tensor
from .turbo_decoder import TurboDecoder, detect_turbo_vaed


def load_turbo_decoder(
    path: str | Path,
    *,
    operations: Operations = TorchOps,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> TurboDecoder:
    """TurboVAED from ``checkpoint-340000.ckpt`` or a safetensors file; weights are kept in ``dtype`` on ``device``.

    Key map: names may lack the ``decoder.`` that the released file has. Raises CheckpointError for a file that is
    missing, damaged, incomplete or of another model.
    """
    with open_source(path) as file:
        source = file.renamed("decoder.{}".format) if "conv_in.conv.weight" in file else file
        config = detect_turbo_vaed(source.shapes, str(path), source.metadata)
        decoder = TurboDecoder(config, operations=operations, dtype=dtype, device="meta")
        load_module(decoder, source, device=device, progress=progress)
    return decoder


def load_image_encoder(
    path: str | Path,
    *,
    operations: Operations = TorchOps,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> WanImageEncoder:
    """The image encoder from ``Wan2.2_VAE.pth`` or a safetensors file; weights are kept in ``dtype`` on ``device``.

    The video decoder in the same file is not read, and of the encoder only what a single picture needs. Raises
    CheckpointError for a file that is missing, damaged, incomplete or of another model.
    """
    with open_source(path) as file:
        config = detect_image_encoder(file.shapes, str(path))
        encoder = WanImageEncoder(config, operations=operations, dtype=dtype, device="meta")
        load_module(encoder, still_frame_view(file), ignore=UNUSED, device=device, progress=progress)
    return encoder


def still_frame_view(source: TensorSource) -> TensorSource:
    """The transformation from Wan2.2's 3-D tensors to the two-dimensional encoder's, applied as each is read."""
    return source.with_entries({name: _still_entry(name, entry) for name, entry in source.entries.items()})


def _still_entry(name: str, entry: TensorEntry) -> TensorEntry:
    return replace(entry, shape=still_frame_shape(name, entry.shape), read=partial(_read_still, name, entry))


def _read_still(name: str, entry: TensorEntry) -> Tensor:
    return still_frame_tensor(name, entry.read())
