"""From a prompt to the token ids that the text encoder was trained on: Gemma's own tokenizer, without BOS and EOS."""

import logging
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import CheckpointError, InputError
from ..weights.files import exists, read_whole
from ..weights.json_file import TOKENIZER_BYTES, parse_object
from .tokenizer_file import build_tokenizer

logger = logging.getLogger(__name__)

MAX_TOKENS = 640
"""The longest text that the video model was trained with."""


class GemmaTokenizer:
    """Byte-pair encoding with byte fallback, as the model's tokenizer.json describes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
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
        return cls(build_tokenizer(parse_object(data, where), where))

    @property
    def vocab_size(self) -> int:
        """Pieces with an id of their own."""
        return self._tokenizer.get_vocab_size()

    @property
    def highest_id(self) -> int:
        """The largest id that a prompt can be given."""
        return max(self._tokenizer.get_vocab().values())

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
