"""``pip install .``: what it installs, and what the command says."""

import os
import shutil
import subprocess
import sys

import pytest
from test_layering import ROOT, tracked_files

LARGE = {"pony", "docs", "workflows"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an installation made from a copy of the project, without the network."""
    copy, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("installed")
    for path in tracked_files():
        place = path.relative_to(ROOT)
        if place.parts[0] not in LARGE and "golden" not in place.parts:
            (copy / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / place)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
        "--no-compile",
    ]
    answer = subprocess.run([*command, "--target", target, copy], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return target


def happyhorse(installed, *arguments, python=()):
    """Runs the installed command in another folder than the project's."""
    script = next(path for path in (installed / "bin").iterdir() if path.stem == "happyhorse")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *python, str(script), *arguments]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)


def test_the_core_is_installed_and_nothing_else(installed):
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*.py")}
    assert found == {path.relative_to(ROOT).as_posix() for path in (ROOT / "happyhorse_core").rglob("*.py")}
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"bin", "happyhorse_core", "happyhorse"}


def test_the_command_is_the_module(installed):
    answer = happyhorse(installed, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("usage: happyhorse [-h] COMMAND ...")
    module = subprocess.run(
        [sys.executable, "-m", "happyhorse_core", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert module.stdout.startswith("usage: python -m happyhorse_core [-h] COMMAND ...")
    assert answer.stdout.partition("\n")[2] == module.stdout.partition("\n")[2]


def test_a_missing_library_is_named_in_one_line(installed):
    # Without site-packages this Python has the standard library and what PYTHONPATH names.
    answer = happyhorse(installed, "--help", python=["-S"])
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr == (
        'error: this Python has no torch, which the command line needs: pip install ".[cli]" in the project\'s folder, '
        "or use the Python of ComfyUI.\n"
    )
