"""The text format that the model was trained on: a description, the dialogue line by line, the background sound.

Source: the prompt guidelines published with daVinci-MagiHuman.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputError

LANGUAGES = ("Mandarin", "Cantonese", "English", "Japanese", "Korean", "German", "French")
MAX_LINES = 4
FEWEST_WORDS, MOST_WORDS = 150, 200
NO_SOUND = "No prominent background sound"

# Han with its extensions and iteration marks, kana, Hangul syllables and letters; not their punctuation.
_CJK = (
    "\u3005-\u3007\u3041-\u3096\u309d\u309e\u30a1-\u30fa\u30fc-\u30fe\u3131-\u318e\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_JOINS = re.compile(
    rf"(?<=[{_CJK}])\s*(?=[{_CJK}])"  # between two characters, however far apart they were written
    rf"|(?<=[{_CJK}])(?=[0-9A-Za-z])|(?<=[0-9A-Za-z])(?=[{_CJK}])"
)
_QUOTES = re.compile('["\u201c\u201d]')
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]*[^\W{_CJK}][^\s{_CJK}]*")


@dataclass(frozen=True)
class Line:
    """One line of dialogue. ``speaker`` is who is seen, in about five words; ``words`` is what is said."""

    speaker: str
    language: str
    words: str


def space_characters(text: str) -> str:
    """Puts a single space between neighbouring Chinese, Japanese and Korean characters, and changes nothing else.

    Latin words and numbers beside such a character are set off too; punctuation keeps its place. Doing it twice is
    doing it once.
    """
    return _JOINS.sub(" ", text)


def count_words(text: str) -> int:
    """Words of a text, each Chinese, Japanese or Korean character counted as one."""
    return len(_WORD.findall(text))


def length_warning(description: str) -> str | None:
    """What to tell the user about a description outside the 150 to 200 words of the training texts, if it is."""
    words = count_words(description)
    if FEWEST_WORDS <= words <= MOST_WORDS:
        return None
    return (
        f"description: found {words} words; the model was trained on {FEWEST_WORDS} to {MOST_WORDS}. "
        f"{'Describe more of what is seen' if words < FEWEST_WORDS else 'Leave out what matters least'}."
    )


def build_prompt(description: str, lines: Sequence[Line] = (), background_sound: str = "") -> str:
    """Joins the parts in the trained format. An empty ``background_sound`` is said to be none.

    A line that has neither speaker nor words is left out. Raises InputError naming the field (``speaker_2`` is that of
    the second line) for an empty description, more than four lines, a line with one of speaker and words, a language
    that the model doesn't speak, or angle brackets where the format has its own.
    """
    description = description.strip()
    if not description:
        raise InputError("description: found nothing, expected what is seen, in 150 to 200 words.")
    if len(lines) > MAX_LINES:
        raise InputError(f"dialogue: found {len(lines)} lines, expected at most {MAX_LINES}.")
    parts = [description]
    spoken = [
        _format_line(n, line) for n, line in enumerate(lines, start=1) if line.speaker.strip() or line.words.strip()
    ]
    if spoken:
        parts.append("\n".join(["Dialogue:", *spoken]))
    sound = _bracketed("background_sound", background_sound) or NO_SOUND
    parts.append(f"Background Sound:\n<{sound}>")
    return space_characters("\n\n".join(parts))


def _format_line(number: int, line: Line) -> str:
    if line.language not in LANGUAGES:
        raise InputError(f"language_{number}: found {line.language!r}, expected one of {', '.join(LANGUAGES)}.")
    speaker, words = _bracketed(f"speaker_{number}", line.speaker), " ".join(line.words.split()).strip('"\u201c\u201d')
    for name, text in (("speaker", speaker), ("words", words)):
        if not text:
            raise InputError(f"{name}_{number}: found nothing; fill in both speaker and words, or neither.")
    # The words stand in double quotes, so those inside become single ones.
    words = _QUOTES.sub("'", words)
    return f'<{speaker}, {line.language}>: "{words}"'


def _bracketed(field: str, text: str) -> str:
    """A text on one line that will stand in angle brackets, less those that the user already put around it."""
    text = " ".join(text.split())
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1].strip()
    if "<" in text or ">" in text:
        raise InputError(f"{field}: found angle brackets in {text!r}; leave them out, the format puts its own.")
    return text
