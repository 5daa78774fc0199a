"""The blocks of the transformer. Module names are the checkpoint's keys.

The residual stream is float32. Linear layers and attention compute in ``compute_dtype``; norms, rotary positions,
gates and activations in float32. In outer layers every modality has weights of its own.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..ops import Device, DType, LayerArguments, ModuleArguments, Operations, Options
from .config import MODALITIES, TransformerConfig
from .elementwise import activated, gated_heads, gelu7, rms_norm, rotated_heads, swiglu7
from .layout import PackedLayout
from .local_attention import local_attention

MLP_TOKENS = 16_384
"""Tokens that go through an MLP at once: its middle is more than five times as wide as the hidden size."""


def token_parts(lengths: tuple[int, ...], count: int) -> list[tuple[slice, tuple[int, ...]]]:
    """Cuts a sequence into ``count`` parts of almost equal length: where each stands, and its tokens per modality."""
    total = sum(lengths)
    edges = [total * n // count for n in range(count + 1)]
    starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    return [
        (slice(a, b), tuple(max(0, min(b, end) - max(a, start)) for start, end in pairwise(starts)))
        for a, b in pairwise(edges)
    ]


class ModalityRMSNorm(nn.Module):
    """RMS norm over the last axis, in float32, with a gain of 1 + weight; one gain per modality if ``experts`` is 3."""

    def __init__(self, dim: int, experts: int = 1, *, device: Device = None) -> None:
        super().__init__()
        self.dim = dim
        self.experts = experts
        self.weight = nn.Parameter(torch.empty(dim * experts, dtype=torch.float32, device=device))

    def gains(self) -> tuple[Tensor, ...]:
        """1 + weight, [dim] float32 for each modality."""
        return (self.weight.float() + 1).chunk(self.experts)

    def forward(self, x: Tensor, lengths: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, S, dim] -> the same in ``dtype``. ``lengths`` are the tokens of each modality along axis 1."""
        return rms_norm(x, self.gains(), lengths if self.experts > 1 else (x.shape[1],), dtype)


class _Projecting(nn.Module):
    """Shares the choice between one linear layer for all tokens and one per modality."""

    def __init__(self, experts: int, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        self.experts = experts
        self._linear = operations.Linear if experts == 1 else operations.ExpertLinear
        self._factory = LayerArguments(dtype=dtype, device=device)

    def make_linear(self, in_features: int, out_features: int) -> nn.Module:
        return self._linear(in_features, out_features * self.experts, bias=False, **self._factory)

    def project(self, layer: nn.Module, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return layer(x) if self.experts == 1 else layer(x, lengths)


class Attention(_Projecting):
    """Grouped-query self-attention over the whole sequence, each head's output scaled by a sigmoid gate."""

    def __init__(
        self, config: TransformerConfig, layer: int, *, operations: Operations, dtype: DType, device: Device
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
        self, x: Tensor, layout: PackedLayout, radius: int | None, compute_dtype: torch.dtype, options: Options
    ) -> Tensor:
        """[B, S, hidden] float32 -> [B, S, hidden] in ``compute_dtype``, to be added to the residual stream.

        With a ``radius`` video tokens see only so many frames to either side of their own.
        """
        lengths = layout.lengths
        x = self.pre_norm(x, lengths, compute_dtype)
        q, k, v, gate = self.project(self.linear_qkv, x, lengths).split(self.rows, dim=-1)
        q, k = self._rotated(q, self.q_norm, layout), self._rotated(k, self.k_norm, layout)
        v = self._heads(v).transpose(1, 2)
        if layout.share is not None:
            q, k, v = layout.share.to_heads(q, k, v)
        if radius is None:
            out = self.attend(q, k, v, options)
        else:
            out = local_attention(self.attend, q, k, v, layout, radius, options)
        if layout.share is not None:
            out = layout.share.to_tokens(out)
        return self.project(self.linear_proj, gated_heads(self._heads(out), gate, lengths), lengths)

    def _rotated(self, x: Tensor, norm: ModalityRMSNorm, layout: PackedLayout) -> Tensor:
        """Queries or keys [B, S, heads * head_dim] as attention takes them, [B, heads, S, head_dim]."""
        lengths = layout.lengths if self.experts > 1 else (x.shape[1],)
        return rotated_heads(self._heads(x), norm.gains(), lengths, layout.cos, layout.sin, x.dtype).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class MLP(_Projecting):
    """Two linear layers around gelu7 or swiglu7."""

    def __init__(
        self, config: TransformerConfig, layer: int, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__(MODALITIES if layer in config.mm_layers else 1, operations, dtype, device)
        gated = layer not in config.gelu7_layers
        self.width = width = config.mlp_width(layer)
        self.activation = swiglu7 if gated else gelu7
        self.pre_norm = ModalityRMSNorm(config.hidden_size, self.experts, device=device)
        self.up_gate_proj = self.make_linear(config.hidden_size, 2 * width if gated else width)
        self.down_proj = self.make_linear(width, config.hidden_size)

    def forward(self, x: Tensor, layout: PackedLayout, compute_dtype: torch.dtype) -> Tensor:
        """[B, S, hidden] float32 -> [B, S, hidden] in ``compute_dtype``, to be added to the residual stream."""
        parts = token_parts(layout.lengths, -(-x.shape[0] * x.shape[1] // MLP_TOKENS))
        if len(parts) == 1:
            return self._run(x, layout.lengths, compute_dtype)
        out = torch.empty(x.shape, dtype=compute_dtype, device=x.device)
        for tokens, lengths in parts:
            out[:, tokens] = self._run(x[:, tokens], lengths, compute_dtype)
        return out

    def _run(self, x: Tensor, lengths: tuple[int, ...], compute_dtype: torch.dtype) -> Tensor:
        x = self.project(self.up_gate_proj, self.pre_norm(x, lengths, compute_dtype), lengths)
        x = activated(x, self.activation, self.width, lengths, compute_dtype)
        return self.project(self.down_proj, x, lengths)


class TransformerLayer(nn.Module):
    """Attention and MLP, each added to the float32 residual stream."""

    def __init__(
        self, config: TransformerConfig, layer: int, *, operations: Operations, dtype: DType, device: Device
    ) -> None:
        super().__init__()
        kwargs = ModuleArguments(operations=operations, dtype=dtype, device=device)
        self.attention = Attention(config, layer, **kwargs)
        self.mlp = MLP(config, layer, **kwargs)
        self.post_norm = layer in config.post_norm_layers
        if self.post_norm:
            experts = self.attention.experts
            self.attn_post_norm = ModalityRMSNorm(config.hidden_size, experts, device=device)
            self.mlp_post_norm = ModalityRMSNorm(config.hidden_size, experts, device=device)

    def forward(
        self, x: Tensor, layout: PackedLayout, radius: int | None, compute_dtype: torch.dtype, options: Options
    ) -> Tensor:
        """[B, S, hidden] float32 -> the same. ``radius`` as in ``Attention``."""
        update = self.attention(x, layout, radius, compute_dtype, options)
        x = x + (self.attn_post_norm(update, layout.lengths) if self.post_norm else update)
        update = self.mlp(x, layout, compute_dtype)
        update = self.mlp_post_norm(update, layout.lengths) if self.post_norm else update
        # The sum above is this layer's own, so without gradients to keep it for it may be written over.
        return x + update if torch.is_grad_enabled() else x.add_(update)
