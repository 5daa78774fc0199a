"""The reader of all JSON from outside: what is no plain bounded object ends in one error that says why."""

import json
import os
from pathlib import Path

import pytest

from happyhorse_core.errors import CheckpointError
from happyhorse_core.weights import json_file
from happyhorse_core.weights.json_file import INDEX_BYTES, is_whole, parse_object, read_object, shown

GOOD = '{"a": [1, -2.5e3, true, null, "\\u00e9"], "b": {"a": 9223372036854775807}}'


@pytest.mark.parametrize("text", [GOOD, GOOD.encode(), f" {GOOD}\n"])
def test_an_object_is_what_python_reads(text: str | bytes) -> None:
    assert parse_object(text, "x") == json.loads(GOOD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file"),
        ("{", "no valid JSON (Expecting property name"),
        (b'{"a": "\xff"}', "byte 7 is no UTF-8"),
        (b"\xff\xfe{\x00}\x00", "byte 0 is no UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "'1e999' is larger than 64 bits hold"),
        ('{"a": 9223372036854775808}', "'9223372036854775808' is larger"),
        (f'{{"a": {"1" * 100_000}}}', "111' is larger than 64 bits hold"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' stands twice in one object"),
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", "nested more than 64 levels deep"),
        ('{"a": ' * 100_000, "nested more than 64 levels deep"),
        ("[1, 2]", "found a list of 2; expected a JSON object"),
        ('"\\ud800\\n"', "found '\\ud800\\n'; expected a JSON object"),
        ("3", "found 3; expected a JSON object"),
        ("version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_what_is_no_bounded_object_is_refused_in_one_line(text: str | bytes, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_object(text, "x.json")
    assert str(caught.value).startswith("x.json: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_as_many_levels_as_are_allowed_are_read() -> None:
    assert parse_object('{"a": ' + "[" * 63 + "]" * 63 + "}", "x")


def in_place_of(path: Path, what: str) -> Path:
    """Puts what is no file of a sane size where a file is expected."""
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.symlink_to(what)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("pipe", "a device or a pipe"),
        ("/dev/zero", "a device or a pipe"),
        ("folder", "can't be read"),
        ("huge", "found more than 67,108,864 bytes"),
        ("gone", "a link to gone, which does not exist"),
        ("x.json", "can't be read: Too many levels"),
    ],
)
def test_only_regular_files_of_their_size_are_read(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_object(in_place_of(tmp_path / "x.json", what), INDEX_BYTES)
    assert said in str(caught.value)
    assert str(tmp_path / "x.json") in str(caught.value)


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text(GOOD, encoding="utf-8")
    assert read_object(in_place_of(tmp_path / "x.json", "kept.json"), len(GOOD)) == json.loads(GOOD)
    with pytest.raises(CheckpointError, match=f"found more than {len(GOOD) - 1} bytes"):
        read_object(tmp_path / "x.json", len(GOOD) - 1)


def test_whole_numbers_are_told_from_what_compares_like_them() -> None:
    assert [value for value in (0, 1, 3, 4, True, 2.0, "2", None) if is_whole(value, 1, 3)] == [1, 3]


def test_values_are_shown_in_few_characters() -> None:
    assert [shown(value) for value in ([1], {"a": 1, "b": 2}, 1.5, None)] == [
        "a list of 1",
        "an object of 2",
        "1.5",
        "None",
    ]
    assert len(shown("\x1b" * 10**6)) == 100


def test_no_other_place_reads_json() -> None:
    core = Path(json_file.__file__).parents[1]
    found = [path.name for path in core.rglob("*.py") if "json.load" in path.read_text(encoding="utf-8")]
    assert found == ["json_file.py"]
