"""Kills ``convert`` and ``generate`` at random moments: ``python -m tools.kills --times 100``.

Each is killed so many times, by SIGKILL, SIGTERM and SIGINT, at any moment from its first look at its arguments to its
end; every second time an older file stands under the name that it writes. Then two at a time write one file, and in
every second such case one of them is killed. Wanted after each: under the final name the older file or the whole new
one, the models' bytes as they were, nothing left beside it but after SIGKILL, and a next run that gives the right bytes
and leaves nothing at all. Ends with 1 where that doesn't hold.

The libraries are loaded once, and each command is a fork of this process, so that a hundred take minutes; what
a signal does while they load is for the tests of the command line. ``--seed`` decides signals and moments, as parts of
the time that the undisturbed run before took. POSIX only.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch

from happyhorse_core import __main__, cli  # noqa: F401  # the command's libraries are loaded before the forks

from .make_tiny_checkpoints import write_stack
from .setup_venv import ROOT

HANGS = 60
SIGNALS = (signal.SIGKILL,) * 3 + (signal.SIGTERM, signal.SIGINT)
OLDER = b"what stood there before"


@dataclass(frozen=True)
class Run:
    """How a command ended: its status, negative for a signal; what it wrote to its terminal; and its seconds."""

    status: int
    told: str
    seconds: float


@dataclass
class Killed:
    """A command, what it makes in each of its variants, and how long it takes."""

    name: str
    suffix: str
    options: tuple[tuple[str, ...], tuple[str, ...]]
    """Arguments of two variants whose results differ; ``{}`` stands for the file to write."""
    wanted: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def arguments(self, target: Path, variant: int = 0) -> list[str]:
        return [self.name, *(word.replace("{}", str(target)) for word in self.options[variant])]


class Kills:
    """Runs commands on models in a folder, and keeps count of what came of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.models, self.outputs, self.log, self.seed = folder / "models", folder / "out", folder / "log", seed
        self.outputs.mkdir()
        write_stack(self.models, "released", 0)
        shutil.copytree(ROOT / "pony" / "distill", self.models / "pony")  # takes longer to convert
        self.before = digest(self.models)
        self.counts: Counter[str] = Counter()
        self.defects: list[str] = []

    def commands(self) -> tuple[Killed, Killed]:
        """The two commands, with the right results of undisturbed runs."""
        source = ("--models", str(self.models), "--prompt", "A horse.", "--size", "96x96", "--seconds", "0.6")
        convert, clip = (
            (str(self.models / "pony"), "{}", "--role", "distilled", "--force", "--dtype"),
            (*source, "--output", "{}", "--seed"),
        )
        found = (
            Killed("convert", ".safetensors", ((*convert, "fp8-scaled"), (*convert, "bf16"))),
            Killed("generate", ".mp4", ((*clip, "1"), (*clip, "2"))),
        )
        for command in found:
            target = self.outputs / f"right{command.suffix}"
            for variant in (0, 1, 0):
                run = self.end_of(self.start(command.arguments(target, variant)))
                if run.status:
                    raise SystemExit(f"{command.name} can't be run at all:\n{run.told}")
                command.wanted.append(digest(target))
                command.seconds = run.seconds
            if command.wanted[0] != command.wanted[2] or command.wanted[0] == command.wanted[1]:
                self.defects.append(f"{command.name}: equal settings gave other bytes, or other settings equal ones")
            target.unlink()
        return found

    def start(self, arguments: list[str]) -> int:
        """A fork that runs the command; its process id. What it tells goes to a file of that name."""
        signal.pthread_sigmask(signal.SIG_BLOCK, __main__.STOPS)  # in the fork, until it minds them as a command does
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, __main__.STOPS)
        else:
            _be_command(arguments, Path(f"{self.log}{os.getpid()}"))
        return child

    def end_of(self, child: int, kill_after: float | None = None, number: int = signal.SIGKILL) -> Run:
        """Waits for a command, which is sent a signal after so many seconds."""
        begun = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, number)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() - begun > HANGS:
                os.kill(child, signal.SIGKILL)
                self.defects.append(f"process {child} did not end in {HANGS} s")
            time.sleep(0.002)
        log = Path(f"{self.log}{child}")
        told = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        return Run(os.waitstatus_to_exitcode(ended[1]), told, time.monotonic() - begun)

    def kill_one(self, command: Killed, case: int) -> None:
        """One killed run, and the next."""
        rng = random.Random(f"{self.seed} {command.name} {case}")
        number, moment, older = rng.choice(SIGNALS), rng.random() * command.seconds, case % 2 == 1
        name = f"{command.name} {case} ({signal.Signals(number).name} after {moment:.3f} s)"
        target = self.outputs / f"{case}{command.suffix}"
        if older:
            target.write_bytes(OLDER)
        run = self.end_of(self.start(command.arguments(target)), moment, number)
        left = [path.name for path in self.outputs.iterdir() if path != target]
        for problem in problems_of_killed(command, target, run, number, left, older):
            self.defects.append(f"{name}: {problem}\n    {_last(run)}")
        ended = "done before" if run.status == 0 else "left a file" if left else "left nothing"
        self.counts[f"{command.name}, {signal.Signals(number).name}: {ended}"] += 1
        self.check_next(command, target, name)

    def check_next(self, command: Killed, target: Path, name: str) -> None:
        """The next run of the same output: right, and with nothing beside it. The models are as they were."""
        run = self.end_of(self.start(command.arguments(target)))
        command.seconds = run.seconds  # how busy the machine is changes, and the next one is killed by this
        left = [path.name for path in self.outputs.iterdir() if path != target]
        if run.status or digest(target) != command.wanted[0] or left:
            self.defects.append(f"{name}: the next run ended with {run.status} and left {left}\n    {_last(run)}")
        if digest(self.models) != self.before:
            self.defects.append(f"{name}: the models were changed")
        for path in self.outputs.iterdir():
            path.unlink()

    def rivals(self, command: Killed, case: int) -> None:
        """Two runs that write one file at once; in every second case one of them is killed."""
        rng = random.Random(f"{self.seed} two {command.name} {case}")
        target = self.outputs / f"two{case}{command.suffix}"
        name, kills = f"two of {command.name} {case}", case % 2 == 1
        first = self.start(command.arguments(target, 0))
        time.sleep(rng.uniform(0, 0.5) * command.seconds)
        second = self.start(command.arguments(target, 1))
        victim = self.end_of(first, rng.uniform(0, 1) * command.seconds if kills else None)
        other = self.end_of(second)
        self.counts[f"{name.rpartition(' ')[0]}: {'one killed' if kills else 'both end'}"] += 1
        if other.status or victim.status not in ((0, -signal.SIGKILL) if kills else (0,)):
            self.defects.append(
                f"{name}: ended with {victim.status} and {other.status}\n    {_last(victim)}\n    {_last(other)}"
            )
        right = command.wanted[1:2] if victim.status else command.wanted
        if not target.exists() or digest(target) not in right:
            self.defects.append(
                f"{name}: found neither's file under the final name, or that of the one that was killed"
            )
        self.check_next(command, target, name)


def problems_of_killed(
    command: Killed, target: Path, run: Run, number: int, left: list[str], older: bool
) -> Iterator[str]:
    """What is wrong after a run that was killed."""
    politely = number != signal.SIGKILL
    if run.status not in (0, 128 + number if politely else -number):
        yield f"ended with {run.status}"
    if "Traceback" in run.told or (run.status and politely and "stopped; nothing was written" not in run.told):
        yield "did not say in one line that it was stopped"
    if left and (politely or not all(fnmatchcase(name, f".{target.name}.????????.part") for name in left)):
        yield f"left {left}"
    found = digest(target) if target.exists() else None
    before = hashlib.sha256(OLDER).hexdigest() if older else None
    if found != command.wanted[0] and (run.status == 0 or found != before):
        yield "what stands under the final name is neither the older file nor the new one"


def _last(run: Run) -> str:
    """What it told last, or all of a traceback."""
    return run.told if "Traceback" in run.told else run.told.rstrip().rpartition("\n")[2]


def _be_command(arguments: list[str], log: Path) -> NoReturn:
    """In the fork: runs the command as a process of its own would, and ends."""
    status = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = ["happyhorse", *arguments]
        __main__._on_stop(__main__._leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, __main__.STOPS)
        status = __main__.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  # whatever it is, it is told as Python would, and no fork goes on from here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def digest(path: Path) -> str:
    """The checksum of a file, or of all files in a folder with their names."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode() if path.is_dir() else b"")
            found.update(file.read_bytes())
    return found.hexdigest()


def main() -> int:
    """Runs all cases and prints what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.kills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=100, help="kills of each command; default 100")
    parser.add_argument("--seed", type=int, default=0, help="decides signals and moments; default 0")
    args = parser.parse_args()
    begun = time.monotonic()
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    with TemporaryDirectory(prefix="kills-") as folder:
        kills = Kills(Path(folder), args.seed)
        for command in kills.commands():
            print(f"{command.name}: {command.seconds:.2f} s undisturbed", flush=True)
            for case in range(args.times):
                kills.kill_one(command, case)
            for case in range(-(-args.times // 5)):
                kills.rivals(command, case)
    for what, count in sorted(kills.counts.items()):
        print(f"{count:4} {what}")
    print("\n".join(kills.defects))
    print(f"{len(kills.defects)} defects in {time.monotonic() - begun:.0f} s, seed {args.seed}")
    return 1 if kills.defects else 0


if __name__ == "__main__":
    sys.exit(main())
