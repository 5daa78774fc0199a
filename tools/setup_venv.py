"""Makes the virtual environment that the commands of the Makefile run in: python3 tools/setup_venv.py [DIR].

Only the standard library is used, since nothing is installed yet. A stamp inside the environment holds what it was
made from, so that a second call returns at once, and a lock lets two commands that start together share one set-up.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements-dev.txt"
OLDEST_PYTHON = (3, 10)


def main(arguments: list) -> int:
    if sys.version_info < OLDEST_PYTHON:
        return fail(f"Python {sys.version.split()[0]} at {sys.executable} is too old: 3.10 or newer is needed.")
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        version = "{}.{}".format(*sys.version_info)
        return fail(
            f"This Python ({sys.executable}) can't make virtual environments. Install the missing part, on Debian and "
            f"Ubuntu: apt install python{version}-venv; elsewhere a Python that has the modules venv and ensurepip."
        )
    environment = ROOT / (arguments[0] if arguments else ".venv")
    with only_one_at_a_time():
        return set_up(environment)


def set_up(environment: Path) -> int:
    stamp = environment / "made-from.txt"
    wanted = description()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return 0
    if version_of(environment) != sys.version_info[:2]:
        say(f"Making {environment.name} with Python {sys.version.split()[0]}.")
        if run(sys.executable, "-m", "venv", "--clear", str(environment)):
            return fail(f"The environment {environment} could not be made; the lines above say why.")
    say(f"Installing {REQUIREMENTS.name} into {environment.name}; the first time this takes some minutes.")
    quiet = [] if sys.stdout.isatty() else ["--quiet", "--quiet"]
    pip = [str(python_of(environment)), "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    if run(*pip, "--requirement", str(REQUIREMENTS)):
        return fail("pip could not install the requirements; the lines above say why. Run the command again to go on.")
    stamp.write_text(wanted, encoding="utf-8")
    return 0


def description() -> str:
    """What an environment that is up to date was made from."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return f"{REQUIREMENTS.name} {digest}, Python {sys.version_info[0]}.{sys.version_info[1]}\n"


def python_of(environment: Path) -> Path:
    windows = environment / "Scripts" / "python.exe"
    return windows if windows.exists() else environment / "bin" / "python"


def version_of(environment: Path) -> "tuple[int, int] | None":
    """(major, minor) of the Python in ``environment``; None where there is none that runs and has pip."""
    python = python_of(environment)
    if not python.exists():
        return None
    code = "import sys, pip; print(*sys.version_info[:2])"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode:
        return None
    major, minor = answer.stdout.split()
    return int(major), int(minor)


@contextmanager
def only_one_at_a_time() -> "Iterator[None]":
    """Holds a lock file; where the system has no such locks (Windows), two set-ups at once are the user's to avoid."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    with (folder / "setup.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str) -> int:
    return subprocess.run(command, check=False).returncode


def say(text: str) -> None:
    print(text, flush=True)


def fail(text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
