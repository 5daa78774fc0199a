"""The maker of hostile files: a case is told by its number, and its pickles would do what they are there to try."""

import pickle
import stat
from pathlib import Path

import pytest

from tools.mutate import KINDS, MARK, PART_OF, make
from tools.mutate_pickles import GADGETS

HARMLESS = {"class", "state", "load", "hub", "rename"}
"""They fetch what a program has no business with, or need more than a mark to show it."""


def contents(folder: Path) -> dict[str, object]:
    """Each file's bytes, or what else stands in its place."""
    found: dict[str, object] = {}
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        plain = stat.S_ISREG(mode) and path.stat().st_size < 1 << 30
        found[path.name] = path.read_bytes() if plain else path.readlink() if path.is_symlink() else stat.S_IFMT(mode)
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("pickle-runs")])
def test_a_kind_and_a_seed_tell_the_case(tmp_path: Path, kind: str) -> None:
    made = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        folder = tmp_path / name
        folder.mkdir()
        path = make(kind, seed, folder)
        made.append((path.relative_to(folder), contents(folder)))
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert PART_OF[kind] in ("transformer", "text_encoder", "video_decoder")


@pytest.mark.parametrize("name", sorted(GADGETS.keys() - HARMLESS))
def test_a_pickle_that_is_run_leaves_its_mark(tmp_path: Path, name: str) -> None:
    result = pickle.loads(pickle.dumps(GADGETS[name](tmp_path / MARK)))
    if name == "popen":
        result.wait()
    assert (tmp_path / MARK).exists()
