"""The blocks of the transformer. Module names are the checkpoint's keys.

The residual stream is float32. Linear layers and attention compute in ``compute_dtype``; norms, rotary positions,
gates and activations in float32. In outer layers every modality has weights of its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MODALITIES, TransformerConfig
from .layout import PackedLayout
from .local_attention import local_attention
from .rope import rotate

EPS = 1e-6
GATE_SLOPE = 1.702
CLAMP = 7.0


def gelu7(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) with x at most 7."""
    x = x.clamp(max=CLAMP)
    return x * torch.sigmoid(GATE_SLOPE * x)


def swiglu7(x: Tensor) -> Tensor:
    """[..., 2 * n] -> [..., n]: even channels gate the odd ones; gate at most 7, the other within 7, plus one."""
    gate, linear = x[..., ::2].clamp(max=CLAMP), x[..., 1::2].clamp(-CLAMP, CLAMP)
    return gate * torch.sigmoid(GATE_SLOPE * gate) * (linear + 1)


class ModalityRMSNorm(nn.Module):
    """RMS norm over the last axis, in float32, with a gain of 1 + weight; one gain per modality if ``experts`` is 3."""

    def __init__(self, dim: int, experts: int = 1, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.experts = experts
        self.weight = nn.Parameter(torch.empty(dim * experts, dtype=torch.float32, device=device))

    def forward(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """[B, S, ..., dim] -> the same, float32. ``lengths`` are the tokens of each modality along axis 1."""
        gain = self.weight.float() + 1
        if self.experts == 1:
            return F.rms_norm(x.float(), (self.dim,), gain, EPS)
        spans = x.split(list(lengths), dim=1)
        gains = gain.chunk(self.experts)
        return torch.cat([F.rms_norm(s.float(), (self.dim,), g, EPS) for s, g in zip(spans, gains, strict=True)], dim=1)


class _Projecting(nn.Module):
    """Shares the choice between one linear layer for all tokens and one per modality."""

    def __init__(self, experts: int, operations: Any, dtype: torch.dtype | None, device: Any) -> None:
        super().__init__()
        self.experts = experts
        self._linear = operations.Linear if experts == 1 else operations.ExpertLinear
        self._factory = {"bias": False, "dtype": dtype, "device": device}

    def make_linear(self, in_features: int, out_features: int) -> nn.Module:
        return self._linear(in_features, out_features * self.experts, **self._factory)

    def project(self, layer: nn.Module, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return layer(x) if self.experts == 1 else layer(x, lengths)


class Attention(_Projecting):
    """Grouped-query self-attention over the whole sequence, each head's output scaled by a sigmoid gate."""

    def __init__(
        self, config: TransformerConfig, layer: int, *, operations: Any, dtype: torch.dtype | None, device: Any
    ) -> None:
        super().__init__(MODALITIES if layer in config.mm_layers else 1, operations, dtype, device)
        self.attend = operations.attention
        self.rows = config.qkv_rows
        self.head_dim = config.head_dim
        self.pre_norm = ModalityRMSNorm(config.hidden_size, self.experts, device=device)
        self.linear_qkv = self.make_linear(config.hidden_size, sum(config.qkv_rows))
        self.linear_proj = self.make_linear(config.num_heads * config.head_dim, config.hidden_size)
        self.q_norm = ModalityRMSNorm(config.head_dim, self.experts, device=device)
        self.k_norm = ModalityRMSNorm(config.head_dim, self.experts, device=device)

    def forward(
        self, x: Tensor, layout: PackedLayout, radius: int | None, compute_dtype: torch.dtype, options: dict[str, Any]
    ) -> Tensor:
        """[B, S, hidden] float32 -> [B, S, hidden] in ``compute_dtype``, to be added to the residual stream.

        With a ``radius`` video tokens see only so many frames to either side of their own.
        """
        lengths = layout.lengths
        x = self.pre_norm(x, lengths).to(compute_dtype)
        q, k, v, gate = self.project(self.linear_qkv, x, lengths).split(self.rows, dim=-1)
        q = rotate(self.q_norm(self._heads(q), lengths), layout.cos, layout.sin).to(compute_dtype).transpose(1, 2)
        k = rotate(self.k_norm(self._heads(k), lengths), layout.cos, layout.sin).to(compute_dtype).transpose(1, 2)
        v = self._heads(v).transpose(1, 2)
        if radius is None:
            out = self.attend(q, k, v, options)
        else:
            out = local_attention(self.attend, q, k, v, layout, radius, options)
        out = self._heads(out) * torch.sigmoid(gate.float()).unsqueeze(-1)
        return self.project(self.linear_proj, out.flatten(2).to(compute_dtype), lengths)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class MLP(_Projecting):
    """Two linear layers around gelu7 or swiglu7."""

    def __init__(
        self, config: TransformerConfig, layer: int, *, operations: Any, dtype: torch.dtype | None, device: Any
    ) -> None:
        super().__init__(MODALITIES if layer in config.mm_layers else 1, operations, dtype, device)
        gated = layer not in config.gelu7_layers
        width = config.mlp_width(layer)
        self.activation = swiglu7 if gated else gelu7
        self.pre_norm = ModalityRMSNorm(config.hidden_size, self.experts, device=device)
        self.up_gate_proj = self.make_linear(config.hidden_size, 2 * width if gated else width)
        self.down_proj = self.make_linear(width, config.hidden_size)

    def forward(self, x: Tensor, layout: PackedLayout, compute_dtype: torch.dtype) -> Tensor:
        """[B, S, hidden] float32 -> [B, S, hidden] in ``compute_dtype``, to be added to the residual stream."""
        lengths = layout.lengths
        x = self.project(self.up_gate_proj, self.pre_norm(x, lengths).to(compute_dtype), lengths)
        return self.project(self.down_proj, self.activation(x.float()).to(compute_dtype), lengths)


class TransformerLayer(nn.Module):
    """Attention and MLP, each added to the float32 residual stream."""

    def __init__(
        self, config: TransformerConfig, layer: int, *, operations: Any, dtype: torch.dtype | None, device: Any
    ) -> None:
        super().__init__()
        kwargs = {"operations": operations, "dtype": dtype, "device": device}
        self.attention = Attention(config, layer, **kwargs)
        self.mlp = MLP(config, layer, **kwargs)
        self.post_norm = layer in config.post_norm_layers
        if self.post_norm:
            experts = self.attention.experts
            self.attn_post_norm = ModalityRMSNorm(config.hidden_size, experts, device=device)
            self.mlp_post_norm = ModalityRMSNorm(config.hidden_size, experts, device=device)

    def forward(
        self, x: Tensor, layout: PackedLayout, radius: int | None, compute_dtype: torch.dtype, options: dict[str, Any]
    ) -> Tensor:
        """[B, S, hidden] float32 -> the same. ``radius`` as in ``Attention``."""
        update = self.attention(x, layout, radius, compute_dtype, options)
        x = x + (self.attn_post_norm(update, layout.lengths) if self.post_norm else update)
        update = self.mlp(x, layout, compute_dtype)
        return x + (self.mlp_post_norm(update, layout.lengths) if self.post_norm else update)
