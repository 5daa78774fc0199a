"""What the command line is given, checked once before anything else sees it: types for ``argparse``.

Each takes the text of an argument and raises ArgumentTypeError, which says what was found and what was expected. What
a value means, and so its range, is checked where it is used.
"""

import argparse
import math
import re
from pathlib import Path

import torch

from .device import parse_device
from .errors import InputError, one_line

MOST_CHARACTERS = 100_000
"""Of a text: far more than the 640 tokens that the models read, and less than a system gives a program as one word."""
LONGEST_SHOWN = 80
LARGEST_DIGITS = 20
"""Of a whole number: 2^64 - 1, the largest seed, has so many."""


def text(value: str) -> str:
    """A text for the model: Unicode that can be written as UTF-8, without NUL, of at most 100,000 characters."""
    if len(value) > MOST_CHARACTERS:
        raise argparse.ArgumentTypeError(
            f"found {len(value):,} characters, expected at most {MOST_CHARACTERS:,}; the models read 640 tokens."
        )
    for place, character in enumerate(value, 1):
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise argparse.ArgumentTypeError(
                f"found {character!r} as character {place}, expected text in UTF-8. See how the terminal or script "
                "that started this encodes it."
            )
    return value


def path(value: str) -> Path:
    """The path of a file or folder that is there, or could be. Its name may be of any bytes that the system allows."""
    if not value:
        raise argparse.ArgumentTypeError("found an empty text, expected a path; '.' is the current folder.")
    try:
        Path(value).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # a file to be written; of one to be read, the reader says that it is missing
    except (OSError, ValueError) as error:
        # Too long, of characters that names can't have, in a folder that may not be looked into, links in a circle.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise argparse.ArgumentTypeError(f"found {_shown(value)}, which is no path here: {reason}.") from error
    return Path(value)


def integer(value: str) -> int:
    """A whole number of at most 20 digits."""
    if re.fullmatch(f"[+-]?[0-9]{{1,{LARGEST_DIGITS}}}", value.strip()) is None:
        raise argparse.ArgumentTypeError(f"found {_shown(value)}, expected a whole number.")
    return int(value)


def number(value: str) -> float:
    """A number that is finite."""
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"found {_shown(value)}, expected a number.")
    return found


def size(value: str) -> tuple[int, int]:
    """'448x256' -> (448, 256)."""
    match = re.fullmatch(r"(-?[0-9]{1,9})\s*[xX×*]\s*(-?[0-9]{1,9})", value.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"found {_shown(value)}, expected width and height in pixels such as 448x256.")
    return int(match[1]), int(match[2])


def device(value: str) -> torch.device:
    """The name of one device."""
    try:
        return parse_device(value)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def devices(value: str) -> tuple[torch.device, ...]:
    """The names of several devices, with commas between them."""
    return tuple(map(device, value.split(",")))


def _shown(value: str) -> str:
    return repr(one_line(value, LONGEST_SHOWN))
