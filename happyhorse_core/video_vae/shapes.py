"""What a file's tensor names say about the model in it, for detection and for errors that help."""

from collections.abc import Mapping

from ..errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

KNOWN_MODELS: tuple[tuple[str, str], ...] = (
    ("decoder.up_blocks.0.resnets.0.conv1.conv.weight", "a TurboVAED decoder"),
    ("encoder.downsamples.0.downsamples.0.residual.2.weight", "a Wan2.2 video autoencoder"),
    ("encoder.downsamples.0.residual.2.weight", "a Wan2.1 video autoencoder"),
    ("decoder.layers.1.layers.1.weight_v", "an Oobleck audio autoencoder"),
    ("adapter.video_embedder.weight", "the video and sound transformer"),
    ("embed_tokens.weight", "a text model"),
)
"""The end of a tensor's name that only one kind of file has, and that kind."""


def seems_to_be(shapes: Shapes) -> str:
    """A few words on what the tensors look like: a known kind of model, else the first names."""
    for ending, kind in KNOWN_MODELS:
        if any(name == ending or name.endswith("." + ending) for name in shapes):
            return f"tensors of {kind}"
    names = ", ".join(f"'{name}'" for name in sorted(shapes)[:3])
    return f"{len(shapes)} tensors such as {names}" if shapes else "no tensors"


def foreign(shapes: Shapes, where: str, expected: str) -> CheckpointError:
    """The error for a file that holds another model."""
    return CheckpointError(f"{where}: found {seems_to_be(shapes)}; expected {expected}. Choose another file.")


def dimension(shapes: Shapes, name: str, axis: int, where: str, expected: str) -> int:
    """One dimension of one tensor. Raises CheckpointError where the file lacks it."""
    if name not in shapes:
        raise CheckpointError(f"{where}: tensor '{name}' is missing; expected {expected}. The file may be incomplete.")
    shape = tuple(shapes[name])
    if len(shape) <= axis:
        raise CheckpointError(f"{where}: tensor '{name}' has shape {shape}; expected that of {expected}.")
    return shape[axis]


def count_blocks(shapes: Shapes, pattern: str) -> int:
    """How many of ``pattern.format(0)``, ``pattern.format(1)``, ... are there before the first gap."""
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count
