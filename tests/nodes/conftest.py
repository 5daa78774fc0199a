"""Tests in here run inside ComfyUI's own Python and import its modules; ``test_in_comfyui.py`` starts them."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from comfy_host import INSIDE, enter_comfyui, find_comfyui, import_pack

if os.environ.get(INSIDE):
    MODELS = Path(tempfile.mkdtemp(prefix="happyhorse-tests-"))
    atexit.register(shutil.rmtree, MODELS, ignore_errors=True)
    enter_comfyui(find_comfyui(), MODELS)
    sys.path.append(str(Path(__file__).parent))
    PACK = import_pack()

    import torch

    from tools.make_tiny_checkpoints import write_stack

    write_stack(MODELS / "models", "comfyui", 0)


@pytest.fixture
def dynamic_memory(monkeypatch):
    """Files as the host opens them where it has dynamic memory, on a CPU too."""
    import comfy.memory_management
    import comfy_aimdo.control

    comfy_aimdo.control.init()
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    """Node code runs in inference mode in ComfyUI; some of its own code fails outside it."""
    with torch.inference_mode():
        yield
