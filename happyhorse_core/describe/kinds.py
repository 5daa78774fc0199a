"""The five kinds of weights of the model, told apart by the names of their tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..audio_vae.config import detect_oobleck
from ..audio_vae.load import PREFIX as AUDIO_PREFIX
from ..audio_vae.load import fold_weight_norm
from ..audio_vae.model import Oobleck
from ..dit.load import TransformerFile, examine_transformer
from ..dit.model import HappyHorseTransformer
from ..errors import CheckpointError
from ..ops import ModuleArguments, TorchOps
from ..text.config import detect_text_encoder, encoder_prefix
from ..text.encoder import T5GemmaEncoder
from ..text.load import IGNORED as TEXT_IGNORED
from ..text.load import indexed_prefix, read_config
from ..video_vae.image_encoder import UNUSED, WanImageEncoder, detect_image_encoder
from ..video_vae.load import examine_turbo_decoder, still_frame_view
from ..video_vae.turbo_decoder import TurboDecoder
from ..weights.files import some
from ..weights.known import AUDIO_VAE, IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VIDEO_DECODER, find_known
from ..weights.source import TensorSource, open_source

AUTO = "auto"

_META = ModuleArguments(operations=TorchOps, dtype=torch.bfloat16, device="meta")


@dataclass(frozen=True)
class Contents:
    """Weights whose kind is known, opened but not read.

    ``opened`` has all tensors of the files, ``source`` those of the model as they are stored, without a prefix.
    ``as_loaded`` turns ``source`` into what ``module``, built without memory, is filled with; tensors of it that match
    ``ignore`` are left out. ``transformer`` is set for that kind alone.
    """

    kind: str
    path: Path
    opened: TensorSource
    source: TensorSource
    module: nn.Module
    config: Any
    as_loaded: Callable[[TensorSource], TensorSource] = field(default=lambda source: source)
    ignore: tuple[str, ...] = ()
    transformer: TransformerFile | None = None


def open_kind(path: Path, kind: str = AUTO, *, role: str | None = None, mapped: bool = True) -> Contents:
    """Opens a file or folder of weights; ``kind`` is one of KINDS, or ``auto`` to find out.

    ``role`` is for a transformer, ``mapped`` as for ``open_source``. Raises CheckpointError where the files are
    damaged, of no known kind or of another one than ``kind``.
    """
    opened = open_source(path, prefix=indexed_prefix(path), mapped=mapped)
    if kind == AUTO:
        kind = _find_kind(opened)
    return _OPENERS[kind](path, opened, role)


def _find_kind(opened: TensorSource) -> str:
    names = opened.names
    known = find_known(names)
    if known is not None and known.kind is not None:
        return known.kind
    raise CheckpointError(
        f"{opened.path}: found {len(names)} tensors of no known model ({some(sorted(names))}); expected the weights "
        f"of a {', '.join(KINDS[:-1])} or {KINDS[-1]}."
    )


def _open_transformer(path: Path, opened: TensorSource, role: str | None) -> Contents:
    file = examine_transformer(opened, path, role)
    module = HappyHorseTransformer(file.config, **_META)
    return Contents(TRANSFORMER, path, opened, file.source, module, file.config, transformer=file)


def _open_text_encoder(path: Path, opened: TensorSource, role: str | None) -> Contents:
    source = opened.sub(encoder_prefix(opened.names, str(path)))
    config = detect_text_encoder(source.shapes, read_config(path, opened.metadata), str(path))
    module = T5GemmaEncoder(config, **_META)
    return Contents(TEXT_ENCODER, path, opened, source, module, config, ignore=TEXT_IGNORED)


def _open_video_decoder(path: Path, opened: TensorSource, role: str | None) -> Contents:
    file = examine_turbo_decoder(opened)
    return Contents(VIDEO_DECODER, path, opened, file.source, TurboDecoder(file.config, **_META), file.config)


def _open_image_encoder(path: Path, opened: TensorSource, role: str | None) -> Contents:
    config = detect_image_encoder(opened.shapes, str(path))
    module = WanImageEncoder(config, **_META)
    return Contents(IMAGE_ENCODER, path, opened, opened, module, config, as_loaded=still_frame_view, ignore=UNUSED)


def _open_audio_vae(path: Path, opened: TensorSource, role: str | None) -> Contents:
    source = opened.sub(AUDIO_PREFIX) if any(name.startswith(AUDIO_PREFIX) for name in opened.names) else opened
    config = detect_oobleck(fold_weight_norm(source).shapes, str(path))
    return Contents(AUDIO_VAE, path, opened, source, Oobleck(config, **_META), config, as_loaded=fold_weight_norm)


_OPENERS: Mapping[str, Callable[[Path, TensorSource, str | None], Contents]] = {
    TRANSFORMER: _open_transformer,
    TEXT_ENCODER: _open_text_encoder,
    VIDEO_DECODER: _open_video_decoder,
    IMAGE_ENCODER: _open_image_encoder,
    AUDIO_VAE: _open_audio_vae,
}
KINDS = tuple(_OPENERS)
