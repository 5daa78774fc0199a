"""The two video autoencoders from the files that they are released in."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..ops import Operations, TorchOps
from ..progress import Progress, silent
from ..weights.component import ComponentFile, build
from ..weights.source import Opener, TensorEntry, TensorSource, open_source
from .image_encoder import (
    UNUSED,
    ImageEncoderConfig,
    WanImageEncoder,
    detect_image_encoder,
    still_frame_shape,
    still_frame_tensor,
)
from .turbo_decoder import TurboDecoder, TurboVAEDConfig, detect_turbo_vaed


def inspect_turbo_decoder(path: str | Path, opener: Opener = open_source) -> ComponentFile[TurboVAEDConfig]:
    """TurboVAED's ``checkpoint-340000.ckpt`` or a safetensors file, reading headers alone.

    Key map: names may lack the ``decoder.`` that the released file has. Raises CheckpointError for a file that is
    missing, damaged or of another model.
    """
    return examine_turbo_decoder(opener(path))


def examine_turbo_decoder(source: TensorSource) -> ComponentFile[TurboVAEDConfig]:
    """What ``inspect_turbo_decoder`` does once a file is open."""
    if "conv_in.conv.weight" in source:
        source = source.renamed("decoder.{}".format)
    return ComponentFile(source, detect_turbo_vaed(source.shapes, str(source.path), source.metadata))


def load_turbo_decoder(
    path: str | Path,
    *,
    operations: Operations = TorchOps,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> TurboDecoder:
    """The decoder, its weights in ``dtype`` on ``device``; errors as ``inspect_turbo_decoder``, also for tensors."""
    file = inspect_turbo_decoder(path)
    return build(file, TurboDecoder, operations=operations, dtype=dtype, device=device, progress=progress)


def inspect_image_encoder(path: str | Path, opener: Opener = open_source) -> ComponentFile[ImageEncoderConfig]:
    """The image encoder in ``Wan2.2_VAE.pth`` or a safetensors file, reading headers alone.

    The video decoder in the same file is ignored, and of the encoder's tensors only what a single frame needs is
    shown. Raises CheckpointError for a file that is missing, damaged or of another model.
    """
    file = opener(path)
    config = detect_image_encoder(file.shapes, str(path))
    return ComponentFile(still_frame_view(file), config, UNUSED)


def load_image_encoder(
    path: str | Path,
    *,
    operations: Operations = TorchOps,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> WanImageEncoder:
    """The encoder, its weights in ``dtype`` on ``device``; errors as ``inspect_image_encoder``, also for tensors."""
    file = inspect_image_encoder(path)
    return build(file, WanImageEncoder, operations=operations, dtype=dtype, device=device, progress=progress)


def still_frame_view(source: TensorSource) -> TensorSource:
    """The transformation from Wan2.2's 3-D tensors to the two-dimensional encoder's, applied as each is read."""
    return source.with_entries({name: _still_entry(name, entry) for name, entry in source.entries.items()})


def _still_entry(name: str, entry: TensorEntry) -> TensorEntry:
    return replace(entry, shape=still_frame_shape(name, entry.shape), read=partial(_read_still, name, entry))


def _read_still(name: str, entry: TensorEntry) -> Tensor:
    return still_frame_tensor(name, entry.read())
