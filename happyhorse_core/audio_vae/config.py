"""The sizes of an Oobleck autoencoder, read off the shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

SAMPLING_LAYER = {"encoder": 4, "decoder": 1}
"""Where the strided convolution stands in a block: after the residual units, or before them."""


@dataclass(frozen=True)
class OobleckConfig:
    """Widths run from the waveform's side to the latent's, in the encoder and in the decoder alike.

    ``encoder_widths`` has one entry more than ``encoder_strides``: ``encoder_strides[i]`` leads from width i to i + 1.
    """

    audio_channels: int
    latent_channels: int
    encoder_widths: tuple[int, ...]
    encoder_strides: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    decoder_strides: tuple[int, ...]

    @property
    def samples_per_latent(self) -> int:
        return math.prod(self.encoder_strides)


def detect_oobleck(shapes: Shapes, where: str) -> OobleckConfig:
    """Reads the sizes from names and shapes as the module has them: no prefix, weight norm folded into ``weight``.

    A stride is half the kernel of its convolution. Raises CheckpointError that names ``where`` and the tensor at fault.
    The final tanh that the architecture allows leaves no trace in the tensors; the released model has none.
    """
    encoder = _count_blocks(shapes, "encoder", where)
    decoder = _count_blocks(shapes, "decoder", where)
    last = _shape(shapes, f"encoder.layers.{encoder + 2}.weight", where)
    config = OobleckConfig(
        audio_channels=_shape(shapes, "encoder.layers.0.weight", where)[1],
        latent_channels=last[0] // 2,
        encoder_widths=(
            _shape(shapes, "encoder.layers.0.weight", where)[0],
            *(_sampling(shapes, "encoder", n, where)[0] for n in range(1, encoder + 1)),
        ),
        encoder_strides=tuple(_stride(shapes, "encoder", n, where) for n in range(1, encoder + 1)),
        # A transposed convolution's weight is [in, out, kernel], and the decoder's first block is the latent's.
        decoder_widths=(
            *(_sampling(shapes, "decoder", n, where)[1] for n in range(decoder, 0, -1)),
            _shape(shapes, "decoder.layers.0.weight", where)[0],
        ),
        decoder_strides=tuple(_stride(shapes, "decoder", n, where) for n in range(decoder, 0, -1)),
    )
    if config.samples_per_latent != math.prod(config.decoder_strides):
        raise CheckpointError(
            f"{where}: its encoder makes one latent of {config.samples_per_latent} samples, its decoder "
            f"{math.prod(config.decoder_strides)} samples of one latent; expected the same number."
        )
    return config


def _count_blocks(shapes: Shapes, half: str, where: str) -> int:
    found = (re.match(rf"{half}\.layers\.(\d+)\.layers\.", name) for name in shapes)
    count = max((int(match[1]) for match in found if match), default=0)
    if not count:
        raise CheckpointError(
            f"{where}: not Stable Audio Open's autoencoder; it has no tensors of {half}.layers.1. "
            "Expected stable-audio-open-1.0/model.safetensors, or its autoencoder alone."
        )
    return count


def _shape(shapes: Shapes, name: str, where: str) -> tuple[int, ...]:
    shape = tuple(shapes.get(name, ()))
    if len(shape) != 3:
        found = f"of shape {list(shape)}" if name in shapes else "missing"
        raise CheckpointError(
            f"{where}: {name!r} is {found}, expected a one-dimensional convolution. "
            "The file is damaged or of another model; download stable-audio-open-1.0 again."
        )
    return shape


def _sampling(shapes: Shapes, half: str, block: int, where: str) -> tuple[int, ...]:
    return _shape(shapes, f"{half}.layers.{block}.layers.{SAMPLING_LAYER[half]}.weight", where)


def _stride(shapes: Shapes, half: str, block: int, where: str) -> int:
    return _sampling(shapes, half, block, where)[2] // 2
