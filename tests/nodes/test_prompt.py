"""The prompt node: what it writes is the core's, empty lines are skipped, and lengths are told."""

import logging

import pytest
import tiny
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.prompt import LANGUAGES, Line, build_prompt

WORDS = "A young woman walks along the quiet river while evening light falls. " * 13


def write(description=WORDS, **fields):
    return pack.HappyHorsePrompt.execute(description=description, **fields)


def test_all_parts_in_the_format_of_the_core():
    fields = {}
    lines = []
    for number, language in enumerate(LANGUAGES[:4], start=1):
        line = Line(f"Person {number}", language, f"早上好 {number}")
        fields |= {f"speaker_{number}": line.speaker, f"language_{number}": language, f"words_{number}": line.words}
        lines.append(line)
    found = write(**fields, background_sound="Soft rain").args[0]
    assert found == build_prompt(WORDS, lines, "Soft rain")
    assert '<Person 3, English>: "早 上 好 3"' in found
    assert found.endswith("Background Sound:\n<Soft rain>")


def test_empty_lines_are_skipped_wherever_they_are():
    found = write(speaker_1=" ", words_1="\n", speaker_3="Old man", language_3="French", words_3="Bonjour.").args[0]
    assert found == build_prompt(WORDS, [Line("Old man", "French", "Bonjour.")])
    assert "Dialogue:" not in write().args[0]


@pytest.mark.parametrize("words", [13, 300])
def test_unusual_lengths_are_logged_and_shown(words, caplog):
    with caplog.at_level(logging.WARNING):
        shown = write("word " * words).ui.as_dict()["text"][0]
    assert f"found {words} words; the model was trained on 150 to 200" in shown
    assert shown in caplog.text


def test_a_good_length_is_shown_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert write().ui.as_dict()["text"] == ("description: 156 words.",)
    assert not caplog.records


def test_the_prompt_can_be_encoded():
    assert tiny.positive(write(speaker_1="Man", words_1="Hello.").args[0])[0][0].shape[1] > 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"description": " "}, "description: found nothing"),
        ({"speaker_2": "Man"}, "words_2: found nothing; fill in both"),
        ({"words_4": "Hello."}, "speaker_4: found nothing; fill in both"),
        ({"speaker_1": "a > b", "words_1": "Hello."}, "speaker_1: found angle brackets"),
        ({"speaker_1": "a", "words_1": "b", "language_1": "Latin"}, "language_1: found the text 'Latin', expected"),
        ({"background_sound": "a < b"}, "background_sound: found angle brackets"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        write(**fields)
