"""TurboVAED: a small video decoder for Wan2.2's latent space, run over a clip in windows.

Module names are the checkpoint's keys. Source of the maths: the decoder published with daVinci-MagiHuman, released as
``TurboV3-Wan22-TinyShallow_7_7``. In short: 3-D residual blocks whose norms have no weights, three nearest-neighbour
upsamplers (two of which also double the frames), and a last layer that paints 2 x 2 pixels at a time.

Layers compute in the dtype of the latent that is handed in. In time the convolutions see the first and last frame of a
window repeated, in space zeros. The first latent frame of a clip stands for one picture, each later one for four.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..geometry import SPATIAL_STRIDE, TEMPORAL_STRIDE
from ..ops import Device, DType, LayerArguments, ModuleArguments, Operations
from ..progress import Progress, silent
from ..weights.json_file import is_whole, parse_object, shown
from ..weights.known import foreign
from .shapes import count_blocks, dimension

EXPECTED = "a TurboVAED decoder (keys 'decoder.conv_in.conv.weight', 'decoder.up_blocks.0.resnets.0.conv1.conv.weight')"
LONGEST_WINDOW = 1024
"""Latent frames: a window is decoded at once, so a long one is memory asked for in vain."""
CONTEXT = 1
"""Latent frames that a window sees of its neighbours, on either side, and whose frames are thrown away."""
NORM_EPS = 1e-8
SHORTCUT_NORM_EPS = 1e-6

Activation = Callable[..., Tensor]


@dataclass(frozen=True)
class UpStage:
    """One ``up_blocks`` entry: upsample (or not), then residual blocks at ``channels``."""

    channels: int
    layers: int
    doubles_space: bool
    doubles_time: bool


@dataclass(frozen=True)
class TurboVAEDConfig:
    """Sizes of a TurboVAED decoder.

    ``first_window`` and ``window`` are the latent frames decoded at a time, at the start of a clip and after it. The
    tensors don't tell them: the released decoder was trained with 7 and 7, as its name says.
    """

    latent_channels: int
    mid_channels: int
    mid_layers: int
    stages: tuple[UpStage, ...]
    patch_size: int
    first_window: int = 7
    window: int = 7


def detect_turbo_vaed(
    shapes: Mapping[str, tuple[int, ...]], where: str, metadata: Mapping[str, str] | None = None
) -> TurboVAEDConfig:
    """Reads every size from the tensors' names and shapes; ``where`` is the file, for errors.

    The windows are the released ones, unless ``metadata`` has the decoder's published settings (JSON) as ``config``.
    Raises CheckpointError for another model's tensors and for variants of TurboVAED that are not built here.
    """
    for part in ("depthwise_conv", "upsampler2d_1"):
        found = next((name for name in shapes if name.startswith("decoder.") and part in name), None)
        if found is not None:
            raise CheckpointError(
                f"{where}: found tensor '{found}', of a TurboVAED variant that is not supported; expected the released "
                "one (full convolutions, pixels unpacked by the last layer). Use checkpoint-340000.ckpt."
            )
    stage_count = count_blocks(shapes, "decoder.up_blocks.{}.resnets.0.conv1.conv.weight")
    if not stage_count:
        raise foreign(shapes, where, EXPECTED)
    config = TurboVAEDConfig(
        latent_channels=dimension(shapes, "decoder.conv_in.conv.weight", 1, where, EXPECTED),
        mid_channels=dimension(shapes, "decoder.conv_in.conv.weight", 0, where, EXPECTED),
        mid_layers=count_blocks(shapes, "decoder.mid_block.resnets.{}.conv1.conv.weight"),
        stages=tuple(_detect_stage(shapes, f"decoder.up_blocks.{i}.", where) for i in range(stage_count)),
        patch_size=round((dimension(shapes, "decoder.conv_out.conv.weight", 0, where, EXPECTED) / 3) ** 0.5),
        **_windows(metadata or {}, where),
    )
    _check_strides(config, where)
    return config


def _windows(metadata: Mapping[str, str], where: str) -> dict[str, int]:
    if "config" not in metadata:
        return {}
    settings = parse_object(metadata["config"], f"{where}: metadata 'config'")
    windows: dict[str, int] = {}
    for name, key in (("first_window", "first_chunk_size"), ("window", "step_size")):
        latents = settings.get(key)
        if not is_whole(latents, 1, LONGEST_WINDOW):
            raise CheckpointError(
                f"{where}: metadata 'config': {key}: found {shown(latents)}; expected the latent frames that are "
                f"decoded at a time, 1 to {LONGEST_WINDOW}."
            )
        windows[name] = latents
    return windows


def _detect_stage(shapes: Mapping[str, tuple[int, ...]], prefix: str, where: str) -> UpStage:
    return UpStage(
        channels=dimension(shapes, prefix + "resnets.0.conv1.conv.weight", 0, where, EXPECTED),
        layers=count_blocks(shapes, prefix + "resnets.{}.conv1.conv.weight"),
        doubles_space=prefix + "upsamplers.0.resample.1.weight" in shapes,
        doubles_time=prefix + "upsamplers.0.time_conv.conv.weight" in shapes,
    )


def _check_strides(config: TurboVAEDConfig, where: str) -> None:
    space = config.patch_size * 2 ** sum(stage.doubles_space for stage in config.stages)
    time = 2 ** sum(stage.doubles_time for stage in config.stages)
    if (time, space) != (TEMPORAL_STRIDE, SPATIAL_STRIDE):
        raise CheckpointError(
            f"{where}: this decoder makes {time} frames and {space} x {space} pixels of a latent; expected "
            f"{TEMPORAL_STRIDE} and {SPATIAL_STRIDE} x {SPATIAL_STRIDE}. An upsampler's tensors may be missing."
        )


class Window(NamedTuple):
    """A run of latent frames to decode together, and what of the result is kept.

    ``start`` and ``stop`` may reach past the clip's end: its last latent frame stands in. ``skip`` and ``drop`` are
    the frames cut from the front and the back of the decoded run.
    """

    start: int
    stop: int
    skip: int
    drop: int

    @property
    def starts_clip(self) -> bool:
        return self.skip == 0


def plan_windows(length: int, first: int, step: int) -> list[Window]:
    """Windows that cover ``length`` latent frames once: one of ``first``, then as many of ``step`` as it takes."""
    steps = -(-max(0, length - first) // step)
    end = first + steps * step
    edges = [0, *range(first, end + 1, step)]
    plan = []
    for start, stop in pairwise(edges):
        before = CONTEXT if start > 0 else 0
        after = CONTEXT if stop < end else max(0, stop - length)
        reach = stop + (CONTEXT if stop < end else 0)
        plan.append(Window(start - before, reach, before * TEMPORAL_STRIDE, after * TEMPORAL_STRIDE))
    return plan


class TurboDecoder(nn.Module):
    """Raw video latents of Wan2.2's VAE -> frames. ``decoder`` is the network, named as in the checkpoint."""

    def __init__(
        self, config: TurboVAEDConfig, *, operations: Operations, dtype: DType = None, device: Device = None
    ) -> None:
        super().__init__()
        self.config = config
        self.decoder = WindowDecoder(config, operations=operations, dtype=dtype, device=device)

    def decode_windows(self, latent: Tensor, progress: Progress = silent) -> Iterator[Tensor]:
        """[B, 48, T, H, W] raw -> consecutive chunks [B, 3, f, 16H, 16W] about [-1, 1], not clamped.

        The chunks have 4(T-1) + 1 frames together, in the latent's dtype. Only one window is in memory at a time, so
        a caller that writes or moves each chunk away can decode clips of any length.
        """
        plan = plan_windows(latent.shape[2], self.config.first_window, self.config.window)
        for done, window in enumerate(plan, start=1):
            yield self.decode_window(latent, window)
            progress(done, len(plan))

    def forward(self, latent: Tensor) -> Tensor:
        """[B, 48, T, H, W] raw -> [B, 3, 4(T-1) + 1, 16H, 16W] about [-1, 1], not clamped."""
        return torch.cat(list(self.decode_windows(latent)), dim=2)

    def decode_window(self, latent: Tensor, window: Window) -> Tensor:
        """[B, 48, T, H, W] raw -> the frames of one window [B, 3, f, 16H, 16W]."""
        frames = torch.arange(window.start, window.stop, device=latent.device).clamp_(max=latent.shape[2] - 1)
        video = self.decoder(latent.index_select(2, frames), starts_clip=window.starts_clip)
        return video[:, :, window.skip : video.shape[2] - window.drop]


class WindowDecoder(nn.Module):
    """The network: one run of raw latent frames -> their frames."""

    def __init__(self, config: TurboVAEDConfig, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        kwargs = ModuleArguments(operations=operations, dtype=dtype, device=device)
        self.patch_size = config.patch_size
        self.conv_in = EdgeConv3d(config.latent_channels, config.mid_channels, **kwargs)
        self.mid_block = MidBlock(config.mid_channels, config.mid_layers, **kwargs)
        widths = [config.mid_channels, *(stage.channels for stage in config.stages)]
        self.up_blocks = nn.ModuleList(
            UpBlock(width, stage, **kwargs) for width, stage in zip(widths, config.stages, strict=False)
        )
        self.conv_out = EdgeConv3d(widths[-1], 3 * config.patch_size**2, **kwargs)

    def forward(self, latent: Tensor, *, starts_clip: bool) -> Tensor:
        """[B, 48, n, H, W] -> [B, 3, F, 16H, 16W]; F is 4n, or 4(n-1) + 1 where the run starts a clip."""
        x = self.conv_in(repeat_edges(latent))
        # Blocks list their layers instead of running them: a block's caller would keep its input alive to the end of
        # it, at 1080p two more gigabytes.
        for block in (self.mid_block, *self.up_blocks):
            for layer in block.layers():
                x = layer(x, starts_clip=starts_clip) if isinstance(layer, Upsampler) else layer(x)
        x = self.conv_out(normed_with_edges(x, F.silu))
        return unpack_pixels(x, self.patch_size)


class EdgeConv3d(nn.Module):
    """A 3-D convolution that eats one frame at either end in time (kernel 3); its callers repeat the edges first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        operations: Operations,
        dtype: DType,
        device: Device,
    ) -> None:
        super().__init__()
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = operations.Conv3d(in_channels, out_channels, kernel, padding=padding, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResidualBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        first_activation: Activation = F.silu,
        *,
        operations: Operations,
        dtype: DType,
        device: Device,
    ) -> None:
        super().__init__()
        kwargs = ModuleArguments(operations=operations, dtype=dtype, device=device)
        self.first_activation = first_activation
        self.conv1 = EdgeConv3d(in_channels, out_channels, **kwargs)
        self.conv2 = EdgeConv3d(out_channels, out_channels, **kwargs)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = EdgeConv3d(in_channels, out_channels, (1, 1, 1), **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        # Nested so that no name keeps a large intermediate alive longer than its one use.
        out = self.conv2(normed_with_edges(self.conv1(normed_with_edges(x, self.first_activation)), F.silu))
        if self.conv_shortcut is None:
            return out.add_(x)
        return out.add_(self.conv_shortcut(x * inverse_rms(x, SHORTCUT_NORM_EPS).to(x.dtype)))


class MidBlock(nn.Module):
    """Residual blocks at one size."""

    def __init__(self, channels: int, layers: int, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(channels, channels, operations=operations, dtype=dtype, device=device) for _ in range(layers)
        )

    def layers(self) -> Iterator[nn.Module]:
        yield from self.resnets


class UpBlock(nn.Module):
    """Change of width, then upsampling, then residual blocks; each of the first two only where the stage has it."""

    def __init__(
        self, in_channels: int, stage: UpStage, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__()
        kwargs = ModuleArguments(operations=operations, dtype=dtype, device=device)
        self.conv_in = None
        if in_channels != stage.channels:
            self.conv_in = ResidualBlock(in_channels, stage.channels, **kwargs)
        self.upsamplers = nn.ModuleList()
        if stage.doubles_space:
            self.upsamplers.append(Upsampler(stage.channels, stage.doubles_time, **kwargs))
        # The released decoder was trained with ReLU right after the first norm of blocks that follow an upsampler.
        activation = F.relu if stage.doubles_space else F.silu
        self.resnets = nn.ModuleList(
            ResidualBlock(stage.channels, stage.channels, activation, **kwargs) for _ in range(stage.layers)
        )

    def layers(self) -> Iterator[nn.Module]:
        if self.conv_in is not None:
            yield self.conv_in
        yield from self.upsamplers
        yield from self.resnets


class Upsampler(nn.Module):
    """Doubles height and width (nearest neighbour, then a convolution) and, where asked, first the frames."""

    def __init__(
        self, channels: int, doubles_time: bool, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__()
        kwargs = LayerArguments(dtype=dtype, device=device)
        upsample = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(upsample, operations.Conv2d(channels, channels, 3, padding=1, **kwargs))
        self.time_conv = None
        if doubles_time:
            self.time_conv = EdgeConv3d(channels, 2 * channels, (3, 1, 1), operations=operations, **kwargs)

    def forward(self, x: Tensor, *, starts_clip: bool) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T', 2H, 2W]; T' is T, 2T, or 2T - 1 where the run starts a clip."""
        batch = x.shape[0]
        if self.time_conv is None:
            frames = x.transpose(1, 2)
        else:
            # The first half of the channels is the earlier of the two frames: [B, 2C, T, ...] -> [B, 2T, C, ...].
            x = self.time_conv(repeat_edges(x))
            frames = x.unflatten(1, (2, -1)).permute(0, 3, 1, 2, 4, 5).flatten(1, 2)
            frames = frames[:, 1:] if starts_clip else frames
        frames = self.resample(frames.flatten(0, 1))
        return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean over channels of x^2 + eps): [B, C, T, H, W] -> float32 [B, 1, T, H, W]."""
    # A norm reduces in float32 without a float32 copy of x, which at full size would be gigabytes.
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(norm.square() / x.shape[1] + eps)


def normed_with_edges(x: Tensor, activation: Activation) -> Tensor:
    """RMS norm over channels, activation, and the first and last frame repeated: [B, C, T, ...] -> [B, C, T + 2, ...].

    All in one buffer, as the tensors here are the largest of the whole decoder; a gradient needs the steps apart.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + NORM_EPS)
        return repeat_edges(activation(normed.to(x.dtype)))
    batch, channels, frames, height, width = x.shape
    out = x.new_empty(batch, channels, frames + 2, height, width)
    middle = out[:, :, 1:-1]
    middle.copy_(x)
    activation(middle.mul_(inverse_rms(x, NORM_EPS)), inplace=True)
    out[:, :, 0] = out[:, :, 1]
    out[:, :, -1] = out[:, :, -2]
    return out


def repeat_edges(x: Tensor) -> Tensor:
    """The first and last frame once more at their ends: [B, C, T, H, W] -> [B, C, T + 2, H, W]."""
    return torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)


def unpack_pixels(x: Tensor, patch: int) -> Tensor:
    """[B, 3pp, F, H, W] -> [B, 3, F, pH, pW]; of the three factors of the channels the row in a patch is the last."""
    x = x.unflatten(1, (-1, patch, patch)).permute(0, 1, 4, 5, 3, 6, 2)
    return x.flatten(5, 6).flatten(3, 4)
