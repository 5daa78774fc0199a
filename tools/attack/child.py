"""The process of one case: makes the files, runs the command line on them, and looks at what it wrote."""

import hashlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from happyhorse_core.cli import main

from .case import Build, Case, numbered
from .results import wrong_result

LARGEST = 1 << 26
"""Files above are not compared byte by byte."""
ADDRESS_SPACE = 24 << 30
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "socket.connect")
"""Events of Python that no input may cause; ``os.fork`` is the case itself."""


Command = Callable[[Sequence[str]], int]


def run(build: Build, seed: int, number: int, folder: Path, command: Command = main) -> None:
    """Runs the case in this process, which ends with the command's status; what is to be judged lies in ``folder``.

    ``case.json`` has what was asked, ``end.json`` what came out, ``out`` and ``err`` what was printed.
    """
    os.setsid()
    work = folder / "work"
    work.mkdir()
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.chdir(work)
    case = build(numbered(seed, number), Path())
    note = {"what": case.what, "arguments": case.arguments, "files": contents(work)}
    (folder / "case.json").write_text(json.dumps(note), encoding="utf-8")
    _redirect(folder)
    _watch(folder / "started")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _finish(case, folder, command)


def _finish(case: Case, folder: Path, command: Command) -> None:
    status: int | str | None = 1
    try:
        status = command(case.arguments)
    except SystemExit as end:
        status = end.code
    finally:
        wrong = ""
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        elif status == 0:
            wrong = wrong_result(case)
        (folder / "end.json").write_text(json.dumps({"status": status, "wrong": wrong}), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _redirect(folder: Path) -> None:
    for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(folder / name, flags), number)
    # As Python opens them; whoever started this may have put others there.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _watch(note: Path) -> None:
    """Writes down whatever the input makes this process start."""
    handle = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple) -> None:
        if event in STARTS:
            os.write(handle, f"{event} {arguments!r}\n".encode(errors="replace"))

    sys.addaudithook(hook)


def contents(folder: Path) -> dict[str, str]:
    """Each file below a folder, with what tells whether it was changed; links and special files by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = ascii(str(path.relative_to(folder)))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file() and path.stat().st_size <= LARGEST:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            found[name] = f"mode {path.lstat().st_mode}, {path.lstat().st_size} bytes"
    return found
