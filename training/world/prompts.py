"""Prompts of scenes: a small grammar with synonyms, in the format that ``happyhorse_core.prompt`` builds.

Every word stands for one thing only: "ring" is a path and "circle" a shape, "navy" a background and "blue" a shape.
Where a list of synonyms belongs to a name, its first entry is the plainest; a prompt without synonyms is made of these.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from happyhorse_core.prompt import Line, build_prompt

from .scene import BACKGROUNDS, Scene

Choose = Callable[[Sequence[str]], str]

SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid", "wedge"),
    "star": ("star", "five-pointed star"),
}
COLOUR_WORDS = {
    "red": ("red", "scarlet", "bright red"),
    "orange": ("orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "golden", "bright yellow"),
    "green": ("green", "emerald", "bright green"),
    "cyan": ("cyan", "turquoise", "bright cyan"),
    "blue": ("blue", "cobalt", "bright blue"),
    "purple": ("purple", "violet", "bright purple"),
    "white": ("white", "snowy", "bright white"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "middle-sized"),
    "large": ("large", "big", "huge"),
}
MOTION_WORDS = {
    "bouncing": (
        "bounces on the floor",
        "hops up and down",
        "jumps on the floor",
        "keeps bouncing off the ground",
        "falls to the ground and springs back",
    ),
    "sliding left": (
        "slides to the left",
        "moves from right to left",
        "glides leftwards",
        "drifts across to the left",
    ),
    "sliding right": (
        "slides to the right",
        "moves from left to right",
        "glides rightwards",
        "drifts across to the right",
    ),
    "orbiting": (
        "orbits the centre",
        "goes round and round",
        "travels in a ring around the middle",
        "keeps orbiting the middle",
    ),
    "pulsing": (
        "pulses in its place",
        "grows and shrinks",
        "keeps swelling and shrinking",
        "throbs like a heart",
    ),
}
SOUND_WORDS = {
    "bouncing": (
        "A {pitch} click at every touch of the floor",
        "Short {pitch} knocks, one for each landing",
        "A {pitch} tap whenever it lands",
    ),
    "sliding left": (
        "A steady {pitch} tone that wanders from right to left",
        "An even {pitch} hum passing over to the left",
    ),
    "sliding right": (
        "A steady {pitch} tone that wanders from left to right",
        "An even {pitch} hum passing over to the right",
    ),
    "orbiting": (
        "A steady {pitch} tone that swings from side to side",
        "An even {pitch} hum that swings to and fro",
    ),
    "pulsing": (
        "A {pitch} tone that gets louder and softer with the size",
        "A {pitch} hum that rises and fades with every pulse",
    ),
}
PITCH_WORDS = {"small": ("high", "shrill"), "medium": ("mid", "mid-range"), "large": ("low", "deep")}
PLAIN_WORDS = ("on a {top} background", "against a plain {top} backdrop", "in front of a {top} wall")
GRADIENT_WORDS = (
    "on a background that fades from {top} to {bottom}",
    "against a {top} to {bottom} gradient",
    "in front of a wall, {top} above and {bottom} below",
)
SECOND_WORDS = (
    "A {colour} {shape} stands still.",
    "Beside it a {colour} {shape} rests.",
    "A {colour} {shape} keeps still nearby.",
)
SHAPE_SENTENCES = (
    "{A_shape} {motion} {background}.{second}",
    "{Background}, {a_shape} {motion}.{second}",
    "There is {a_shape} {background}. It {motion}.{second}",
    "A short clip {background}:{second} {A_shape} {motion}.",
    "We see {a_shape}. It {motion} {background}.{second}",
)
PLAIN_SHAPE = "{size} {colour} {shape}"
SHAPE_ORDERS = (PLAIN_SHAPE, "{colour} {shape} of {size} size")

VOICE_WORDS = {
    "woman": ("woman", "lady"),
    "man": ("man", "gentleman"),
}
VOICE_PITCH = {"woman": ("high", "clear"), "man": ("low", "deep")}
SKIN_WORDS = {"pale": ("pale", "fair"), "tan": ("tan", "bronze"), "brown": ("brown", "dark")}
FACE_SENTENCES = (
    "The round face of a {voice} with {skin} skin speaks {background}.",
    "{Background}, a {voice} with {skin} skin looks at us and says {count} vowels.",
    "A face with {skin} skin {background}. The {voice} opens the mouth for {count} sounds.",
    "We see the face of a {voice}, {skin} of skin, {background}. The mouth opens {count} times.",
)
SPEAKERS = ("{Voice} with a {pitch} voice", "A {voice}, {pitch} voice")
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
JOINTS = (" ", ", ")

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*|[^\sa-z]")


def prompt(scene: Scene, rng: np.random.Generator, synonyms: bool = True) -> str:
    """One prompt of a scene, 20 to 45 words with its labels; without ``synonyms`` always the same plain one."""

    def choose(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))] if synonyms else options[0]

    return _face_prompt(scene, choose) if scene.kind == "face" else _shape_prompt(scene, choose)


def _shape_prompt(scene: Scene, choose: Choose) -> str:
    # The plain order of size, colour and shape is the usual one also among synonyms.
    order = choose((PLAIN_SHAPE, PLAIN_SHAPE, *SHAPE_ORDERS))
    shape = _with_article(
        order.format(
            size=choose(SIZE_WORDS[scene.size]),
            colour=choose(COLOUR_WORDS[scene.colour]),
            shape=choose(SHAPE_WORDS[scene.shape]),
        )
    )
    second = ""
    if scene.second is not None:
        colour, name = choose(COLOUR_WORDS[scene.second.colour]), choose(SHAPE_WORDS[scene.second.shape])
        second = " " + _mend_articles(choose(SECOND_WORDS).format(colour=colour, shape=name))
    background = _background(scene, choose)
    text = choose(SHAPE_SENTENCES).format(
        a_shape=shape,
        A_shape=_capital(shape),
        motion=choose(MOTION_WORDS[scene.motion]),
        background=background,
        Background=_capital(background),
        second=second,
    )
    heard = choose(SOUND_WORDS[scene.motion]).format(pitch=choose(PITCH_WORDS[scene.size]))
    return build_prompt(text, background_sound=heard)


def _face_prompt(scene: Scene, choose: Choose) -> str:
    speech = scene.speech
    voice = choose(VOICE_WORDS[speech.voice])
    background = _background(scene, choose)
    text = choose(FACE_SENTENCES).format(
        voice=voice,
        skin=choose(SKIN_WORDS[scene.colour]),
        count=COUNT_WORDS[len(speech.vowels)],
        background=background,
        Background=_capital(background),
    )
    pitch = choose(VOICE_PITCH[speech.voice])
    speaker = choose(SPEAKERS).format(voice=voice, Voice=_capital(voice), pitch=pitch)
    return build_prompt(text, [Line(speaker, "English", choose(JOINTS).join(speech.vowels))])


def _background(scene: Scene, choose: Choose) -> str:
    top, bottom = scene.background
    words = PLAIN_WORDS if top == bottom else GRADIENT_WORDS
    return choose(words).format(top=top, bottom=bottom)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _mend_articles(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def split(text: str) -> list[str]:
    """Words and signs of a text, in small letters, as ``vocabulary`` lists them."""
    return _WORD.findall(text.lower())


def vocabulary() -> tuple[str, ...]:
    """All words and signs that prompts are made of, sorted."""
    scaffold = build_prompt("a.", [Line("an, no", "English", "a")]) + build_prompt("x")
    found = {word for text in (*_texts(), scaffold) for word in split(re.sub(r"\{\w+\}", " ", text))}
    return tuple(sorted((found | {"e", "o"}) - {"x"}))


def _texts() -> Iterator[str]:
    """All strings of the grammar."""
    yield from BACKGROUNDS
    yield from COUNT_WORDS.values()
    named = (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, MOTION_WORDS, SOUND_WORDS, PITCH_WORDS)
    for table in (*named, VOICE_WORDS, VOICE_PITCH, SKIN_WORDS):
        for words in table.values():
            yield from words
    for words in (PLAIN_WORDS, GRADIENT_WORDS, SECOND_WORDS, SHAPE_SENTENCES, SHAPE_ORDERS, FACE_SENTENCES, SPEAKERS):
        yield from words
    yield from JOINTS
