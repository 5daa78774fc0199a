"""Our four-bit rounding against that of the library that ComfyUI computes with, to the bit."""

import pytest
import torch
from comfy_kitchen.backends.eager import quantization as kitchen
from happyhorse_pack.happyhorse_core.convert.rounding import largest, scale_for
from happyhorse_pack.happyhorse_core.weights import nvfp4

SHAPES = [(16, 16), (132, 168), (396, 64), (7, 5), (128, 64), (300, 1000)]


def weight(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Rows of every kind: usual ones, tiny ones, zeros of both signs, halves that go to the even neighbour."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(shape, generator=generator) * 0.02
    numbers[0, :3] = 0
    numbers[1] *= 1e-6
    numbers[2] *= 1e-9
    numbers[3] = -0.0
    numbers[4] = torch.randint(-24, 25, (shape[1],), generator=generator) / 256
    return numbers.to(dtype)


def ours(numbers: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    groups = list(nvfp4.quantise(numbers, scale))
    return torch.cat([group for group, _ in groups]), torch.cat([blocks for _, blocks in groups])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounded_as_the_library_rounds(shape, dtype):
    numbers = weight(shape, dtype)
    scale = scale_for(largest(numbers), nvfp4.LARGEST)
    packed, blocks = ours(numbers, scale)
    expected, expected_blocks = kitchen.quantize_nvfp4(numbers, torch.tensor(scale), pad_16x=True)
    assert torch.equal(packed, expected)
    assert torch.equal(blocks.view(torch.uint8), expected_blocks.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_read_as_the_library_reads(shape, dtype):
    """In bfloat16 too, since the tensor's scale is a power of two: nothing is rounded there."""
    numbers = weight(shape, torch.float32)
    scale = torch.tensor(scale_for(largest(numbers), nvfp4.LARGEST))
    packed, blocks = ours(numbers, float(scale))
    expected = kitchen.dequantize_nvfp4(packed, scale, blocks, dtype)
    assert torch.equal(nvfp4.dequantise(packed, blocks, scale, nvfp4.padded(shape)).to(dtype), expected)
    found = nvfp4.dequantise(packed, blocks, scale, shape)
    assert torch.equal(found.to(dtype), expected[: shape[0], : shape[1]])
