"""The encoder of Wan2.2's 48-channel video autoencoder, for a single picture.

Source of the maths: the autoencoder published with Wan2.2 (TI2V-5B). Its 3-D convolutions look back in time, so the
first frame of a clip meets zeros in every tap but the last, and its downsampling in time starts with the second frame.
One picture therefore needs only the last tap of each kernel: the network here is two-dimensional, a third of the size
and of the work, with the same result. ``still_frame_tensor`` takes the checkpoint's tensors to it; names are kept.

Layers compute in the dtype of the picture that is handed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..geometry import SPATIAL_STRIDE
from ..ops import Device, DType, LayerArguments, ModuleArguments, Operations
from ..weights.known import foreign
from .shapes import count_blocks, dimension

EXPECTED = (
    "a Wan2.2 video autoencoder (keys 'encoder.conv1.weight', "
    "'encoder.downsamples.0.downsamples.0.residual.2.weight'), released as Wan2.2_VAE.pth"
)
UNUSED = ("decoder.*", "conv2.*", "encoder.*.time_conv.*")
"""Tensors of the file that a single picture never meets."""
PATCH_SIZE = 2
"""Pixels a side that are packed into channels before the first layer."""
COPIES = 4.1
"""Tensors of the first layers, the largest, that are alive at once; kernels need more for their work."""


@dataclass(frozen=True)
class DownStage:
    """One ``downsamples`` entry: residual blocks at ``channels``, then downsampling (or not)."""

    channels: int
    layers: int
    halves_space: bool
    halves_time: bool


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of a Wan2.2 encoder."""

    channels: int
    stages: tuple[DownStage, ...]
    latent_channels: int


def encoding_bytes(config: ImageEncoderConfig, height: int, width: int, itemsize: int) -> int:
    """Bytes without which no picture of ``height`` x ``width`` pixels is encoded."""
    return int(COPIES * config.channels * (height // PATCH_SIZE) * (width // PATCH_SIZE) * itemsize)


def detect_image_encoder(shapes: Mapping[str, tuple[int, ...]], where: str) -> ImageEncoderConfig:
    """Reads every size from the checkpoint's names and (3-D) shapes; ``where`` is the file, for errors.

    Raises CheckpointError for another model's tensors.
    """
    stage_count = count_blocks(shapes, "encoder.downsamples.{}.downsamples.0.residual.2.weight")
    if not stage_count:
        raise foreign(shapes, where, EXPECTED)
    config = ImageEncoderConfig(
        channels=dimension(shapes, "encoder.conv1.weight", 0, where, EXPECTED),
        stages=tuple(_detect_stage(shapes, f"encoder.downsamples.{i}.downsamples.", where) for i in range(stage_count)),
        latent_channels=dimension(shapes, "conv1.weight", 0, where, EXPECTED) // 2,
    )
    _check(config, where)
    return config


def _detect_stage(shapes: Mapping[str, tuple[int, ...]], prefix: str, where: str) -> DownStage:
    layers = count_blocks(shapes, prefix + "{}.residual.2.weight")
    return DownStage(
        channels=dimension(shapes, prefix + "0.residual.2.weight", 0, where, EXPECTED),
        layers=layers,
        halves_space=f"{prefix}{layers}.resample.1.weight" in shapes,
        halves_time=f"{prefix}{layers}.time_conv.weight" in shapes,
    )


def _check(config: ImageEncoderConfig, where: str) -> None:
    stride = PATCH_SIZE * 2 ** sum(stage.halves_space for stage in config.stages)
    if stride != SPATIAL_STRIDE:
        raise CheckpointError(
            f"{where}: this encoder makes one latent of {stride} x {stride} pixels; expected {SPATIAL_STRIDE} x "
            f"{SPATIAL_STRIDE}. A downsampler's tensors may be missing."
        )
    width = config.channels
    for index, stage in enumerate(config.stages):
        pooled = width * (2 if stage.halves_time else 1) * (4 if stage.halves_space else 1)
        if pooled % stage.channels:
            raise CheckpointError(
                f"{where}: tensors 'encoder.downsamples.{index}.*' go from {width} to {stage.channels} channels, which "
                f"can't be averaged in equal groups; expected {EXPECTED}."
            )
        width = stage.channels


def still_frame_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what the first frame of a clip meets of a checkpoint's tensor: see ``still_frame_tensor``.

    Kernels other than 1 x 1 x 1 and 3 x 3 x 3, and norms of another form, keep theirs, so that loading refuses them.
    """
    if len(shape) == 5 and shape[2] == shape[3] == shape[4]:
        return *shape[:2], *shape[3:]
    return shape[:3] if name.endswith(".gamma") and shape[1:] == (1, 1, 1) else shape


def still_frame_tensor(name: str, tensor: Tensor) -> Tensor:
    """The part of a checkpoint's tensor that the first frame of a clip meets.

    A 3-D kernel [out, in, t, h, w] gives its last tap [out, in, h, w]; a norm's ``gamma`` [C, 1, 1, 1] loses its time
    axis; all else stays.
    """
    shape = still_frame_shape(name, tuple(tensor.shape))
    return tensor[:, :, -1].contiguous() if len(shape) < tensor.ndim == 5 else tensor.reshape(shape)


class WanImageEncoder(nn.Module):
    """A picture -> the raw latent of a clip's first frame, as Wan2.2's VAE has it; ``latent_statistics`` normalises."""

    def __init__(
        self, config: ImageEncoderConfig, *, operations: Operations, dtype: DType = None, device: Device = None
    ) -> None:
        super().__init__()
        self.config = config
        both = 2 * config.latent_channels
        self.encoder = StillEncoder(config, operations=operations, dtype=dtype, device=device)
        self.conv1 = operations.Conv2d(both, both, 1, dtype=dtype, device=device)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, 1, H, W] in [-1, 1] -> [B, 48, 1, H/16, W/16] raw, float32. H and W are multiples of 16.

        The latent is the mean of the distribution that the autoencoder predicts, as in the released pipeline.
        """
        moments = self.conv1(self.encoder(pack_pixels(image.squeeze(2))))
        mean = moments[:, : self.config.latent_channels]
        return mean.unsqueeze(2).float()


class StillEncoder(nn.Module):
    def __init__(self, config: ImageEncoderConfig, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        kwargs = ModuleArguments(operations=operations, dtype=dtype, device=device)
        layer = LayerArguments(dtype=dtype, device=device)
        widths = [config.channels, *(stage.channels for stage in config.stages)]
        last = widths[-1]
        self.conv1 = operations.Conv2d(3 * PATCH_SIZE**2, config.channels, 3, padding=1, **layer)
        self.downsamples = nn.Sequential(
            *(DownBlock(width, stage, **kwargs) for width, stage in zip(widths, config.stages, strict=False))
        )
        self.middle = nn.Sequential(
            ResidualBlock(last, last, **kwargs), AttentionBlock(last, **kwargs), ResidualBlock(last, last, **kwargs)
        )
        self.head = nn.Sequential(
            ChannelNorm(last, **layer),
            nn.SiLU(),
            operations.Conv2d(last, 2 * config.latent_channels, 3, padding=1, **layer),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 12, H/2, W/2] -> [B, 96, H/16, W/16]."""
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class ChannelNorm(nn.Module):
    """x / |x| over channels, times sqrt(C) and a weight for each channel: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, *, dtype: DType, device: Device) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
        scale = x.shape[1] ** 0.5 / length
        return x.clone().mul_(scale).mul_(self.gamma)


class ResidualBlock(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__()
        kwargs = LayerArguments(dtype=dtype, device=device)
        self.residual = nn.Sequential(
            ChannelNorm(in_channels, **kwargs),
            nn.SiLU(inplace=True),
            operations.Conv2d(in_channels, out_channels, 3, padding=1, **kwargs),
            ChannelNorm(out_channels, **kwargs),
            nn.SiLU(inplace=True),
            nn.Identity(),  # the dropout of training: holds its number among the checkpoint's keys
            operations.Conv2d(out_channels, out_channels, 3, padding=1, **kwargs),
        )
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = operations.Conv2d(in_channels, out_channels, 1, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x).add_(x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention over all places of the picture, with one head as wide as the layer."""

    def __init__(self, channels: int, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        kwargs = LayerArguments(dtype=dtype, device=device)
        self.norm = ChannelNorm(channels, **kwargs)
        self.to_qkv = operations.Conv2d(channels, 3 * channels, 1, **kwargs)
        self.proj = operations.Conv2d(channels, channels, 1, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        # Not operations.attention: a head of 640 channels is more than most attention kernels take.
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).unsqueeze(1).transpose(2, 3).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])).add_(x)


class Downsampler(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        # Zeros at the right and the bottom only, which a convolution's own padding can't do.
        pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.resample = nn.Sequential(
            pad, operations.Conv2d(channels, channels, 3, stride=2, dtype=dtype, device=device)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class DownBlock(nn.Module):
    """Residual blocks and downsampling, beside a shortcut that averages groups of neighbours and channels."""

    def __init__(
        self, in_channels: int, stage: DownStage, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__()
        kwargs = ModuleArguments(operations=operations, dtype=dtype, device=device)
        self.stage = stage
        widths = [in_channels] + [stage.channels] * stage.layers
        layers: list[nn.Module] = [ResidualBlock(width, stage.channels, **kwargs) for width in widths[: stage.layers]]
        if stage.halves_space:
            layers.append(Downsampler(stage.channels, **kwargs))
        self.downsamples = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsamples(x).add_(average_down(x, self.stage))


def average_down(x: Tensor, stage: DownStage) -> Tensor:
    """[B, C, H, W] -> [B, C', H', W']: means over equal groups of (channel, frame, row, column) in that order.

    Where the stage halves time the frame before the picture takes part, and it is all zeros.
    """
    factor = 2 if stage.halves_space else 1
    x = F.pixel_unshuffle(x, factor).unflatten(1, (-1, 1, factor * factor))
    if stage.halves_time:
        x = torch.cat([torch.zeros_like(x), x], dim=2)
    return x.flatten(1, 3).unflatten(1, (stage.channels, -1)).mean(dim=2)


def pack_pixels(image: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 12, H/2, W/2]; of a patch the column is the slower of the two in the channels."""
    image = image.unflatten(3, (-1, PATCH_SIZE)).unflatten(2, (-1, PATCH_SIZE))
    return image.permute(0, 1, 5, 3, 2, 4).flatten(1, 3)
