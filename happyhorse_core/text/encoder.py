"""The encoder half of T5Gemma-9B-9B-UL2: prompt tokens in, one vector per token out.

A Gemma 2 block without the causal mask: a norm before and after both attention and MLP, grouped-query attention whose
logits are soft-capped, a sliding window in every other layer, tanh-approximated GELU in a gated MLP. Norm weights are
stored minus one. There is no padding and no mask for it: each prompt is encoded by itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..ops import Device, DType, LayerArguments, Operations, Options
from ..progress import Progress, silent
from ..weights.formats import TENSOR_SCALE, rounded_up

PREFIXES = ("model.encoder.", "encoder.", "")
"""What stands before the encoder's names: as released, in merged files, and where someone kept the encoder alone."""

HEAD_DIMS = {2304: 256, 3584: 256}
"""Hidden size -> channels per head of the published T5Gemma 2B and 9B, for files that come without their config."""

LAYER_KINDS = ("sliding_attention", "full_attention")
QUERY_BLOCK = 128
"""Queries whose scores are held at once; 640 tokens of the 9B model then need 5 MB of scores at a time."""

_FIRST_KEY = "layers.0.pre_self_attn_layernorm.weight"


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes and constants of the encoder. ``windows`` holds one entry per layer: None where attention is full."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    query_scalar: float
    softcap: float = 50.0
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0


def encoder_prefix(names: Iterable[str], where: str) -> str:
    """What stands before the encoder's tensor names in ``where``; CheckpointError where there is no T5Gemma encoder."""
    present = frozenset(names)
    for prefix in PREFIXES:
        if prefix + _FIRST_KEY in present:
            return prefix
    shown = ", ".join(sorted(present)[:3]) or "no tensors"
    raise CheckpointError(
        f"{where}: this is not a T5Gemma text encoder: found {len(present)} tensors ({shown}, ...), "
        f"expected {PREFIXES[0]}{_FIRST_KEY} among them. Use google/t5gemma-9b-9b-ul2."
    )


def detect_text_encoder(
    shapes: Mapping[str, tuple[int, ...]], hf_config: Mapping[str, Any] | None, where: str
) -> TextEncoderConfig:
    """Reads the sizes off the tensors and the constants from ``hf_config``, the tree of a Hugging Face config.json.

    ``shapes`` may have any of PREFIXES before its names; only first dimensions are read. Without ``hf_config`` the
    constants are the published ones and the head size follows from the hidden size. Raises CheckpointError where the
    tensors are of another model, contradict the config, or the config asks for what this encoder does not do.
    """
    prefix = encoder_prefix(shapes, where)
    settings = _encoder_settings(hf_config, where)
    rows = _rows(shapes, prefix, where)
    layers = sum(
        1 for name in shapes if name.startswith(f"{prefix}layers.") and name.endswith("self_attn.q_proj.weight")
    )
    hidden = rows["norm.weight"]
    head_dim = int(_number(settings, "head_dim", HEAD_DIMS.get(hidden, 0), where))
    if not head_dim:
        raise CheckpointError(
            f"{where}: hidden size {hidden} is not that of a published T5Gemma, and the tensors do not tell the size "
            "of a head. Put the model's config.json beside the weights."
        )
    q_rows, kv_rows = rows["layers.0.self_attn.q_proj.weight"], rows["layers.0.self_attn.k_proj.weight"]
    if q_rows % head_dim or kv_rows % head_dim or q_rows % kv_rows:
        raise CheckpointError(f"{where}: {q_rows} query and {kv_rows} key rows do not make heads of {head_dim}.")
    found = {
        "vocab_size": rows["embed_tokens.weight"],
        "hidden_size": hidden,
        "intermediate_size": _inner_size(shapes, prefix, settings, where),
        "num_hidden_layers": layers,
        "num_attention_heads": q_rows // head_dim,
        "num_key_value_heads": kv_rows // head_dim,
    }
    _check_settings(settings, found, where)
    return TextEncoderConfig(
        vocab_size=found["vocab_size"],
        hidden_size=hidden,
        intermediate_size=found["intermediate_size"],
        num_heads=found["num_attention_heads"],
        num_kv_heads=found["num_key_value_heads"],
        head_dim=head_dim,
        windows=_windows(settings, layers, where),
        query_scalar=_number(settings, "query_pre_attn_scalar", head_dim, where),
        softcap=_number(settings, "attn_logit_softcapping", 50.0, where),
        norm_eps=_number(settings, "rms_norm_eps", 1e-6, where),
        rope_theta=_rope_theta(settings, where),
    )


def _encoder_settings(hf_config: Mapping[str, Any] | None, where: str) -> Mapping[str, Any]:
    """The encoder's part of the whole model's config, or all of one that is the encoder's alone."""
    settings = hf_config or {}
    part = settings.get("encoder", settings)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{where}: config.json: encoder: found {part!r}, expected an object with the sizes.")
    return part


def _number(settings: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (key in settings and not value > 0):
        raise CheckpointError(f"{where}: config.json: {key}: found {value!r}, expected a number above 0.")
    return value


def _rows(shapes: Mapping[str, tuple[int, ...]], prefix: str, where: str) -> dict[str, int]:
    names = ["embed_tokens.weight", "norm.weight", "layers.0.mlp.gate_proj.weight"]
    names += ["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"]
    missing = [prefix + name for name in names if prefix + name not in shapes]
    if missing:
        raise CheckpointError(f"{where}: {len(missing)} tensors of the text encoder are missing: {', '.join(missing)}.")
    return {name: shapes[prefix + name][0] for name in names}


def _inner_size(shapes: Mapping[str, tuple[int, ...]], prefix: str, settings: Mapping[str, Any], where: str) -> int:
    """Rows of the MLP's matrices, without the zeros that fill up packed ones where the config tells how many."""
    name = f"{prefix}layers.0.mlp.gate_proj.weight"
    rows = shapes[name][0]
    size = int(_number(settings, "intermediate_size", rows, where))
    return size if name.removesuffix("weight") + TENSOR_SCALE in shapes and rounded_up(size) == rows else rows


def _check_settings(settings: Mapping[str, Any], found: Mapping[str, int], where: str) -> None:
    for key, value in found.items():
        if settings.get(key, value) != value:
            raise CheckpointError(
                f"{where}: config.json says {key} = {settings[key]}, the tensors say {value}. "
                "The two are not of the same model."
            )
    supported = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
    for key, expected in supported.items():
        if settings.get(key, expected) != expected:
            raise CheckpointError(f"{where}: config.json: {key}: found {settings[key]!r}, expected {expected!r}.")


def _windows(settings: Mapping[str, Any], layers: int, where: str) -> tuple[int | None, ...]:
    kinds = settings.get("layer_types") or [LAYER_KINDS[i % 2] for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= set(LAYER_KINDS):
        raise CheckpointError(
            f"{where}: config.json: layer_types: found {len(kinds)} entries of {sorted(set(kinds))}, "
            f"expected {layers} of {' or '.join(LAYER_KINDS)}."
        )
    window = int(_number(settings, "sliding_window", 4096, where))
    return tuple(window if kind == LAYER_KINDS[0] else None for kind in kinds)


def _rope_theta(settings: Mapping[str, Any], where: str) -> float:
    parameters = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise CheckpointError(f"{where}: config.json: rope_type: found {kind!r}, expected 'default'.")
    return _number({**settings, **parameters}, "rope_theta", 10_000.0, where)


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
