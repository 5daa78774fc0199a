"""The text encoder's sizes and constants, from the shapes of its tensors and a Hugging Face config.json."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..weights.formats import TENSOR_SCALE, rounded_up
from ..weights.json_file import shown

PREFIXES = ("model.encoder.", "encoder.", "")
"""What stands before the encoder's names: as released, in merged files, and where someone kept the encoder alone."""

HEAD_DIMS = {2304: 256, 3584: 256}
"""Hidden size -> channels per head of the published T5Gemma 2B and 9B, for files that come without their config."""

LAYER_KINDS = ("sliding_attention", "full_attention")

_FIRST_KEY = "layers.0.pre_self_attn_layernorm.weight"


@dataclass(frozen=True)
class _Field:
    """What a number of the config may be; ``kind`` int asks for one that is written as a whole number."""

    kind: type[int] | type[float]
    least: float
    most: float

    def accepts(self, value: object) -> bool:
        """Whether ``value``, of any type, is such a number."""
        if isinstance(value, bool) or not isinstance(value, (int, self.kind)):
            return False
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a {'whole ' * (self.kind is int)}number from {self.least:,} to {self.most:,}"


_FIELDS = {
    "head_dim": _Field(int, 2, 4096),
    "intermediate_size": _Field(int, 1, 2**28),
    "sliding_window": _Field(int, 1, 2**31),
    "query_pre_attn_scalar": _Field(float, 1e-3, 1e6),
    "attn_logit_softcapping": _Field(float, 1e-3, 1e6),
    "rms_norm_eps": _Field(float, 1e-12, 1),
    "rope_theta": _Field(float, 1, 1e12),
}
"""The numbers that are read from the config. The bounds are far beyond any model, and within what float32 computes."""


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
    if head_dim % 2:
        raise CheckpointError(f"{where}: heads of {head_dim} channels have no pairs to turn; expected an even number.")
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
        raise CheckpointError(f"{where}: config.json: encoder: found {shown(part)}, expected an object with the sizes.")
    return part


def _number(settings: Mapping[str, Any], key: str, default: float, where: str) -> float:
    if key not in settings:
        return default
    value, allowed = settings[key], _FIELDS[key]
    if not allowed.accepts(value):
        raise CheckpointError(f"{where}: config.json: {key}: found {shown(value)}, expected {allowed}.")
    return float(value) if allowed.kind is float else int(value)


def _rows(shapes: Mapping[str, tuple[int, ...]], prefix: str, where: str) -> dict[str, int]:
    names = ["embed_tokens.weight", "norm.weight", "layers.0.mlp.gate_proj.weight"]
    names += ["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"]
    missing = [prefix + name for name in names if prefix + name not in shapes]
    if missing:
        raise CheckpointError(f"{where}: {len(missing)} tensors of the text encoder are missing: {', '.join(missing)}.")
    empty = [prefix + name for name in names if 0 in (shapes[prefix + name] or (0,))]
    if empty:
        raise CheckpointError(f"{where}: {len(empty)} tensors of the text encoder are empty: {', '.join(empty)}.")
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
                f"{where}: config.json says {key} = {shown(settings[key])}, the tensors say {value}. "
                "The two are not of the same model."
            )
    supported = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
    for key, expected in supported.items():
        if settings.get(key, expected) != expected:
            raise CheckpointError(f"{where}: config.json: {key}: found {shown(settings[key])}, expected {expected!r}.")


def _windows(settings: Mapping[str, Any], layers: int, where: str) -> tuple[int | None, ...]:
    kinds = settings.get("layer_types")
    if kinds is None:
        kinds = [LAYER_KINDS[i % 2] for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in LAYER_KINDS for kind in kinds):
        wrong = [kind for kind in kinds if kind not in LAYER_KINDS] if isinstance(kinds, list) else []
        first = f", the first of them {shown(wrong[0])}" if wrong else ""
        raise CheckpointError(
            f"{where}: config.json: layer_types: found {shown(kinds)}{first}; expected {layers} of "
            f"{' or '.join(LAYER_KINDS)}."
        )
    window = int(_number(settings, "sliding_window", 4096, where))
    return tuple(window if kind == LAYER_KINDS[0] else None for kind in kinds)


def _rope_theta(settings: Mapping[str, Any], where: str) -> float:
    for key in ("rope_parameters", "rope_scaling"):
        found = settings.get(key)
        if found is not None and not isinstance(found, Mapping):
            raise CheckpointError(f"{where}: config.json: {key}: found {shown(found)}, expected an object or null.")
    parameters = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"{where}: config.json: rope_type: found {shown(kind)}, expected 'default'.")
    return _number({**settings, **parameters}, "rope_theta", 10_000.0, where)
