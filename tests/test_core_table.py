"""docs/compatibility.md says of each of core's nodes that takes a MODEL what the server now makes of it."""

import pytest

from tools import core_table
from tools.core_nodes import Trial, sections_of, serve

SLOW = {"TorchCompileModel", "TrainLoraNode"}
"""Left out here: tests/nodes/test_compile.py has the first."""
PAGE = core_table.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trial(comfyui, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("core_nodes")) as server:
        yield Trial(server)


def test_the_page_names_the_nodes_of_its_release(trial):
    version = trial.server.get("/system_stats")["system"]["comfyui_version"]
    if version != core_table.version_of(PAGE):
        pytest.skip(f"ComfyUI is {version}, the page is of {core_table.version_of(PAGE)}")
    assert set(trial.nodes) == set(core_table.rows_of(PAGE))


def test_nodes_that_take_a_model_do_what_the_page_says(trial):
    told = core_table.rows_of(PAGE)
    sections = sections_of(trial.nodes)
    found = {title: trial.of(title) for title in sorted(told) if sections.get(title) == "MODEL" and title not in SLOW}
    assert len(found) > 40
    differ = {title: (told[title], one) for title, one in found.items() if one.row != told[title]}
    assert not differ
    assert not [title for title, one in found.items() if one.row == core_table.RAW], "none ends in an error of the host"


def test_tables_are_read_as_they_were_written():
    found = {
        "A": core_table.Found(core_table.CHANGES),
        "B C": core_table.Found(core_table.RAW, "no such thing", core_table.CHANGES),
        "D": core_table.Found(core_table.REFUSED, "model: found a D, expected none. Take it away."),
    }
    made = core_table.tables(found, {"A": "MODEL", "B C": "LATENT", "D": "MODEL"}, "0.1.2")
    page = core_table.written(f"before\n{core_table.BEGIN}\nold\n{core_table.END}\nafter\n", made)
    assert core_table.rows_of(page) == {"A": "changes", "B C": "alone", "D": "refused"}
    assert core_table.version_of(page) == "0.1.2"
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "- D: *model: found a D, expected none*" in page
