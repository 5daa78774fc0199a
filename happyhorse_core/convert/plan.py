"""What a converted file will hold, before anything of it is written.

A scaled float8 layer becomes three tensors, as ComfyUI's quantised layers expect them:

| name | dtype and shape | content |
| --- | --- | --- |
| ``X.weight`` | float8_e4m3fn, as released | the weight divided by its scale |
| ``X.weight_scale`` | float32, [] | the scale; where experts are stacked [rows, 1], each expert's on its rows |
| ``X.comfy_quant`` | uint8 | JSON: ``{"format": "float8_e4m3fn"}`` |

The scale of stacked experts is one number for each row since that is the form in which a matrix can be multiplied back
in one go, here and in ComfyUI; all rows of an expert have the same.

An nvfp4 layer becomes ``X.comfy_quant`` and the three tensors that ``nvfp4`` describes: ``X.weight``,
``X.weight_scale`` for the blocks and ``X.weight_scale_2`` for all of it. Stacked experts share the last, as ComfyUI's
layers take but one, and lose nothing by it: block scales keep all their digits over a range of 28,000 to 1, so experts
of different size differ in these alone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..describe.kinds import Contents
from ..dit.config import MODALITIES
from ..dit.detect import LOCAL_METADATA_KEY, RECEPTIVE_FIELD_METADATA_KEY
from ..dit.load import TransformerFile
from ..dit.roles import ASSUMED, METADATA_KEY, ROLES
from ..errors import CheckpointError, InputError
from ..text.config import PREFIXES as TEXT_PREFIXES
from ..text.load import EMBEDDED_TOKENIZER, examine_text_encoder, read_config
from ..weights import nvfp4
from ..weights.files import exists, folder_of
from ..weights.fill import check_module
from ..weights.formats import FLOAT8, FLOAT8_FORMATS, NOTE, NVFP4, SCALE, TENSOR_SCALE, note_bytes
from ..weights.known import TEXT_ENCODER, TRANSFORMER
from ..weights.quantised import dequantised, packed_weights
from ..weights.tensors import TensorEntry, TensorSource

BF16, FP8, FP8_SCALED = "bf16", "fp8", "fp8-scaled"
DTYPES = (BF16, FP8, FP8_SCALED, NVFP4)


@dataclass(frozen=True)
class Planned:
    """One tensor to write: its values from ``entry``, its name and dtype in the new file.

    ``format`` is what ComfyUI's note says of a weight that gets scales, empty where it is only rounded. ``experts`` is
    the number of row blocks that get a float8 scale of their own.
    """

    name: str
    entry: TensorEntry
    dtype: torch.dtype
    format: str = ""
    experts: int = 1

    def stored(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes of what this becomes in the file."""
        if not self.format:
            return {self.name: (self.dtype, self.entry.shape)}
        layer = self.name.removesuffix("weight")
        if self.format == NVFP4:
            numbers, blocks = nvfp4.stored_shapes(self.entry.shape)
            found = {
                self.name: (self.dtype, numbers),
                layer + SCALE: (nvfp4.SCALE_DTYPE, blocks),
                layer + TENSOR_SCALE: (torch.float32, ()),
            }
        else:
            shape = (self.entry.shape[0], 1) if self.experts > 1 else ()
            found = {self.name: (self.dtype, self.entry.shape), layer + SCALE: (torch.float32, shape)}
        return found | {layer + NOTE: (torch.uint8, (len(note_bytes(self.format)),))}


@dataclass(frozen=True)
class Plan:
    """All tensors of the new file and what its header says. ``files`` are those that the values come from."""

    kind: str
    tensors: tuple[Planned, ...]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]

    def stored(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes of all tensors in the file."""
        return {name: kind for planned in self.tensors for name, kind in planned.stored().items()}


_Parts = tuple[list[Planned], dict[str, str], tuple[Path, ...]]
"""Of one kind: its tensors, its own metadata, and the files that are read beside those of the weights."""


def make_plan(contents: Contents, dtype: str | None) -> Plan:
    """Decides what is written. ``dtype`` is one of DTYPES; None is bf16, and for the autoencoders no change.

    Raises CheckpointError where tensors are missing, left over, or quantised already; InputError for a dtype that this
    kind is not written in, and where nothing tells what a transformer is for.
    """
    loadable = contents.as_loaded(dequantised(contents.source, contents.module))
    check_module(contents.module, loadable, ignore=contents.ignore)
    tensors, own, others = _PLANNERS.get(contents.kind, _autoencoder)(contents, dtype)
    metadata = {
        **own,
        "format": "pt",
        "happyhorse.kind": contents.kind,
        "happyhorse.dtype": dtype or (BF16 if contents.kind in _PLANNERS else "unchanged"),
        "happyhorse.converter": f"happyhorse_core {__version__}",
    }
    files = dict.fromkeys([*(entry.file for entry in contents.opened.entries.values()), *others])
    return Plan(contents.kind, tuple(tensors), metadata, tuple(files))


def _transformer(contents: Contents, dtype: str | None) -> _Parts:
    file = contents.transformer
    assert file is not None, "set for this kind"
    layers = [name for name, target in contents.module.state_dict().items() if target.dtype != torch.float32]
    stacks = tuple(f"block.layers.{layer}." for layer in file.config.mm_layers)
    _refuse_quantised(contents.source, layers, dtype)
    source = dequantised(contents.source, contents.module)
    tensors = [
        _layer(name, entry, dtype, MODALITIES if name.startswith(stacks) else 1)
        if name in layers
        else Planned(name, entry, torch.float32)
        for name, entry in source.entries.items()
    ]
    return tensors, _role_metadata(file), ()


def _layer(name: str, entry: TensorEntry, dtype: str | None, experts: int = 1) -> Planned:
    if dtype == NVFP4:
        return Planned(name, entry, torch.uint8, NVFP4)
    if dtype == FP8_SCALED:
        return Planned(name, entry, FLOAT8, FLOAT8_FORMATS[FLOAT8], experts)
    return Planned(name, entry, FLOAT8 if dtype == FP8 else torch.bfloat16)


def _refuse_quantised(source: TensorSource, layers: list[str], dtype: str | None) -> None:
    packed = set(packed_weights(source))
    already = [name for name in layers if source.dtypes[name].itemsize == 1]
    if already and dtype not in (None, BF16):
        found = NVFP4 if already[0] in packed else source.dtypes[already[0]]
        raise CheckpointError(
            f"{source.path}: {len(already)} of {len(layers)} weights are {found} already, first {already[0]}; rounding "
            "them again would only lose more. Convert the bfloat16 or float32 file instead, or use this one as it is."
        )


def _role_metadata(file: TransformerFile) -> dict[str, str]:
    if file.role_origin == ASSUMED:
        raise InputError(
            f"--role: nothing tells what {file.source.path} is for: it has no metadata and its folder no released "
            f"name. Say which it is: {', '.join(f'--role {name}' for name in ROLES)}."
        )
    kept = (LOCAL_METADATA_KEY, RECEPTIVE_FIELD_METADATA_KEY)
    return {
        **{key: file.source.metadata[key] for key in kept if key in file.source.metadata},
        METADATA_KEY: file.role.name,
    }


def _text_encoder(contents: Contents, dtype: str | None) -> _Parts:
    """Matrices of the layers are converted; the word embeddings and the norms stay bfloat16, as released."""
    path, opened = contents.path, contents.opened
    names = contents.module.state_dict()
    layers = [name for name in names if name.endswith("_proj.weight")]
    _refuse_quantised(contents.source, layers, dtype)
    examine_text_encoder(opened, path)  # raises where the tokenizer is missing or of another model
    tensors = [
        _layer(TEXT_PREFIXES[0] + name, entry, dtype if name in layers else BF16)
        for name, entry in dequantised(contents.source, contents.module).entries.items()
        if name in names
    ]
    config = read_config(path, opened.metadata)
    metadata = {} if config is None else {"config": json.dumps(config)}
    if EMBEDDED_TOKENIZER in opened:
        return [*tensors, Planned(EMBEDDED_TOKENIZER, opened.entries[EMBEDDED_TOKENIZER], torch.uint8)], metadata, ()
    folder = folder_of(path)
    tokenizer, config_file = folder / "tokenizer.json", folder / "config.json"
    tensors.append(Planned(EMBEDDED_TOKENIZER, _bytes_of(tokenizer), torch.uint8))
    reads_config = "config" not in opened.metadata and exists(config_file)
    return tensors, metadata, (tokenizer, config_file) if reads_config else (tokenizer,)


def _bytes_of(file: Path) -> TensorEntry:
    """A whole file as a tensor."""

    def read() -> Tensor:
        return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)

    return TensorEntry(file, (file.stat().st_size,), torch.uint8, read)


def _autoencoder(contents: Contents, dtype: str | None) -> _Parts:
    """The tensors under the names in which ComfyUI's own VAE loader knows them too.

    Of Wan2.2's autoencoder everything is kept, though a first frame needs but its encoder: ComfyUI's loader wants the
    whole. Weight norm is kept unfolded for the same reason.
    """
    if dtype not in (None, BF16):
        raise InputError(
            f"--dtype: found {dtype}; an autoencoder ({contents.kind}) is written in {BF16}, or unchanged without it."
        )
    config = contents.source.metadata.get("config")
    tensors = [
        Planned(name, entry, torch.bfloat16 if dtype and entry.dtype.is_floating_point else entry.dtype)
        for name, entry in dequantised(contents.source).entries.items()
    ]
    return tensors, {} if config is None else {"config": config}, ()


_PLANNERS: Mapping[str, Callable[[Contents, str | None], _Parts]] = {
    TRANSFORMER: _transformer,
    TEXT_ENCODER: _text_encoder,
}
"""All other kinds are autoencoders."""
