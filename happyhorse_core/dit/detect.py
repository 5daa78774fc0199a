"""Reads a transformer's sizes from the names and shapes of its tensors; file names play no part."""

import re
from collections.abc import Mapping, Sequence

from ..errors import CheckpointError, one_line
from ..weights.formats import TENSOR_SCALE, rounded_up
from .config import MODALITIES, TransformerConfig, released_local_layers
from .roles import DISTILLED, Role

Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")
"""What stands before the released names in files that other programs wrote."""

SIGNATURE = (
    "adapter.video_embedder.weight",
    "adapter.audio_embedder.weight",
    "adapter.text_embedder.weight",
    "block.layers.0.attention.linear_qkv.weight",
    "final_linear_video.weight",
)

LOCAL_METADATA_KEY = "happyhorse.local_attn_layers"
RECEPTIVE_FIELD_METADATA_KEY = "happyhorse.frame_receptive_field"
_LIST = re.compile(r"\[ *([0-9]{1,6}( *, *[0-9]{1,6})*)? *\]")
"""JSON of a list of small whole numbers."""


def find_prefix(names: Sequence[str], where: str) -> str:
    """The prefix under which a transformer's tensors stand.

    Raises CheckpointError naming ``where`` if the signature tensors are not there under any known prefix.
    """
    present = set(names)
    for prefix in PREFIXES:
        if all(prefix + key in present for key in SIGNATURE):
            return prefix
    found = ", ".join(sorted(present)[:3]) or "no tensors"
    missing = next(key for key in SIGNATURE if key not in present)
    raise CheckpointError(
        f"{where}: not a transformer of this architecture. Found {len(present)} tensors ({found}, ...), "
        f"but no {missing!r}. Expected a daVinci-MagiHuman checkpoint: a folder such as distill/ or a merged file."
    )


def detect_transformer(
    shapes: Shapes, *, role: Role = DISTILLED, metadata: Mapping[str, str] | None = None, where: str
) -> TransformerConfig:
    """Builds the configuration of a checkpoint whose names carry no prefix.

    ``shapes`` maps names to shapes. ``role`` gives what the tensors can't tell, ``metadata`` may override it.
    Raises CheckpointError naming ``where`` and the tensor at fault.
    """
    metadata = metadata or {}
    find_prefix(list(shapes), where)
    layers = _count_layers(shapes, where)
    hidden = shapes["adapter.video_embedder.weight"][0]
    mm_layers = tuple(n for n in range(layers) if shapes[_key(n, "attention.pre_norm")][0] == MODALITIES * hidden)
    head_dim = _head_dim(shapes, layers, mm_layers)
    heads, kv_heads = _head_counts(shapes, mm_layers, head_dim, where)
    config = TransformerConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        video_in_channels=shapes["adapter.video_embedder.weight"][1],
        audio_in_channels=shapes["adapter.audio_embedder.weight"][1],
        text_in_channels=shapes["adapter.text_embedder.weight"][1],
        mm_layers=mm_layers,
        gelu7_layers=tuple(n for n in range(layers) if _is_gelu7(shapes, n, mm_layers, hidden)),
        post_norm_layers=tuple(n for n in range(layers) if _key(n, "attn_post_norm") in shapes),
        coords_style=role.coords_style,
        local_attn_layers=_local_layers(role, layers, metadata, where),
        frame_receptive_field=_receptive_field(metadata, where),
    )
    _check(config, shapes, where)
    return config


def _key(layer: int, name: str) -> str:
    return f"block.layers.{layer}.{name}.weight"


def _count_layers(shapes: Shapes, where: str) -> int:
    found = {int(m[1]) for m in (re.match(r"block\.layers\.([0-9]{1,4})\.", name) for name in shapes) if m}
    layers = max(found) + 1
    required = ("attention.pre_norm", "attention.q_norm", "attention.linear_qkv", "mlp.up_gate_proj", "mlp.down_proj")
    missing = [_key(n, part) for n in range(layers) for part in required if _key(n, part) not in shapes]
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of {layers} layers are missing, first {missing[0]!r}. "
            "The file is incomplete; download it again."
        )
    measured = (*SIGNATURE, *(_key(n, part) for n in range(layers) for part in required))
    flat = [name for name in measured if 0 in shapes[name] or len(shapes[name]) < 1 + name.startswith("adapter.")]
    if flat:
        raise CheckpointError(
            f"{where}: {flat[0]!r} has shape {list(shapes[flat[0]])}, from which no size can be read. "
            "The file is damaged; download it again."
        )
    return layers


def _head_dim(shapes: Shapes, layers: int, mm_layers: tuple[int, ...]) -> int:
    rows = shapes[_key(layers - 1, "attention.q_norm")][0]
    return rows // MODALITIES if layers - 1 in mm_layers else rows


def _head_counts(shapes: Shapes, mm_layers: tuple[int, ...], head_dim: int, where: str) -> tuple[int, int]:
    experts = MODALITIES if 0 in mm_layers else 1
    rows = shapes[_key(0, "attention.linear_qkv")][0] // experts
    hidden = shapes["adapter.video_embedder.weight"][0]
    if not 0 < head_dim <= hidden:
        raise CheckpointError(
            f"{where}: heads of {head_dim} channels don't fit a hidden size of {hidden}. The file is damaged; download "
            "it again."
        )
    heads = hidden // head_dim
    kv_rows = rows - heads * head_dim - heads
    kv_heads = kv_rows // (2 * head_dim)
    expected = experts * (heads * head_dim + heads + 2 * kv_heads * head_dim)
    if kv_heads <= 0 or not _has_rows(shapes, _key(0, "attention.linear_qkv"), expected):
        raise CheckpointError(
            f"{where}: {_key(0, 'attention.linear_qkv')!r} has {rows} rows per expert, which {heads} query heads of "
            f"{head_dim} with a gate each leave no whole number of key and value heads."
        )
    return heads, kv_heads


def _has_rows(shapes: Shapes, name: str, expected: int) -> bool:
    """Whether a matrix has so many rows; packed ones are filled up with zeros (see ``weights.nvfp4``)."""
    packed = name.removesuffix("weight") + TENSOR_SCALE in shapes
    return shapes[name][0] == (rounded_up(expected) if packed else expected)


def _is_gelu7(shapes: Shapes, layer: int, mm_layers: tuple[int, ...], hidden: int) -> bool:
    # Rows only: packed 4-bit weights halve the columns. gelu7 is 4 x hidden wide; swiglu7 has two halves of 8/3.
    experts = MODALITIES if layer in mm_layers else 1
    return _has_rows(shapes, _key(layer, "mlp.up_gate_proj"), experts * 4 * hidden)


def _local_layers(role: Role, layers: int, metadata: Mapping[str, str], where: str) -> tuple[int, ...]:
    if LOCAL_METADATA_KEY in metadata:
        found = metadata[LOCAL_METADATA_KEY]
        chosen = tuple(map(int, re.findall("[0-9]{1,6}", found)))
        if not _LIST.fullmatch(found) or not set(chosen) <= set(range(layers)):
            raise CheckpointError(
                f"{where}: metadata {LOCAL_METADATA_KEY!r}: found {one_line(found, 100)}; expected a list of layers, "
                f"each from 0 to {layers - 1}, such as [0, 1]."
            )
        return chosen
    if not role.local_attention:
        return ()
    return released_local_layers(layers)


def _receptive_field(metadata: Mapping[str, str], where: str) -> int:
    found = metadata.get(RECEPTIVE_FIELD_METADATA_KEY, "11")
    if not re.fullmatch("[0-9]{1,6}", found):
        raise CheckpointError(
            f"{where}: metadata {RECEPTIVE_FIELD_METADATA_KEY!r}: found {one_line(found, 100)}; expected how many "
            "frames away local attention reaches, such as 11."
        )
    return int(found)


def _check(config: TransformerConfig, shapes: Shapes, where: str) -> None:
    for layer in range(config.num_layers):
        experts = MODALITIES if layer in config.mm_layers else 1
        factor = 1 if layer in config.gelu7_layers else 2
        expected = experts * factor * config.mlp_width(layer)
        name = _key(layer, "mlp.up_gate_proj")
        if not _has_rows(shapes, name, expected):
            raise CheckpointError(
                f"{where}: {name!r} has {shapes[name][0]} rows, expected {expected} for a hidden size "
                f"of {config.hidden_size}. This is a checkpoint of another model."
            )
    if config.video_in_channels % 4:
        raise CheckpointError(
            f"{where}: 'adapter.video_embedder.weight' takes {config.video_in_channels} channels, "
            "expected a multiple of 4 (a 2 x 2 patch)."
        )
