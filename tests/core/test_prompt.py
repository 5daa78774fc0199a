"""The prompt format, also on random texts."""

import random

import pytest

from happyhorse_core.errors import InputError
from happyhorse_core.prompt import LANGUAGES, Line, build_prompt, count_words, length_warning, space_characters

ALPHABET = [*"中文字々かなカナー한글ㅋ𠀀", *"abzÄ9 ,.\"'<>", "，", "。", "！", " ", "\n", "\u3000"]
CJK = set("中文字々かなカナー한글ㅋ𠀀")


def random_texts(count: int = 2000) -> list[str]:
    draw = random.Random(5)
    return ["".join(draw.choices(ALPHABET, k=draw.randrange(30))) for _ in range(count)]


def test_the_whole_format() -> None:
    found = build_prompt(
        'A man in a yellow shirt says, "有的人".',
        [
            Line("Young man in yellow shirt", "Mandarin", "有的人，还带着。"),
            Line("<Woman>", "German", '"Na, "gut" so?"'),
        ],
        "A sudden screech",
    )
    assert found == (
        'A man in a yellow shirt says, "有 的 人".\n\n'
        'Dialogue:\n<Young man in yellow shirt, Mandarin>: "有 的 人，还 带 着。"\n'
        "<Woman, German>: \"Na, 'gut' so?\"\n\n"
        "Background Sound:\n<A sudden screech>"
    )


def test_without_dialogue_or_sound() -> None:
    assert build_prompt("Rain.") == "Rain.\n\nBackground Sound:\n<No prominent background sound>"


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("你好", "你 好"),
        ("你  好", "你 好"),
        ("你 好", "你 好"),
        ("一辈子，还", "一 辈 子，还"),
        ("ラーメン", "ラ ー メ ン"),
        ("나비 번", "나 비 번"),
        ("我用ComfyUI 3次", "我 用 ComfyUI 3 次"),
        ("plain words, 3 of them", "plain words, 3 of them"),
        ("Grüße à bientôt", "Grüße à bientôt"),
    ],
)
def test_spacing(text: str, spaced: str) -> None:
    assert space_characters(text) == spaced


def test_spacing_twice_is_spacing_once_and_only_adds_or_joins_space() -> None:
    for text in random_texts():
        spaced = space_characters(text)
        assert space_characters(spaced) == spaced
        assert "".join(spaced.split()) == "".join(text.split())
        for left, right in zip(spaced, spaced[1:], strict=False):
            assert not (left in CJK and right in CJK)
        if not CJK & set(text):
            assert spaced == text


def test_counting_does_not_depend_on_spacing() -> None:
    assert count_words("A man, in yellow - says: 你好。") == 7
    assert count_words("don't stop 3.5 times") == 4
    for text in random_texts():
        assert count_words(space_characters(text)) == count_words(text)


@pytest.mark.parametrize(("words", "warned"), [(0, True), (149, True), (150, False), (200, False), (201, True)])
def test_length_warning(words: int, warned: bool) -> None:
    found = length_warning("word " * words)
    assert (found is not None) == warned
    assert found is None or str(words) in found


def test_lines_without_speaker_and_words_are_left_out() -> None:
    empty, line = Line(" ", "Korean", "\n"), Line("a", "English", "b")
    assert build_prompt("x", [empty, line, empty, empty]) == build_prompt("x", [line])
    assert build_prompt("x", [empty]) == build_prompt("x")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_its_line(language: str) -> None:
    assert f'<Someone, {language}>: "ja"' in build_prompt("x", [Line("Someone", language, "ja")])


def test_the_structure_survives_any_words() -> None:
    for text in random_texts(500):
        if not text.strip().strip('"').strip():
            continue
        prompt = build_prompt("Someone speaks.", [Line("Someone", "English", f"a{text}b")])
        line = prompt.split("\n\n")[1].removeprefix('Dialogue:\n<Someone, English>: "')
        assert "\n" not in line
        assert line.endswith('"')
        assert line.count('"') == 1


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("  ",), "description"),
        (("x", [Line("a", "English", "b")] * 5), "at most 4"),
        (("x", [Line("a", "English", "b"), Line(" ", "English", "b")]), "speaker_2: found nothing"),
        (("x", [Line("a", "English", '""')]), "words_1: found nothing"),
        (("x", [Line("a", "Klingon", "b")]), "language_1: found"),
        (("x", [Line("a > b", "English", "b")]), "speaker_1: found angle"),
        (("x", [Line("", "English", " "), Line("a", "English", " ")]), "words_2: found nothing"),
        (("x", [], "loud > quiet"), "background_sound"),
    ],
)
def test_bad_fields_are_named(parts: tuple, named: str) -> None:
    with pytest.raises(InputError, match=named):
        build_prompt(*parts)
