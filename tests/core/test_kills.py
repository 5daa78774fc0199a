"""Commands that are killed at random moments damage nothing: a small part of ``python -m tools.kills``."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

if os.name == "nt":
    pytest.skip("the tool forks", allow_module_level=True)

from tools.kills import OLDER, Killed, Run, digest, problems_of_killed

ROOT = Path(__file__).parents[2]


def test_killed_commands_leave_no_half_file_and_the_next_run_is_right() -> None:
    command = [sys.executable, "-m", "tools.kills", "--times", "5", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 defects in " in done.stdout


STOPPED = "Denoise\nstopped; nothing was written\n"
KILLED = Run(-signal.SIGKILL, "", 1.0)
CASES = {
    "nothing there": (KILLED, signal.SIGKILL, None, ["a"], ""),
    "a part is left": (KILLED, signal.SIGKILL, None, [".clip.mp4.01234567.part"], None),
    "a half file": (KILLED, signal.SIGKILL, b"half", [], "neither the older file nor the new one"),
    "the older file": (KILLED, signal.SIGKILL, OLDER, [], None),
    "the new file": (KILLED, signal.SIGKILL, b"whole", [], None),
    "stopped": (Run(143, STOPPED, 1.0), signal.SIGTERM, OLDER, [], None),
    "not stopped": (Run(1, STOPPED, 1.0), signal.SIGTERM, OLDER, [], "ended with 1"),
    "without a word": (Run(130, "", 1.0), signal.SIGINT, OLDER, [], "did not say"),
    "in many words": (Run(130, f"Traceback{STOPPED}", 1.0), signal.SIGINT, OLDER, [], "did not say"),
    "stopped with a part": (Run(130, STOPPED, 1.0), signal.SIGINT, OLDER, [".clip.mp4.01234567.part"], "left"),
    "done with the older file": (Run(0, "", 1.0), signal.SIGINT, OLDER, [], "neither"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_noticed(tmp_path: Path, case: str) -> None:
    run, number, content, left, said = CASES[case]
    target, right = tmp_path / "clip.mp4", tmp_path / "right.mp4"
    right.write_bytes(b"whole")
    if content is not None:
        target.write_bytes(content)
    command = Killed("generate", ".mp4", ((), ()), wanted=[digest(right)])
    problems = list(problems_of_killed(command, target, run, number, left, older=content is not None))
    if said is None:
        assert not problems
    else:
        assert said in " ".join(problems) and problems
