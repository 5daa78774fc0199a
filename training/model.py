"""The Pony's transformer: the shipped class at a small size, with fresh weights."""

from typing import Any

import torch
from torch import Tensor, nn

from happyhorse_core.dit.config import TransformerConfig
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.ops import TorchOps

from .text import WIDTH

HIDDEN, LAYERS, HEAD_DIM, KV_HEADS = 256, 5, 32, 2
"""Wider than a video token's 192 values: the velocity has the noise of each in it, so all have to get through, and what
is to be said of the clip beside them. With 192 and ten layers the pictures' loss was a sixth higher after as long."""
CONFIG = TransformerConfig(
    hidden_size=HIDDEN,
    num_layers=LAYERS,
    num_heads=HIDDEN // HEAD_DIM,
    num_kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    video_in_channels=192,
    audio_in_channels=64,
    text_in_channels=WIDTH,
    mm_layers=(0, LAYERS - 1),
    gelu7_layers=(0,),
)


class TrainingOps(TorchOps):
    """Layers as ever; attention as plain products, of which short sequences on a CPU have a much faster gradient."""

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        batch, heads, length, width = q.shape
        grouped = q.reshape(batch, k.shape[1], -1, width)  # heads that share keys and values, one after another
        scores = (grouped @ k.transpose(-1, -2)).float() * width**-0.5
        out = scores.softmax(-1).to(v.dtype) @ v
        return out.view(batch, heads, length, width).transpose(1, 2).flatten(2)


def make_transformer(seed: int) -> HappyHorseTransformer:
    """The transformer with fresh weights: projections keep the variance, and the first velocities are zero."""
    torch.manual_seed(seed)
    model = HappyHorseTransformer(CONFIG, operations=TrainingOps, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if weight.ndim == 1 or name.startswith("final_linear"):
            nn.init.zeros_(weight)
        else:
            scale = (2 * LAYERS) ** -0.5 if name.endswith(("linear_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)
    return model
