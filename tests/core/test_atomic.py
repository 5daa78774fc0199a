"""Files that are written whole: what a kill leaves is taken away by the next, and nobody takes another's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from happyhorse_core.atomic import abandoned, hold, part_of, written_whole
from happyhorse_core.media.video_file import Mp4Writer

KILLED = """
import os, signal, sys
from pathlib import Path
from happyhorse_core.atomic import written_whole
with written_whole(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files, locks or signals")


@POSIX
@pytest.mark.parametrize("name", ["clip.mp4", "clip [1].mp4", "c" * 251 + ".mp4", "馬" * 83 + ".mp4"])
def test_what_a_killed_process_left_is_gone_after_the_next(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with Mp4Writer(path, 32, 32) as writer:
        writer.add_frames(np.zeros((2, 32, 32, 3), np.uint8))
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_that_write_one_file_the_last_wins(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with written_whole(path) as first:
        first.write_bytes(b"first")
        with written_whole(path) as second:
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@POSIX
def test_a_file_that_is_gone_can_not_be_held(tmp_path: Path) -> None:
    with (tmp_path / "part").open("xb") as file:
        assert hold(file.fileno())
    with (tmp_path / "part").open("rb") as file:
        (tmp_path / "part").unlink()
        assert not hold(file.fileno())


@POSIX
def test_folders_and_links_stay_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    folder, link, pipe = (part_of(path) for _ in range(3))
    folder.mkdir()
    link.symlink_to(tmp_path / "other")
    os.mkfifo(pipe)
    (tmp_path / "other").write_bytes(b"kept")
    with written_whole(path) as part:
        part.write_bytes(b"whole")
    assert (tmp_path / "other").read_bytes() == b"kept"
    assert folder.is_dir() and link.is_symlink()


@POSIX
def test_what_is_held_is_not_abandoned(tmp_path: Path) -> None:
    with written_whole(tmp_path / "clip.mp4") as part:
        part.write_bytes(b"x")
        with pytest.raises(BlockingIOError), abandoned(part):
            raise AssertionError("taken from who writes it")
