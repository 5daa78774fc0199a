"""From a prompt to the token ids that the text encoder was trained on: Gemma's own tokenizer, without BOS and EOS."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import CheckpointError, InputError
from ..weights.files import exists, read_whole
from ..weights.json_file import TOKENIZER_BYTES, parse_object

logger = logging.getLogger(__name__)

MAX_TOKENS = 640
"""The longest text that the video model was trained with."""

SPACE = "▁"
SPECIAL_TOKENS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}


class GemmaTokenizer:
    """Byte-pair encoding with byte fallback, as the model's tokenizer.json describes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: str | Path) -> "GemmaTokenizer":
        """Raises CheckpointError where ``path`` can't be read or is not Gemma's tokenizer.json."""
        path = Path(path)
        if not exists(path):
            raise CheckpointError(
                f"{path}: there is no such file. Download tokenizer.json of google/t5gemma-9b-9b-ul2 and put it beside "
                "the text encoder's weights."
            )
        return cls.from_bytes(read_whole(path, TOKENIZER_BYTES), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "tokenizer.json") -> "GemmaTokenizer":
        """``data`` is the content of a tokenizer.json; ``where`` names it in errors."""
        _check_is_gemma(parse_object(data, where), where)
        return cls(Tokenizer.from_str(data.decode("utf-8")))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, prompt: str) -> list[int]:
        """Token ids of the whole prompt."""
        return self._tokenizer.encode(prompt, add_special_tokens=False).ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids as the video model takes them: cut at 640 with a warning. InputError for an empty prompt."""
        if not prompt.strip():
            raise InputError("prompt: found no text, expected a description of the scene.")
        ids = self.encode(prompt)
        if len(ids) > MAX_TOKENS:
            logger.warning(
                "prompt: found %d tokens, the model reads at most %d; the last %d are cut. Shorten the prompt.",
                len(ids),
                MAX_TOKENS,
                len(ids) - MAX_TOKENS,
            )
        return ids[:MAX_TOKENS]


def _check_is_gemma(tree: Mapping[str, Any], where: str) -> None:
    """Another tokenizer would give ids that mean other words, and a fluent video of something else."""
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise _foreign(where, "no vocabulary under model.vocab")
    if model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        raise _foreign(where, f"a {model.get('type')} model with byte_fallback = {model.get('byte_fallback')}")
    for piece, expected in SPECIAL_TOKENS.items():
        if model["vocab"].get(piece) != expected:
            raise _foreign(where, f"{piece} with id {model['vocab'].get(piece)} instead of {expected}")
    if SPACE not in model["vocab"]:
        raise _foreign(where, f"no piece {SPACE!r} for a space")


def _foreign(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: found {found}, expected Gemma's tokenizer (byte pairs with byte fallback). "
        "Use tokenizer.json of google/t5gemma-9b-9b-ul2."
    )
