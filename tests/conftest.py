"""Set-up for all tests. Those under tests/nodes need ComfyUI's own Python and are run from test_in_comfyui.py."""

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Appended, never put first: the pack's folder `nodes` would hide ComfyUI's module of that name.
sys.path.append(str(ROOT))
sys.path.append(str(ROOT / "tests"))

from browser import NoBrowserError, NoFrontEndError, fetch_front_end, open_browser  # noqa: E402
from comfy_host import INSIDE, ComfyServer, ComfyUINotFoundError, find_comfyui  # noqa: E402

if not os.environ.get(INSIDE):
    collect_ignore = ["nodes"]


class PlainPackRoot:
    """Lets pytest pass through the pack's root without importing its __init__.py, which only works inside ComfyUI."""

    @staticmethod
    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config):
    config.pluginmanager.register(PlainPackRoot, "plain-pack-root")
    # A run that is told to end has to end the servers that it started, as one that is interrupted does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # In a shell's background SIGINT comes ignored and would stay so in the programs that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header():
    try:
        host = find_comfyui()
    except ComfyUINotFoundError as error:
        return f"ComfyUI: tests against it are skipped: {error}"
    return f"ComfyUI: {host.path}, run by {host.python}"


class NotHere(pytest.skip.Exception):
    """Skips a test for want of a program that it needs, a ComfyUI or a browser."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Gives all tests that were skipped for want of the same program one place, so that one line reports them."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, NotHere):
        report.longrepr = (__file__, None, f"Skipped: {call.excinfo.value}")
    return report


@pytest.fixture(scope="session")
def comfyui():
    """Where ComfyUI is and its Python; a test that asks for it is skipped where there is none."""
    try:
        return find_comfyui()
    except ComfyUINotFoundError as error:
        raise NotHere(str(error)) from None


@pytest.fixture(scope="session")
def comfy_server(comfyui, tmp_path_factory):
    """One ComfyUI server for all tests, with the tiny models of random weights in its model folders."""
    with tiny_server(comfyui, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(scope="module")
def newest_server(comfyui, tmp_path_factory):
    """Such a server with the newest editor; a test that asks for it is skipped where that can't be had."""
    try:
        front_end = fetch_front_end()
    except NoFrontEndError as error:
        raise NotHere(str(error)) from None
    arguments = ["--front-end-root", str(front_end)]
    with tiny_server(comfyui, tmp_path_factory.mktemp("comfyui_newest"), arguments) as server:
        yield server


def tiny_server(comfyui, base, arguments=()):
    from tools.make_tiny_checkpoints import write_stack

    write_stack(base / "models", "comfyui", 0)
    return ComfyServer(comfyui, base, arguments=arguments)


@pytest.fixture(scope="module")
def browser():
    """A Chromium that Playwright drives; a test that asks for it is skipped where there is none."""
    with ExitStack() as stack:
        try:
            chromium = stack.enter_context(open_browser())
        except NoBrowserError as error:
            raise NotHere(str(error)) from None
        yield chromium


SUMMARIES = pytest.StashKey[list]()


@pytest.fixture
def inside_summary(pytestconfig):
    """Closing lines of the pytest runs inside ComfyUI; they are shown at the end of this run."""
    return pytestconfig.stash.setdefault(SUMMARIES, [])


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(SUMMARIES, []):
        terminalreporter.write_line(f"tests/nodes, inside ComfyUI: {line}")
