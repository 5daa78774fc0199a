"""The one reader of JSON that comes from outside: an index, a header, a configuration, a tokenizer, a layer's note.

What is read is bounded before and after: a regular file of a size that its kind can have, UTF-8, an object whose keys
stand there once, nested a few levels, with numbers that 64 bits hold.
"""

import json
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from ..errors import CheckpointError, one_line
from .files import check_start, read_whole

INDEX_BYTES = 64 << 20
CONFIG_BYTES = 4 << 20
TOKENIZER_BYTES = 128 << 20
"""The largest files of each kind that are read. The released ones have 0.2 MB, 4 kB and 34 MB."""

_DEEPEST = 64
"""Levels of lists and objects; a tokenizer's JSON has about eight."""
_LONGEST_NUMBER = 400
"""Characters; every finite number that 64 bits hold can be written in fewer."""


class _RefusedError(ValueError):
    """What is JSON by its grammar but is not read."""


def read_object(path: Path, most: int) -> dict[str, Any]:
    """The object in a JSON file of at most ``most`` bytes. Raises CheckpointError that names the file."""
    return parse_object(read_whole(path, most), str(path))


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The object that ``text`` holds. Raises CheckpointError, naming ``where``, for anything else."""
    try:
        tree = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_whole_number,
            parse_float=_number,
        )
        _check_depth(tree)
    except (ValueError, RecursionError) as error:
        check_start(where, text[:64].encode(errors="replace") if isinstance(text, str) else text[:64])
        raise CheckpointError(f"{where}: no valid JSON ({_reason(error)}). Download it again.") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{where}: found {shown(tree)}; expected a JSON object, in braces. Download it again.")
    return tree


def shown(value: object) -> str:
    """A value of unknown size for an error's text."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return one_line(repr(value), 100)


def is_whole(value: object, least: int, most: int) -> TypeGuard[int]:
    """Whether a value is a whole number, written as one, from ``least`` to ``most``."""
    return type(value) is int and least <= value <= most


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested more than {_DEEPEST} levels deep"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8"
    return str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _RefusedError(f"{shown(key)} stands twice in one object")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise _RefusedError(f"{text} is no number of JSON")


def _whole_number(text: str) -> int:
    number = int(text) if len(text) <= _LONGEST_NUMBER else 0
    if len(text) > _LONGEST_NUMBER or not -(2**63) <= number < 2**63:
        raise _RefusedError(f"{shown(text)} is larger than 64 bits hold")
    return number


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise _RefusedError(f"{shown(text)} is larger than 64 bits hold")
    return number


def _check_depth(tree: Any) -> None:
    """Raises RecursionError where what reads the tree later, level by level, might run out of levels."""
    level: list[Any] = [[tree]]
    for _ in range(_DEEPEST + 1):
        values = (value for node in level for value in (node.values() if isinstance(node, dict) else node))
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise RecursionError
