"""An error's text is one line that any terminal can show, whatever a file or a user put into it."""

import pickle

import pytest

from happyhorse_core.errors import LONGEST_MESSAGE, CheckpointError, HappyHorseError, InputError, OutputError, one_line


@pytest.mark.parametrize("kind", [HappyHorseError, InputError, CheckpointError, OutputError])
def test_what_does_not_print_is_written_out(kind):
    error = kind("tensor a\nb\x1b[31m\0\ud800\u202e: expected é, 早 and C:\\x")
    assert str(error) == "tensor a\\nb\\x1b[31m\\x00\\ud800\\u202e: expected é, 早 and C:\\x"
    str(error).encode()


def test_a_long_message_keeps_its_beginning_and_its_end():
    error = CheckpointError(f"x.json: found {'a' * 10**6}; expected a name.")
    assert len(str(error)) == LONGEST_MESSAGE
    assert str(error).startswith("x.json: found aaa")
    assert str(error).endswith("aaa; expected a name.")
    assert f" ... (of {len('x.json: found ; expected a name.') + 10**6:,} characters) ... " in str(error)


def test_a_message_stays_short_where_every_character_is_written_out():
    assert len(str(InputError("\U000e0001" * 10**6))) == LONGEST_MESSAGE


def test_short_messages_and_those_sent_to_another_process_stay_as_they_are():
    message = "x" * LONGEST_MESSAGE
    assert str(InputError(message)) == message
    error = CheckpointError("a\n" * 5000)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_value_can_be_shown_in_fewer_characters():
    assert one_line("abc" * 100, most=60) == "abcabcabcabcabca ... (of 300 characters) ... abcabcabcabcabc"
