"""A converter that is killed at any moment leaves its source as it was and, under the final name, nothing or all.

One process loads the libraries and then forks the converters that are killed, so that ten of them take seconds.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from convert_helpers import checksums, wide_shapes, write_hollow_shards

ROOT = Path(__file__).parents[2]
KILLS = 10
PATIENCE = 60

FORKER = """
import os, signal, sys, time
from pathlib import Path
import torch
from happyhorse_core.convert.run import convert
torch.set_num_threads(1)
for moment in map(float, sys.stdin):
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        convert(*map(Path, sys.argv[1:]), dtype="fp8-scaled")
        os._exit(0)
    if moment:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], time.monotonic() - start, flush=True)
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the converters")


class Forker:
    """Starts converters of one source into one target, without waiting for libraries to load each time."""

    def __init__(self, source: Path, target: Path) -> None:
        command = [sys.executable, "-c", FORKER, str(source), str(target)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)

    def run(self, kill_after: float = 0.0) -> tuple[int, float]:
        """One converter, killed after so many seconds if any; its wait status and the seconds that it took."""
        self.process.stdin.write(f"{kill_after}\n")
        status, seconds = self.process.stdout.readline().split()
        return int(status), float(seconds)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    size = write_hollow_shards(tmp_path / "distill", wide_shapes(hidden=1024, layers=3), shards=4)
    assert size > 140_000_000
    return tmp_path / "distill"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "new.safetensors"


@pytest.fixture
def forker(source: Path, target: Path) -> Iterator[Forker]:
    forker = Forker(source, target)
    yield forker
    forker.process.stdin.close()
    forker.process.wait(PATIENCE)


def test_killed_at_ten_random_moments(source, target, forker):
    runs = []
    for _ in range(2):  # the first one is slower
        target.unlink(missing_ok=True)
        runs.append(forker.run())
    assert [status for status, _ in runs] == [0, 0]
    seconds = min(seconds for _, seconds in runs)
    whole, before = checksums(target), checksums(source)
    target.unlink()
    parts = 0
    for _ in range(KILLS):
        moment = random.uniform(0, seconds)
        forker.run(kill_after=moment)
        left = list(target.parent.glob(f".{target.name}.*.part"))
        parts += len(left)
        # A converter that was quicker this time has its file whole; one that was killed has none.
        assert not target.exists() or checksums(target) == whole, f"killed after {moment:.3f} of {seconds:.3f} s"
        assert len(left) <= 1, "the next one takes away what the last one left"
        assert set(target.parent.iterdir()) <= {target, *left}
        target.unlink(missing_ok=True)
    assert parts >= KILLS // 3, f"only {parts} of {KILLS} were killed while they wrote"
    assert checksums(source) == before
    assert forker.run()[0] == 0
    assert checksums(target) == whole
    assert list(target.parent.iterdir()) == [target], "what the killed ones left is gone"
