"""Texts from outside, which may be of any length and hold anything: read as JSON, and shown in a terminal."""

import json
from typing import Any

LONGEST_LINE = 2000
MOST_LINES = 200


def read_json(text: str | bytes, **options: Any) -> Any:
    """What a JSON text holds; ValueError where it is none, and also where it is nested too deep to be read."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def one_line(text: object, most: int = LONGEST_LINE) -> str:
    """``text`` in one line of at most ``most`` characters; what does not print is written as Python writes it."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text)[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def some_lines(text: str) -> str:
    """``text`` in its lines, each of them as ``one_line`` gives it, and not more than a person reads."""
    lines = [one_line(line) for line in text[: LONGEST_LINE * MOST_LINES].replace("\r\n", "\n").split("\n")]
    left = len(lines) - MOST_LINES
    return "\n".join(lines[:MOST_LINES]) + (f"\nand {left} more lines" if left > 0 else "")
