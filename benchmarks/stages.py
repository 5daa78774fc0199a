"""The stages that are timed: the released architecture on random weights, at sizes that a name states."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from happyhorse_core.audio_vae.config import OobleckConfig
from happyhorse_core.audio_vae.model import Oobleck
from happyhorse_core.dit.config import TransformerConfig
from happyhorse_core.dit.layout import PackedLayout, build_layout
from happyhorse_core.dit.local_attention import frame_groups, local_attention
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.dit.rope import frequency_bands
from happyhorse_core.estimate import Tokens
from happyhorse_core.ops import TorchOps
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder, TurboVAEDConfig, detect_turbo_vaed

from .floor import Recorder

TEXT_CHANNELS = 3584
HEAD_DIM = 128
SHAPES = Path(__file__).parents[1] / "tests" / "golden"
OOBLECK = OobleckConfig(
    audio_channels=2,
    latent_channels=64,
    encoder_widths=(128, 128, 256, 512, 1024, 2048),
    encoder_strides=(2, 4, 4, 8, 8),
    decoder_widths=(128, 128, 256, 512, 1024, 2048),
    decoder_strides=(2, 4, 4, 8, 8),
)


@dataclass(frozen=True)
class Size:
    """A transformer and a clip: ``width`` and ``height`` in pixels, ``frames`` in latents, ``text`` in tokens."""

    hidden: int
    layers: int
    width: int
    height: int
    frames: int
    text: int = 200

    @property
    def audio(self) -> int:
        return 4 * (self.frames - 1) + 1

    @property
    def sequence(self) -> Tokens:
        return Tokens(self.frames, (self.height // 32) * (self.width // 32), self.audio, self.text)

    @property
    def tokens(self) -> int:
        return self.sequence.total

    @property
    def config(self) -> TransformerConfig:
        """The released proportions: heads of 128, a fifth as many for keys, experts in a fifth of the layers."""
        heads = self.hidden // HEAD_DIM
        ends = max(1, self.layers // 10)
        return TransformerConfig(
            hidden_size=self.hidden,
            num_layers=self.layers,
            num_heads=heads,
            num_kv_heads=max(1, heads // 5),
            head_dim=HEAD_DIM,
            video_in_channels=192,
            audio_in_channels=64,
            text_in_channels=TEXT_CHANNELS,
            mm_layers=(*range(ends), *range(self.layers - ends, self.layers)),
            gelu7_layers=tuple(range(ends)),
        )

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Video, audio and text of such a clip."""
        return (
            torch.randn(1, 48, self.frames, self.height // 16, self.width // 16, device=device),
            torch.randn(1, 64, self.audio, device=device),
            torch.randn(1, self.text, TEXT_CHANNELS, device=device),
        )

    def layout(self) -> PackedLayout:
        """Where the tokens of such a clip stand."""
        return build_layout(self.config, *self.inputs(torch.device("cpu")), frequency_bands(HEAD_DIM // 8))


def filled(module: nn.Module) -> nn.Module:
    """The module with small random weights, so that values stay in the range of a trained model's."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return module.eval().requires_grad_(False)


def transformer(size: Size, recorder: Recorder, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """One call of the whole transformer."""
    model = filled(HappyHorseTransformer(size.config, operations=recorder.operations(), dtype=dtype, device=device))
    video, audio, text = size.inputs(device)
    return lambda: model(video, audio, text, compute_dtype=dtype)


def heads(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one layer."""
    config = size.config
    counts = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return tuple(torch.randn(1, n, size.tokens, HEAD_DIM, device=device, dtype=dtype) for n in counts)


def window_share(layout: PackedLayout, radius: int) -> float:
    """The part of dense attention's scores that local attention computes."""
    rest = layout.audio + layout.text
    seen = sum(
        (end - first) * ((high - low) * layout.tokens_per_frame + rest)
        for first, end, low, high in frame_groups(layout.frames, radius)
    )
    tokens = layout.video + rest
    return (seen * layout.tokens_per_frame + rest * tokens) / tokens**2


def local(size: Size, radius: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable, Callable, float]:
    """Local attention, dense attention on the same tensors, and the share of its scores that the windows cover."""
    q, k, v = heads(size, dtype, device)
    layout = size.layout()
    return (
        lambda: local_attention(TorchOps.attention, q, k, v, layout, radius, {}),
        lambda: TorchOps.attention(q, k, v),
        window_share(layout, radius),
    )


def released_decoder() -> TurboVAEDConfig:
    """The released TurboVAED, as its tensors say."""
    described = json.loads((SHAPES / "full_size_turbo_vaed.json").read_text())["shapes"]
    return detect_turbo_vaed({name: tuple(shape) for name, shape in described.items()}, "the released decoder")


def video_decoder(
    frames: int, width: int, height: int, recorder: Recorder, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    """The released TurboVAED on ``frames`` latent frames of ``width`` x ``height`` pixels, window by window."""
    decoder = filled(TurboDecoder(released_decoder(), operations=recorder.operations(), dtype=dtype, device=device))
    latent = torch.randn(1, 48, frames, height // 16, width // 16, device=device, dtype=dtype)
    return lambda: [None for _ in decoder.decode_windows(latent)]


def sound_decoder(latents: int, recorder: Recorder, device: torch.device) -> Callable[[], object]:
    """The released sound decoder, float32."""
    vae = filled(Oobleck(OOBLECK, operations=recorder.operations(), device=device))
    latent = torch.randn(1, 64, latents, device=device)
    return lambda: vae.decode(latent)
