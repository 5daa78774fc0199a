"""The text encoder and its tokenizer from disk, as one object that turns a prompt into the transformer's input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops import Operations, TorchOps
from ..progress import Progress, silent
from ..weights.component import ComponentFile, build
from ..weights.files import exists, folder_of
from ..weights.json_file import CONFIG_BYTES, TOKENIZER_BYTES, parse_object, read_object
from ..weights.source import Opener, TensorSource, index_names, open_source
from .config import PREFIXES, TextEncoderConfig, detect_text_encoder, encoder_prefix
from .encoder import T5GemmaEncoder
from .tokenizer import GemmaTokenizer

EMBEDDED_TOKENIZER = "tokenizer_json"
"""A uint8 tensor of this name in a merged file holds the bytes of its tokenizer.json, as ComfyUI's own files do."""
IGNORED = (EMBEDDED_TOKENIZER, "spiece_model")


@dataclass(frozen=True)
class TextEncoder:
    """``compute_dtype`` is that of the encoder's residual stream; the released pipeline uses bfloat16."""

    model: T5GemmaEncoder
    tokenizer: GemmaTokenizer
    compute_dtype: torch.dtype = torch.bfloat16

    def encode_prompt(self, prompt: str, progress: Progress = silent) -> Tensor:
        """[1, L, hidden] float32, rounded through float16 as the video model saw it in training.

        Raises InputError for an empty prompt; one of more than 640 tokens is cut, with a warning.
        """
        ids = torch.tensor([self.tokenizer.encode_prompt(prompt)], device=self.model.norm.weight.device)
        hidden = self.model(ids, compute_dtype=self.compute_dtype, progress=progress)
        return hidden.half().float()


@dataclass(frozen=True, kw_only=True)
class TextEncoderFile(ComponentFile[TextEncoderConfig]):
    """The encoder's tensors under their own names, its sizes, and the tokenizer that belongs to them."""

    tokenizer: GemmaTokenizer


def inspect_text_encoder(path: str | Path, opener: Opener = open_source) -> TextEncoderFile:
    """Opens a checkpoint, detects its sizes and reads its tokenizer; see ``load_text_encoder``."""
    path = Path(path)
    return examine_text_encoder(opener(path, prefix=indexed_prefix(path)), path)


def examine_text_encoder(source: TensorSource, path: Path) -> TextEncoderFile:
    """What ``inspect_text_encoder`` does once a checkpoint is open; ``path`` is where it was opened."""
    encoder = source.sub(encoder_prefix(source.names, str(path)))
    config = detect_text_encoder(encoder.shapes, read_config(path, source.metadata), str(path))
    tokenizer = read_tokenizer(path, source)
    if tokenizer.highest_id >= config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has ids up to {tokenizer.highest_id}, the encoder only up to "
            f"{config.vocab_size - 1}. "
            "Use the tokenizer.json that was published with the encoder."
        )
    return TextEncoderFile(source=encoder, config=config, ignore=IGNORED, tokenizer=tokenizer)


def load_text_encoder(
    path: str | Path,
    *,
    operations: Operations = TorchOps,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> TextEncoder:
    """Loads T5Gemma's encoder; tensors of the decoder are never read, nor its shards needed.

    ``path``: the Hugging Face folder (config.json, tokenizer.json, shards and their index), or one .safetensors file
    with tokenizer.json beside it or inside it. ``dtype`` is that of the weights and of the computation. Raises
    CheckpointError where files are missing, damaged, of another model or not of one another.
    """
    file = inspect_text_encoder(path)
    model = build(file, T5GemmaEncoder, operations=operations, dtype=dtype, device=device, progress=progress)
    return TextEncoder(model.eval(), file.tokenizer, dtype)


def read_tokenizer(path: Path, source: TensorSource) -> GemmaTokenizer:
    """The tokenizer inside a merged file, else the tokenizer.json in the folder or beside the file."""
    if EMBEDDED_TOKENIZER in source:
        entry, where = source.entries[EMBEDDED_TOKENIZER], f"{path}: tensor {EMBEDDED_TOKENIZER}"
        if entry.dtype != torch.uint8 or entry.nbytes > TOKENIZER_BYTES:
            raise CheckpointError(
                f"{where}: found {entry.nbytes:,} bytes of {entry.dtype}, expected a tokenizer.json as torch.uint8, at "
                f"most {TOKENIZER_BYTES:,} of them. Use the encoder's folder, or a file that was converted again."
            )
        return GemmaTokenizer.from_bytes(source.read(EMBEDDED_TOKENIZER).numpy().tobytes(), where)
    return GemmaTokenizer.from_file(folder_of(path) / "tokenizer.json")


def read_config(path: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    """The model's config, from a merged file's metadata or from config.json; None where neither is T5Gemma's."""
    file = folder_of(path) / "config.json"
    if "config" in metadata:
        tree = parse_object(metadata["config"], f"{path}: metadata 'config'")
    elif exists(file):
        tree = read_object(file, CONFIG_BYTES)
    else:
        return None
    is_ours = str(tree.get("model_type", "t5gemma")).startswith(("t5gemma", "t5_gemma"))
    return tree if is_ours else None


def indexed_prefix(path: Path) -> str:
    """The encoder's prefix according to an index, so that shards of the decoder alone may be absent; else nothing.

    A damaged index gives nothing too: opening it for real says what is wrong with it.
    """
    try:
        names = index_names(path)
    except CheckpointError:
        return ""
    starts = tuple(prefix for prefix in PREFIXES if prefix)
    return next((start for start in starts if any(name.startswith(start) for name in names)), "")
