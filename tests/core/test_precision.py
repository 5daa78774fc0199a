"""The precision that a device gets unless another is asked for."""

from time import perf_counter

import pytest
import torch

from happyhorse_core.cli import _machine, build_parser
from happyhorse_core.precision import usual_dtype

CPU = torch.device("cpu")


def seconds(dtype: torch.dtype) -> float:
    """Of a product on this processor, the best of several."""
    x, times = torch.randn(384, 384).to(dtype), []
    for _ in range(6):
        start = perf_counter()
        x @ x
        times.append(perf_counter() - start)
    return min(times)


def test_no_processor_gets_a_precision_that_it_is_slow_in() -> None:
    """On one without bfloat16 the other choice takes about ten times as long."""
    other = torch.float32 if usual_dtype(CPU) is torch.bfloat16 else torch.bfloat16
    assert seconds(usual_dtype(CPU)) < 4 * seconds(other)


def test_accelerators_compute_as_the_released_pipeline_does() -> None:
    assert usual_dtype(torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "expected"),
    [((), usual_dtype(CPU)), (("--dtype", "bf16"), torch.bfloat16), (("--dtype", "float32"), torch.float32)],
)
def test_the_command_line_takes_it_unless_told_otherwise(asked: tuple[str, ...], expected: torch.dtype) -> None:
    command = ["generate", "--models", "models", "--prompt", "A horse.", "--output", "clip.mp4", "--device", "cpu"]
    assert _machine(build_parser().parse_args([*command, *asked])).dtype is expected
