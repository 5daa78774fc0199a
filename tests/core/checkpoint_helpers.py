"""Small checkpoints, and what to ask of a source that was opened on one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from happyhorse_core.errors import CheckpointError
from happyhorse_core.weights.source import TensorSource, open_source


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "front.weight": torch.randn(7, 3, generator=generator),
        "front.bias": torch.randn(7, generator=generator).to(torch.bfloat16),
        "back.weight": torch.randn(5, 7, generator=generator).to(torch.float16),
        "steps": torch.tensor(12, dtype=torch.int64),
        "nothing": torch.empty(0, 4),
    }


def assert_same(source: TensorSource, expected: dict[str, Tensor]) -> None:
    assert set(source.names) == set(expected)
    for name, tensor in expected.items():
        found = source.read(name)
        assert source.shapes[name] == tuple(tensor.shape) == tuple(found.shape)
        assert source.dtypes[name] == tensor.dtype == found.dtype
        assert torch.equal(found, tensor), name


def assert_refused(path: Path, *parts: str) -> None:
    """Opening fails with an error that names the file and says each of ``parts``."""
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)
