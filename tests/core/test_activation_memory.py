"""What a forward pass of the released size holds at its peak, counted on the meta device, beside what we say of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peak_memory import PeakMemory
from torch import Tensor

from happyhorse_core.dit.detect import detect_transformer
from happyhorse_core.dit.layers import MLP_TOKENS, token_parts
from happyhorse_core.dit.memory import activation_bytes
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.ops import TorchOps

FULL_SIZE = Path(__file__).parents[1] / "golden" / "full_size_transformer.json"


class FlashOps(TorchOps):
    """Attention takes no memory but for its result, as the kernels of an accelerator do; meta tensors run none."""

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, options: object = None) -> Tensor:
        return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


def peak_of_two_layers(shape: tuple[int, int, int], dtype: torch.dtype, *, outer: bool) -> tuple[int, int]:
    """Peak bytes beside the weights, and the tokens, of a clip of (latent frames, height, width in latents)."""
    tensors = json.loads(FULL_SIZE.read_text())
    config = detect_transformer({name: tuple(size) for name, (_, size) in tensors.items()}, where="full")
    layers = {"mm_layers": (0, 1), "gelu7_layers": (0,)} if outer else {"mm_layers": (), "gelu7_layers": ()}
    config = replace(config, num_layers=2, **layers)
    model = HappyHorseTransformer(config, operations=FlashOps, dtype=dtype, device="meta")
    frames, height, width = shape
    sounds, words = 4 * (frames - 1) + 1, 300
    sizes = ((1, 48, *shape), (1, 64, sounds), (1, words, 3584))
    inputs = [torch.empty(size, device="meta") for size in sizes]
    with torch.inference_mode(), PeakMemory() as memory:
        model(*inputs, compute_dtype=dtype)
    return memory.peak, frames * height * width // 4 + sounds + words


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("shape", [(32, 16, 28), (32, 32, 56), (32, 68, 120), (150, 16, 28)])
def test_the_estimate_is_within_a_fifth(shape: tuple[int, int, int], outer: bool, dtype: torch.dtype) -> None:
    peak, tokens = peak_of_two_layers(shape, dtype, outer=outer)
    assert activation_bytes(tokens, 5120, dtype.itemsize) == pytest.approx(peak, rel=0.2)


def test_a_1080p_clip_takes_less_than_a_hundred_kilobytes_a_token() -> None:
    peak, tokens = peak_of_two_layers((32, 68, 120), torch.bfloat16, outer=False)
    assert tokens > MLP_TOKENS
    assert peak / tokens < 100_000


@pytest.mark.parametrize("lengths", [(10, 3, 2), (0, 5, 1), (1, 0, 0), (40, 1, 1)])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_cover_every_token_of_every_modality(lengths: tuple[int, ...], count: int) -> None:
    parts = token_parts(lengths, count)
    assert [i for tokens, _ in parts for i in range(tokens.start, tokens.stop)] == list(range(sum(lengths)))
    assert tuple(map(sum, zip(*(inside for _, inside in parts), strict=True))) == lengths
    assert all(sum(inside) == tokens.stop - tokens.start for tokens, inside in parts)
