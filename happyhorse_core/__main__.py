"""The command ``happyhorse``, which is also ``python -m happyhorse_core``."""

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, a polite end and a closed terminal: all end a command alike, with 128 + the signal's number as status."""


def main() -> int:
    """Runs the command line; says in one line which library is missing where one is."""
    _on_stop(_leave)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal's encoding does not
    try:
        from .cli import main as run
    except ModuleNotFoundError as missing:
        library = (missing.name or "").partition(".")[0]
        if library in ("", "happyhorse_core"):
            raise
        way_out = 'pip install ".[cli]" in the project\'s folder, or use the Python of ComfyUI.'
        print(f"error: this Python has no {library}, which the command line needs: {way_out}", file=sys.stderr)
        return 1
    try:
        _on_stop(_stop)
        return run()
    except KeyboardInterrupt as stop:  # one more, while the first one was being told
        return 128 + int(*stop.args or (signal.SIGINT,))
    finally:
        _on_stop(signal.SIG_IGN)


def _on_stop(handler: Callable[[int, FrameType | None], NoReturn] | signal.Handlers) -> None:
    for number in STOPS:
        # What is ignored from the start stays so: ``nohup``, or a script that sends its commands to the background.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """While libraries are loaded, which takes seconds and can't be cut short from within: nothing is held yet."""
    os.write(2, b"stopped; nothing was written\n")
    os._exit(128 + number)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
