"""What a clip asks of a machine, worked out from its size before any work starts: tokens, operations and time.

``dit.memory`` and ``video_vae.tiling`` say what memory it takes.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dit.config import PATCH, TransformerConfig
from .dit.local_attention import frame_groups

LONG = 600.0
"""Seconds from which on the steps are worth a warning."""
SLOWEST = 1e9
"""Operations per second that every machine does: what is short at this rate needs no measuring."""
PROMPT_TOKENS = 300
"""Text tokens of a usual prompt, for where it is not cut into tokens yet."""
CPU_SIDE, SIDE = 512, 2048
"""Sides of the matmul, and tokens of the attention, that a processor and other devices are timed with."""
CPU_HEADS, HEADS = 1, 16
"""Heads of that attention."""


@dataclass(frozen=True)
class Tokens:
    """The sequence that the transformer works on, for one clip: latent frames and the tokens of each, sound, text."""

    frames: int
    per_frame: int
    audio: int
    text: int = PROMPT_TOKENS

    @property
    def video(self) -> int:
        return self.frames * self.per_frame

    @property
    def total(self) -> int:
        return self.video + self.audio + self.text


def tokens_of(video: Sequence[int], audio: Sequence[int], text: int = PROMPT_TOKENS) -> Tokens:
    """Tokens of latents of the shapes [..., T, H, W] and [..., A] with ``text`` tokens of a prompt."""
    frames, height, width = video[-3:]
    return Tokens(frames, (height // PATCH) * (width // PATCH), audio[-1], text)


@dataclass(frozen=True)
class Work:
    """Floating-point operations: of products with weights, and of attention."""

    products: int
    attention: int

    @property
    def total(self) -> int:
        return self.products + self.attention

    def __add__(self, other: "Work") -> "Work":
        return Work(self.products + other.products, self.attention + other.attention)

    def __mul__(self, times: int) -> "Work":
        return Work(self.products * times, self.attention * times)


def work_of_call(config: TransformerConfig, tokens: Tokens, local_layers: Collection[int] | None = None) -> Work:
    """One call of the transformer for one clip.

    Two operations for each weight that a token meets, four for each pair of tokens that attention compares and each
    channel of its heads. ``local_layers`` stands in for the checkpoint's own choice of layers with local attention.
    """
    hidden, channels = config.hidden_size, config.num_heads * config.head_dim
    per_token = pairs = 0
    for layer in range(config.num_layers):
        products = 2 if layer in config.gelu7_layers else 3
        per_token += hidden * (sum(config.qkv_rows) + channels + products * config.mlp_width(layer))
        pairs += _pairs(tokens, config.local_radius(layer, local_layers))
    # Video and audio are embedded and read out, text is embedded.
    ends = 2 * tokens.video * config.video_in_channels + 2 * tokens.audio * config.audio_in_channels
    ends += tokens.text * config.text_in_channels
    return Work(2 * (per_token * tokens.total + hidden * ends), 4 * pairs * channels)


def _pairs(tokens: Tokens, radius: int | None) -> int:
    """Pairs of tokens that attention compares in one layer."""
    if radius is None:
        return tokens.total**2
    rest = tokens.audio + tokens.text
    groups = frame_groups(tokens.frames, radius)
    seen = sum((end - first) * ((high - low) * tokens.per_frame + rest) for first, end, low, high in groups)
    return seen * tokens.per_frame + rest * tokens.total


def seconds_of(work: Work, head_dim: int, device: torch.device, dtype: torch.dtype) -> float:
    """How long a device takes, from a small matmul and a small attention that it is timed with: some milliseconds.

    ``head_dim`` are the channels of a head: the fewer they are, the longer attention takes for one operation.
    """
    on_cpu = device.type == "cpu"
    side, heads = (CPU_SIDE, CPU_HEADS) if on_cpu else (SIDE, HEADS)
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    q = torch.ones(1, heads, side, head_dim, device=device, dtype=dtype)
    product = _time(lambda: matrix @ matrix, 1 if on_cpu else 10)
    attention = _time(lambda: F.scaled_dot_product_attention(q, q, q), 1 if on_cpu else 10)
    return work.products * product / (2 * side**3) + work.attention * attention / (4 * side**2 * heads * head_dim)


def _time(run: Callable[[], Tensor], times: int) -> float:
    """Seconds of one of ``times`` runs in a row, the best of three such rows after a run to warm up."""

    def row(length: int) -> float:
        start = time.perf_counter()
        for _ in range(length):
            result = run()
        # Reading a value waits for what a device still has to do.
        result.flatten()[0].item()
        return (time.perf_counter() - start) / length

    row(1)
    return min(row(times) for _ in range(3))


def time_warning(
    work: Work,
    tokens: int,
    calls: int,
    *,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    devices: int = 1,
) -> str | None:
    """What to tell the user of steps that will take long; None if they won't.

    ``tokens`` are those of the largest of the ``calls`` of the model, whose heads have ``head_dim`` channels; its work
    is shared by so many ``devices``. What is not in it: elementwise work, weights that are streamed, and the stages
    before and after the steps.
    """
    if work.total < LONG * SLOWEST:
        return None
    seconds = seconds_of(work, head_dim, device, dtype) / devices
    if seconds < LONG:
        return None
    return (
        f"the steps will take {duration(seconds)} or more: {calls} calls of the model with up to {tokens:,} tokens on "
        f"{device}. A smaller size, fewer seconds and fewer steps take less."
    )


def duration(seconds: float) -> str:
    """'about 25 minutes', in the largest unit of which there are at least two."""
    units = (("years", 31_557_600), ("days", 86_400), ("hours", 3600))
    name, length = next(((name, length) for name, length in units if seconds >= 2 * length), ("minutes", 60))
    return f"about {seconds / length:,.0f} {name}"
