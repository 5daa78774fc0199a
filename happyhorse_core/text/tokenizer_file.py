"""What a tokenizer.json holds, checked field by field, as a tokenizer.

The library that runs it would take any file: expressions that never end on some prompts, ids that no encoder has, and
errors of no type of their own. So it gets what was checked here, and nothing else of the file.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ..errors import CheckpointError
from ..weights.json_file import is_whole, shown

SPACE = "▁"
SPECIAL_TOKENS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
HIGHEST_ID = 2**24
"""Far beyond any vocabulary; Gemma's has 256,000 pieces."""

_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_AFTER_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_SMALL_WORDS = "▁?[a-z]+|."
_WORDS = {"type": "Split", "pattern": {"Regex": _SMALL_WORDS}, "behavior": "Isolated", "invert": False}

_Step = tuple[Mapping[str, Any], Callable[[], Any]]
_NORMALIZERS: Sequence[_Step] = (
    (_SPACES, lambda: normalizers.Replace(" ", SPACE)),
    ({"type": "Lowercase"}, normalizers.Lowercase),
)
_PRE_TOKENIZERS: Sequence[_Step] = (
    (_AFTER_SPACES, lambda: pre_tokenizers.Split(" ", "merged_with_previous")),
    (_WORDS, lambda: pre_tokenizers.Split(Regex(_SMALL_WORDS), "isolated")),
)
"""The first of each is Gemma's, the second that of the small model that comes with the project."""

_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "byte_fallback": (True,),
    "dropout": (None, 0.0),
    "unk_token": ("<unk>", None),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (True, False, None),
    "ignore_merges": (False, None),
}
"""What the model's fields may be; None stands also for a field that is not there."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def build_tokenizer(tree: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer that the tree of a tokenizer.json describes.

    Truncation, padding, what is added at the ends, and the way back to text are left out: prompts need none of them.
    Raises CheckpointError, naming ``where``, for a file that is damaged or another model's than Gemma's.
    """
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise foreign(where, "no vocabulary under model.vocab")
    for key, allowed in _SETTINGS.items():
        if not any(model.get(key) == value and type(model.get(key)) is type(value) for value in allowed):
            raise foreign(where, f"a model with {key} = {shown(model.get(key))}")
    vocab = _checked_vocab(model["vocab"], where)
    merges = _checked_merges(model.get("merges"), vocab, where)
    tokenizer = Tokenizer(
        BPE(
            vocab=vocab,
            merges=merges,
            unk_token=model.get("unk_token"),
            fuse_unk=bool(model.get("fuse_unk")),
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(_steps(tree, "normalizer", "normalizers", _NORMALIZERS, where))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        _steps(tree, "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS, where)
    )
    _add_tokens(tokenizer, tree.get("added_tokens") or [], where)
    return tokenizer


def foreign(where: str, found: str) -> CheckpointError:
    """The error for a tokenizer that is not Gemma's."""
    return CheckpointError(
        f"{where}: found {found}, expected Gemma's tokenizer (byte pairs with byte fallback). "
        "Use tokenizer.json of google/t5gemma-9b-9b-ul2."
    )


def _damaged(where: str, found: str) -> CheckpointError:
    return CheckpointError(f"{where}: {found}. The file is damaged; download the tokenizer.json again.")


def _checked_vocab(vocab: Mapping[str, Any], where: str) -> dict[str, int]:
    """Another tokenizer would give ids that mean other words, and a fluent video of something else."""
    for piece, expected in SPECIAL_TOKENS.items():
        if vocab.get(piece) != expected:
            raise foreign(where, f"{piece} with id {shown(vocab.get(piece))} instead of {expected}")
    if SPACE not in vocab:
        raise foreign(where, f"no piece {SPACE!r} for a space")
    owners: dict[int, str] = {}
    for piece, number in vocab.items():
        if not is_whole(number, 0, HIGHEST_ID):
            raise _damaged(where, f"piece {shown(piece)}: found id {shown(number)}, expected 0 to {HIGHEST_ID}")
        if number in owners:
            raise _damaged(where, f"pieces {shown(owners[number])} and {shown(piece)} both have id {number}")
        if not piece or not _is_text(piece):
            raise _damaged(where, f"id {number}: found the piece {shown(piece)}, expected some text")
        owners[number] = piece
    return dict(vocab)


def _checked_merges(merges: Any, vocab: Mapping[str, int], where: str) -> list[tuple[str, str]]:
    """Pairs, which files hold as lists, or as text with a space between."""
    if not isinstance(merges, list):
        raise _damaged(where, f"model.merges: found {shown(merges)}, expected a list of pairs")
    pairs: list[tuple[str, str]] = []
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        good = isinstance(pair, list) and len(pair) == 2 and all(isinstance(piece, str) for piece in pair)
        if not good or any(piece not in vocab for piece in (*pair, "".join(pair))):
            raise _damaged(where, f"model.merges: entry {number}: found {shown(merge)}, expected two known pieces")
        pairs.append((pair[0], pair[1]))
    return pairs


def _steps(tree: Mapping[str, Any], key: str, parts: str, known: Sequence[_Step], where: str) -> list[Any]:
    """What is done to a text before byte pairs: the steps of a sequence, or a single one, or none."""
    found = tree.get(key)
    steps = found.get(parts) if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    if found is None:
        return []
    if not isinstance(steps, list):
        raise _damaged(where, f"{key}: found {shown(steps)}, expected a list of steps")
    made = []
    for step in steps:
        make = next((make for tree_of_step, make in known if tree_of_step == step), None)
        if make is None:
            kind = step.get("type") if isinstance(step, dict) else step
            raise foreign(where, f"a {key} of another kind ({shown(kind)})")
        made.append(make())
    return made


def _add_tokens(tokenizer: Tokenizer, added: Any, where: str) -> None:
    """Pieces that are found in a text before it is cut into byte pairs."""
    if not isinstance(added, list):
        raise _damaged(where, f"added_tokens: found {shown(added)}, expected a list")
    for token in added:
        if (
            not isinstance(token, dict)
            or not isinstance(token.get("content"), str)
            or not token["content"]
            or not _is_text(token["content"])
            or not all(isinstance(token.get(flag, False), bool) for flag in _FLAGS)
        ):
            found = token.get("content") if isinstance(token, dict) else token
            raise _damaged(where, f"added_tokens: found {shown(found)}, expected a piece with its id and flags")
    for is_special, tokens in groupby(added, key=lambda token: token.get("special", False)):
        add = tokenizer.add_special_tokens if is_special else tokenizer.add_tokens
        add([_added(token) for token in tokens])
    for token in added:
        number = tokenizer.token_to_id(token["content"])
        if not is_whole(token.get("id"), 0, HIGHEST_ID) or token["id"] != number:
            found = f"{shown(token['content'])}: found id {shown(token.get('id'))}"
            raise _damaged(where, f"added_tokens: {found}, expected {number} as in the vocabulary or after it")


def _added(token: Mapping[str, Any]) -> AddedToken:
    return AddedToken(token["content"], **{flag: token.get(flag, False) for flag in _FLAGS if flag != "special"})


def _is_text(piece: str) -> bool:
    """Whether a piece can be written as UTF-8, unlike half of a pair of surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in piece)
