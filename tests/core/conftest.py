"""What several of the core's tests start from."""

from pathlib import Path

import pytest

from tools.make_tiny_checkpoints import write_stack


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny model of random weights in the released layout, one for each file of tests."""
    folder = tmp_path_factory.mktemp("models")
    write_stack(folder, "released", 0)
    return folder
