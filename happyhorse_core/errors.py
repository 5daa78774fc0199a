"""Errors that are the user's to mend: each names the field or file, what was found, what was expected, a way out."""

LONGEST_MESSAGE = 2000
"""Characters of an error's line; names and values from a damaged file may be of any length."""


def one_line(text: str, most: int = LONGEST_MESSAGE) -> str:
    """``text`` with newlines, escapes and all else that does not print written as Python writes it: ``\\n``.

    Of more than ``most`` characters (at least 50) the middle is left out.
    """
    shown = (character if character.isprintable() else ascii(character)[1:-1] for character in _cut(text, most))
    return _cut("".join(shown), most)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    gap = f" ... (of {len(text):,} characters) ... "
    kept = most - len(gap)
    return f"{text[: kept - kept // 2]}{gap}{text[len(text) - kept // 2 :]}"


class HappyHorseError(ValueError):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback.

    Its message is one line that any terminal and log can hold, whatever the names and values that it quotes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class InputError(HappyHorseError):
    """A prompt, picture, sound, size or option that can't be used."""


class CheckpointError(HappyHorseError):
    """A weights file or folder that is missing, damaged or of another model."""


class OutputError(HappyHorseError):
    """A result that can't be written where it was asked for."""
