"""The encoder half of T5Gemma-9B-9B-UL2: prompt tokens in, one vector per token out.

A Gemma 2 block without the causal mask: a norm before and after both attention and MLP, grouped-query attention whose
logits are soft-capped, a sliding window in every other layer, tanh-approximated GELU in a gated MLP. Norm weights are
stored minus one. There is no padding and no mask for it: each prompt is encoded by itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import Device, DType, LayerArguments, Operations, Options
from ..progress import Progress, silent
from .config import TextEncoderConfig

QUERY_BLOCK = 128
"""Queries whose scores are held at once; 640 tokens of the 9B model then need 5 MB of scores at a time."""


class RMSNorm(nn.Module):
    """Computes in float32 whatever comes in; the weight is an offset from one."""

    def __init__(self, size: int, eps: float, *, dtype: DType = None, device: Device = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return (h * (1.0 + self.weight.float())).to(x.dtype)


class Attention(nn.Module):
    def __init__(
        self,
        config: TextEncoderConfig,
        window: int | None,
        *,
        operations: Operations,
        dtype: DType = None,
        device: Device = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.window = config.head_dim, window
        self.scale, self.softcap = config.query_scalar**-0.5, config.softcap
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        made = LayerArguments(dtype=dtype, device=device)
        self.q_proj = operations.Linear(config.hidden_size, q_rows, bias=False, **made)
        self.k_proj = operations.Linear(config.hidden_size, kv_rows, bias=False, **made)
        self.v_proj = operations.Linear(config.hidden_size, kv_rows, bias=False, **made)
        self.o_proj = operations.Linear(q_rows, config.hidden_size, bias=False, **made)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, L, hidden] -> the same. Between the projections everything is float32."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2).float()
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = softcap_attention(
            rotate(q, *rotary), rotate(k, *rotary), v, scale=self.scale, softcap=self.softcap, window=self.window
        )
        return self.o_proj(out.to(x.dtype))


class MLP(nn.Module):
    def __init__(
        self, config: TextEncoderConfig, *, operations: Operations, dtype: DType = None, device: Device = None
    ) -> None:
        super().__init__()
        made = LayerArguments(dtype=dtype, device=device)
        self.gate_proj = operations.Linear(config.hidden_size, config.intermediate_size, bias=False, **made)
        self.up_proj = operations.Linear(config.hidden_size, config.intermediate_size, bias=False, **made)
        self.down_proj = operations.Linear(config.intermediate_size, config.hidden_size, bias=False, **made)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class EncoderLayer(nn.Module):
    def __init__(
        self,
        config: TextEncoderConfig,
        window: int | None,
        *,
        operations: Operations,
        dtype: DType = None,
        device: Device = None,
    ) -> None:
        super().__init__()
        made = LayerArguments(dtype=dtype, device=device)
        self.self_attn = Attention(config, window, operations=operations, **made)
        self.pre_self_attn_layernorm = RMSNorm(config.hidden_size, config.norm_eps, **made)
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.norm_eps, **made)
        self.mlp = MLP(config, operations=operations, **made)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps, **made)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps, **made)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.post_self_attn_layernorm(self.self_attn(self.pre_self_attn_layernorm(x), rotary))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class T5GemmaEncoder(nn.Module):
    """Attribute names are the checkpoint's after ``model.encoder.``."""

    def __init__(
        self, config: TextEncoderConfig, *, operations: Operations, dtype: DType = None, device: Device = None
    ) -> None:
        super().__init__()
        self.config = config
        made = LayerArguments(dtype=dtype, device=device)
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **made)
        self.layers = nn.ModuleList(
            EncoderLayer(config, window, operations=operations, **made) for window in config.windows
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, **made)

    def forward(
        self,
        input_ids: Tensor | None,
        *,
        embeds: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
        options: Options | None = None,
        progress: Progress = silent,
    ) -> Tensor:
        """input_ids [B, L] int64, or embeds [B, L, hidden] as ``embed_tokens`` gives them -> [B, L, hidden] float32.

        ``compute_dtype`` is that of the residual stream and of the linear layers: the released pipeline uses bfloat16
        for both, and rounds the embeddings' factor to it as well. ``options`` is what the host hands to every
        model; this one has nothing to read in it. ``progress`` is called after each layer.
        """
        rows = self.embed_tokens(input_ids, out_dtype=compute_dtype) if embeds is None else embeds.to(compute_dtype)
        x = rows * torch.tensor(self.config.hidden_size**0.5, dtype=compute_dtype, device=rows.device)
        rotary = rotary_angles(x.shape[1], self.config, x.device)
        for done, layer in enumerate(self.layers, start=1):
            x = layer(x, rotary)
            progress(done, len(self.layers))
        return self.norm(x).float()


def rotary_angles(length: int, config: TextEncoderConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [L, head_dim / 2] of position x theta^(-2i / head_dim), float32."""
    half = config.head_dim // 2
    bands = config.rope_theta ** -(torch.arange(half, dtype=torch.float32, device=device) / half)
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * bands
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, L, head_dim]: channel i and channel i + head_dim / 2 turn as a pair."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def softcap_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, softcap: float, window: int | None) -> Tensor:
    """Attention in both directions with scores held below ``softcap`` by tanh, a block of queries at a time.

    q [B, Hq, L, D], k and v [B, Hkv, L, D] -> [B, L, Hq * D]. With a ``window``, tokens at most that far apart see each
    other. The cap stands between matmul and softmax, so no fused attention kernel of torch fits.
    """
    length = q.shape[2]
    grouped = q.unflatten(1, (k.shape[1], -1)) * scale
    keys, values = k.unsqueeze(2).transpose(-1, -2), v.unsqueeze(2)
    positions = torch.arange(length, device=q.device)
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        scores = torch.tanh(grouped[..., start : start + QUERY_BLOCK, :] @ keys / softcap) * softcap
        if window is not None and length > window:
            distance = (positions[start : start + QUERY_BLOCK, None] - positions).abs()
            scores = scores.masked_fill(distance > window, float("-inf"))
        blocks.append(scores.softmax(dim=-1) @ values)
    return torch.cat(blocks, dim=-2).flatten(1, 2).transpose(1, 2).flatten(2)
