"""Set-up for all tests. Those under tests/nodes need ComfyUI's own Python and are run from test_in_comfyui.py."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Appended, never put first: the pack's folder `nodes` would hide ComfyUI's module of that name.
sys.path.append(str(ROOT))


class PlainPackRoot:
    """Lets pytest pass through the pack's root without importing its __init__.py, which only works inside ComfyUI."""

    @staticmethod
    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config):
    config.pluginmanager.register(PlainPackRoot, "plain-pack-root")
