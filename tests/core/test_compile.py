"""How often ``torch.compile`` compiles the transformer: once a size, whatever the step, the noise and the prompt."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch import Tensor

from benchmarks.stages import Size, filled
from happyhorse_core.dit.float8 import Float8MatmulOps
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.ops import TorchOps
from happyhorse_core.weights.formats import FLOAT8

LAYERS = 4


class Compilations:
    """A backend that runs a graph as it is and counts how many it got."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def size(text: int) -> Size:
    return Size(128, LAYERS, 64, 64, 4, text)


def model(local: bool, operations: type[TorchOps] = TorchOps) -> HappyHorseTransformer:
    """Layers of each kind: outer ones with either activation, inner ones, with local attention if it is asked for."""
    config = replace(size(7).config, mm_layers=(0, LAYERS - 1), gelu7_layers=(0,))
    if local:
        config = replace(config, local_attn_layers=(0, 2), frame_receptive_field=1)
    return filled(HappyHorseTransformer(config, operations=operations, dtype=torch.bfloat16))


def clip(run: Callable, text: int, steps: int = 2) -> None:
    """Steps of one clip: the prompt stays, picture and sound differ."""
    with torch.inference_mode():
        words = size(text).inputs(torch.device("cpu"))[2]
        for _ in range(steps):
            video, audio, _ = size(text).inputs(torch.device("cpu"))
            run(video, audio, words)


@pytest.mark.parametrize("local", [False, True])
def test_steps_and_clips_of_a_size_are_compiled_once(local):
    compilations = Compilations()
    run = torch.compile(model(local), backend=compilations, fullgraph=True)
    for _ in range(2):
        clip(run, text=7)
        assert compilations.count == 1


def test_prompts_of_all_lengths_share_what_was_compiled():
    compilations, transformer = Compilations(), model(local=True)
    run = torch.compile(transformer, backend=compilations, fullgraph=True)
    clip(run, text=7, steps=1)
    # Of the second length torch sees that lengths differ, and compiles for all of them.
    for text in (9, 300, 12, 7):
        clip(run, text, steps=1)
        assert compilations.count <= 2
    inputs = size(11).inputs(torch.device("cpu"))
    with torch.inference_mode():
        for found, expected in zip(run(*inputs), transformer(*inputs), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(("local", "kinds"), [(False, 3), (True, 4)])
def test_layers_of_a_kind_share_what_was_compiled(local, kinds):
    compilations = Compilations()
    transformer = model(local)
    for layer in transformer.block.layers:
        layer.compile(backend=compilations, dynamic=False)
    for _ in range(2):
        clip(transformer, text=7)
        assert compilations.count == kinds


def test_float8_products_change_nothing():
    compilations = Compilations()
    transformer = model(False, Float8MatmulOps)
    for module in transformer.block.modules():
        if hasattr(module, "keep_float8"):
            module.keep_float8(module.weight.data.to(FLOAT8), torch.ones(()))
    run = torch.compile(transformer, backend=compilations, fullgraph=True)
    for text in (7, 9, 12):
        clip(run, text, steps=1)
    assert compilations.count == 2
