"""What a file is, by the name of a tensor that no other kind of file has: the one table of it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..errors import CheckpointError

TRANSFORMER = "transformer"
TEXT_ENCODER = "text-encoder"
VIDEO_DECODER = "video-decoder"
IMAGE_ENCODER = "image-encoder"
AUDIO_VAE = "audio-vae"


class Known(NamedTuple):
    """Ends of tensors' names, the kind of file that has one (None of models that aren't ours), and its name."""

    endings: tuple[str, ...]
    kind: str | None
    words: str


KNOWN = (
    Known(("adapter.video_embedder.weight",), TRANSFORMER, "the video and sound transformer"),
    Known(("layers.0.pre_self_attn_layernorm.weight",), TEXT_ENCODER, "a text model"),
    Known(("encoder.downsamples.0.downsamples.0.residual.2.weight",), IMAGE_ENCODER, "a Wan2.2 video autoencoder"),
    Known(("encoder.downsamples.0.residual.2.weight",), None, "a Wan2.1 video autoencoder"),
    Known(("encoder.layers.0.bias", "decoder.layers.1.layers.1.weight_v"), AUDIO_VAE, "an Oobleck audio autoencoder"),
    Known(("up_blocks.0.resnets.0.conv1.conv.weight",), VIDEO_DECODER, "a TurboVAED decoder"),
    Known(("embed_tokens.weight",), None, "a text model"),
)
"""In order: of a file that holds several, the first decides."""


def find_known(names: Iterable[str]) -> Known | None:
    """The first row of the table that one of the names has; None where no row fits."""
    names = tuple(names)
    for row in KNOWN:
        if any(f".{name}".endswith(tuple(f".{ending}" for ending in row.endings)) for name in names):
            return row
    return None


def seems_to_be(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A few words on what the tensors look like: a known kind of model, else the first names."""
    known = find_known(shapes)
    if known is not None:
        return f"tensors of {known.words}"
    names = ", ".join(f"'{name}'" for name in sorted(shapes)[:3])
    return f"{len(shapes)} tensors such as {names}" if shapes else "no tensors"


def foreign(shapes: Mapping[str, tuple[int, ...]], where: str, expected: str) -> CheckpointError:
    """The error for a file that holds another model."""
    return CheckpointError(f"{where}: found {seems_to_be(shapes)}; expected {expected}. Choose another file.")
