"""What the documents promise can be followed: links lead somewhere, and the commands are understood as they stand."""

import re
import shlex

import pytest
from test_layering import ROOT, tracked_files

from happyhorse_core.cli import build_parser

PAGES = sorted(path for path in tracked_files() if path.suffix == ".md")
MOST_WORDS = 900


def links(page):
    """(path, heading) of a page's links within the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target.partition("#")[::2] for target in targets if "://" not in target]


def headings(page):
    """The names that headings have in links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands(page):
    """Arguments of each ``happyhorse`` command in the code blocks of a page."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("happyhorse ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    lost = []
    for path, heading in links(page):
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            lost.append(f"{path}#{heading}")
    assert not lost


@pytest.mark.parametrize("name", ["README.md", "docs/command-line.md", "docs/files.md"])
def test_commands_are_understood(name):
    found = commands(ROOT / name)
    assert found
    for arguments in found:
        build_parser().parse_args(arguments)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_what_is_lost_would_be_seen(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# Two words!\n[a](a.md#two-words) [b](https://x.y/z) [c](c.md)\n```\nhappyhorse x\n```\n")
    assert links(page) == [("a.md", "two-words"), ("c.md", "")]
    assert headings(page) == {"two-words"}
    assert commands(page) == [["x"]]
