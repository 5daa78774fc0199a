"""What the editor does to texts when it sends them."""

import datetime
import random

import pytest

from scripts.workflow_widgets import expand_choices, expand_date, expand_file_name


def test_prompts_lose_comments_and_choose():
    text = "a {red|{dark|light} blue} horse // running\n/* or\nnot */in \\{braces\\}"
    seen = {expand_choices(text, random.Random(seed)) for seed in range(40)}
    assert seen == {f"a {colour} horse \nin {{braces}}" for colour in ("red", "dark blue", "light blue")}


@pytest.mark.parametrize(
    ("value", "text"), [("a/b:c", "a_b_c"), (2.0, "2"), (2.5, "2.5"), (True, "true"), (None, ""), (3, "3")]
)
def test_values_in_file_names(value, text):
    assert expand_file_name("%N.w%", {("N", "w"): value}, datetime.datetime.now()) == text


def test_dates_in_file_names():
    moment = datetime.datetime(2026, 3, 4, 5, 6, 7)
    assert expand_date("yyyy-MM-dd hh-mm-ss", moment) == "2026-03-04 05-06-07"
    assert expand_date("yy M d h m s", moment) == "26 3 4 5 6 7"


@pytest.mark.parametrize("text", ["{open", "closed}", "a | b", "%", "50% and {", "\\n"])
def test_what_is_no_choice_stays(text):
    assert expand_choices(text, random.Random(0)) == text
