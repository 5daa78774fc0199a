"""Runs cases side by side: each in a process forked from one that has loaded everything, watched and ended in time."""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context, util
from pathlib import Path

from . import child, commands, nodes, pictures, sounds, weights
from .case import Build
from .judge import Ended, Verdict, judge

POLL = 0.02
PAGE = os.sysconf("SC_PAGE_SIZE")

KINDS: dict[str, Build] = {
    "picture": pictures.build,
    "sound": sounds.build,
    "command": commands.build,
    **{name: weights.family(name) for name in weights.FAMILIES},
}
"""Kinds of cases of the command line."""
ALL = (*KINDS, nodes.KIND, nodes.KIND)
"""What a number stands for, in turn; the nodes have twice as many cases as any other kind."""
SERVERS: dict[Path, nodes.Nodes] = {}
"""The ComfyUI of this worker, once it has had a case of a node."""


@dataclass(frozen=True)
class Bounds:
    """Seconds and bytes that one case may take."""

    seconds: float = 60
    memory: int = 2 << 30


@dataclass(frozen=True)
class Attack:
    """One run: what is random about it, where its files lie, and which cases it has."""

    seed: int
    folder: Path
    kinds: tuple[str, ...] = ALL
    bounds: Bounds = Bounds()
    keep: bool = False

    def kind_of(self, number: int) -> str:
        return self.kinds[number % len(self.kinds)]

    def run(self, number: int) -> Verdict:
        """Runs one case; its files stay where it is a defect, or all are kept."""
        kind = self.kind_of(number)
        if kind == nodes.KIND:
            return self._server().run(self.seed, number)
        folder = self.folder / f"{number:05d}"
        folder.mkdir(parents=True)
        pid = fork(lambda: child.run(KINDS[kind], self.seed, number, folder), folder)
        verdict = judge(folder, kind, number, watched(pid, self.bounds), self.bounds.memory)
        if not (self.keep or verdict.defect):
            shutil.rmtree(folder)
        return verdict

    def _server(self) -> nodes.Nodes:
        base = self.folder / f"server-{os.getpid()}"
        if base not in SERVERS:
            SERVERS[base] = started = nodes.serve(base)
            util.Finalize(started, started.server.stop, exitpriority=1)
        return SERVERS[base]

    def run_all(self, numbers: Iterable[int], workers: int, told: Callable[[Verdict], None]) -> list[Verdict]:
        """Runs cases on so many workers and calls ``told`` with each verdict as it comes."""
        found = []
        # Processes, since a copy of a process with threads may wait for ever for a lock that another thread held.
        with get_context("fork").Pool(workers, end_on_terminate) as pool:
            for verdict in pool.imap_unordered(self.run, numbers):
                told(verdict)
                found.append(verdict)
            pool.close()
            pool.join()
        return found


def end_on_terminate() -> None:
    """Lets a worker that is told to end stop its server first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def fork(work: Callable[[], None], folder: Path) -> int:
    """Starts a copy of this process that does ``work`` and never returns; what goes wrong in it is written down."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        (folder / "harness").write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
        os._exit(70)


def watched(pid: int, bounds: Bounds) -> Ended:
    """Waits for a process and ends it, and what it started, where it takes more time or memory than it may."""
    start = time.monotonic()
    late = large = False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - start
        if done:
            end_group(pid)
            return Ended(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss << 10, late, large)
        late, large = seconds > bounds.seconds, resident(pid) > bounds.memory
        if late or large:
            end_group(pid)
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return Ended(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss << 10, late, large)
        time.sleep(POLL)


def end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def say(verdict: Verdict) -> None:
    if verdict.defect:
        print(f"{verdict.number:5d} {verdict.kind}: {verdict.what}: {verdict.verdict}: {verdict.detail}", flush=True)
    elif sys.stdout.isatty():
        print(f"{verdict.number:5d}", end="\r", flush=True)
